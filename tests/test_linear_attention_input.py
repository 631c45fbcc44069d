"""Bad input to linear attention: the messages, and what the raw op says by itself."""

import pytest
import torch
from linear_cases import Shape, make_qkv, make_state
from test_linear_attention_derivatives import call

import attention_ext as ax
from attention_ext._ops import library

pytestmark = pytest.mark.once
S = Shape(2, 4, 2, 2, 5, 3, 2)
T = torch.zeros

# What is wrong with a call of shapes S, the exception, its message.
BAD = [
    ({"query": 3}, TypeError, "query: expected a torch.Tensor, got int"),
    (
        {"key": T(2, 2, 5, 3).double()},
        TypeError,
        "key: expected the dtype of query, torch.float32, got torch.float64",
    ),
    (
        {"query": T(2, 4, 5, 3).int()},
        TypeError,
        "query: expected dtype float32, float64, bfloat16 or float16, got torch.int32",
    ),
    ({"query": T(5)}, ValueError, "query: expected shape (B, H, L, D), (H, L, D) or (L, D), got (5,)"),
    ({"key": T(2, 5, 3)}, ValueError, "key: expected 4 dimensions as in query, got shape (2, 5, 3)"),
    ({"key": T(1, 2, 5, 3)}, ValueError, "key: expected the batch size of query, 2, got shape (1, 2, 5, 3)"),
    (
        {"key": T(2, 2, 5, 4)},
        ValueError,
        "key: expected the head dimension of query, 3, got shape (2, 2, 5, 4)",
    ),
    ({"value": T(2, 2, 6, 2)}, ValueError, "value: expected the length of key, 5, got shape (2, 2, 6, 2)"),
    ({"query": T(2, 4, 6, 3)}, ValueError, "key: expected the length of query, 6, got shape (2, 2, 5, 3)"),
    (
        {"key": T(2, 3, 5, 3)},
        ValueError,
        "key: expected a number of heads that divides the largest of query's, key's and value's, 4, got 3",
    ),
    (
        {"query": T(2, 6, 5, 3), "key": T(2, 3, 5, 3)},
        ValueError,
        "value: expected a number of heads that divides key's 3, or is a multiple of it, got 2",
    ),
    (
        {"feature_map": "gelu"},
        ValueError,
        "feature_map: expected one of identity, elu, relu, softmax, got 'gelu'",
    ),
    (
        {"feature_map": 3},
        TypeError,
        "feature_map: expected a name or an attention_ext.features.FeatureMap, got int",
    ),
    (
        {"decay": T(3)},
        ValueError,
        "decay: expected shape (Hs,) = (2,) or (B, Hs, L) = (2, 2, 5) or (B, Hs, L, D) = (2, 2, 5, 3),"
        " got (3,)",
    ),
    ({"decay": T(2), "causal": False}, ValueError, "decay: expected None where not causal"),
    (
        {"decay": T(2).int()},
        TypeError,
        "decay: expected dtype float32, float64, bfloat16 or float16, got torch.int32",
    ),
    ({"scale": 1.0}, ValueError, "scale: expected None with normalize=True"),
    (
        {"scale": float("nan"), "normalize": False},
        ValueError,
        "scale: expected a finite number or None, got nan",
    ),
    ({"eps": -1}, ValueError, "eps: expected a finite number >= 0, got -1"),
    ({"eps": "a"}, TypeError, "eps: expected a finite number >= 0, got str"),
    ({"key_lengths": [1]}, ValueError, "key_lengths: expected shape (B,) = (2,), got (1,)"),
    ({"key_lengths": [1, -2]}, ValueError, "key_lengths: expected lengths >= 0, got -2"),
    ({"key_lengths": T(2)}, TypeError, "key_lengths: expected dtype int64 or int32, got torch.float32"),
    ({"key_lengths": [1, 2], "cu_seqlens": [0, 5]}, ValueError, "key_lengths: expected None with cu_seqlens"),
    ({"cu_seqlens": [0, 5]}, ValueError, "cu_seqlens: expected with batch size 1, got 2"),
    (
        {"initial_state": T(2, 2, 3, 2)},
        TypeError,
        "initial_state: expected a pair (S, z) with normalize=True, got Tensor",
    ),
    (
        {"initial_state": T(2, 2, 3, 3), "normalize": False},
        ValueError,
        "initial_state: expected S of shape (2, 2, 3, 2), got (2, 2, 3, 3)",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=range(len(BAD)))
def test_messages(change, error, message):
    q, k, v = make_qkv(S)
    arguments = {"query": q, "key": k, "value": v, "causal": True, **change}
    with pytest.raises(error) as caught:
        ax.linear_attention(**arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("borders", [[1, 5], [0, 4], [0, 3, 2, 5]])
def test_borders_that_do_not_fit(borders):
    q, k, v = (t[:1] for t in make_qkv(S))
    with pytest.raises(ValueError, match="cu_seqlens: expected ascending from 0 to the length 5, got"):
        ax.linear_attention(q, k, v, cu_seqlens=borders)


def test_lengths_are_clamped():
    tensors = make_qkv(S)
    lengths = torch.tensor([9, 5], dtype=torch.int32)
    torch.testing.assert_close(
        ax.linear_attention(*tensors, key_lengths=lengths), ax.linear_attention(*tensors), rtol=0, atol=0
    )


def test_a_step_wants_one_token_and_the_state_as_it_came():
    q, k, v = (t[:, :, 0] for t in make_qkv(S))
    state = tuple(make_state(S, True))
    with pytest.raises(ValueError, match="query: expected shape"):
        ax.linear_attention_step(q[:, :, None], k, v, state)
    with pytest.raises(TypeError, match="state: expected the state"):
        ax.linear_attention_step(q, k, v, None)
    for bad in (state[0].half(), state[0].mT.contiguous().mT):
        with pytest.raises(ValueError, match="state: expected contiguous"):
            ax.linear_attention_step(q, k, v, (bad, state[1]))


# Called directly, the op checks again.
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": T(2, 4, 5, 4)}, "key: expected shape"),
        ({"value": T(2, 2, 4, 2)}, "value: expected shape"),
        ({"key": T(2, 3, 5, 3)}, "expected numbers of heads"),
        ({"feature_map": 9}, "feature_map: expected 0 to 3"),
        ({"eps": -1.0}, "eps: expected"),
        ({"decay": T(7)}, "decay: expected"),
        ({"key_lengths": torch.tensor([1, 6])}, "key_lengths: expected 0 to 5, got 6"),
        ({"cu_seqlens": torch.tensor([0, 5])}, "cu_seqlens: expected batch 1"),
        ({"initial_state": T(1, 2, 3, 2)}, "initial_state: expected"),
        ({"initial_normalizer": None}, "initial_normalizer: expected"),
    ],
)
def test_the_raw_op_checks(change, message):
    arguments = call("token")._replace(**change)
    with pytest.raises(RuntimeError, match=message):
        library.linear_forward(*arguments)
