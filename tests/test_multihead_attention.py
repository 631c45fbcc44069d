"""ax.MultiheadAttention: the same as torch.nn.MultiheadAttention."""

import copy
import inspect
import io
import pickle
import warnings

import pytest
import torch
from multihead_attention_cases import (
    INF,
    KDIM,
    VDIM,
    E,
    H,
    L,
    N,
    S,
    Watch,
    both,
    check_same,
    mask_of,
    one_thread,  # noqa: F401  a fixture
    sample,
    sample_inputs,
)
from torch import nn
from torch.testing import assert_close
from torch.testing._internal.common_modules import (
    module_inputs_torch_nn_MultiheadAttention,
    no_batch_dim_reference_mha,
)

import attention_ext as ax

# The module itself.


def test_is_a_subclass_with_the_same_signatures():
    module = ax.MultiheadAttention(E, H)
    assert isinstance(module, nn.MultiheadAttention)
    for method in ("__init__", "forward"):
        ours, theirs = (
            [(p.name, p.default, p.kind) for p in inspect.signature(getattr(cls, method)).parameters.values()]
            for cls in (ax.MultiheadAttention, nn.MultiheadAttention)
        )
        assert ours == theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True}, {"kdim": KDIM}, {"kdim": KDIM, "vdim": VDIM}])
def test_state_dict_and_initial_weights(options, bias):
    torch.manual_seed(3)
    theirs = nn.MultiheadAttention(E, H, bias=bias, **options)
    torch.manual_seed(3)
    ours = ax.MultiheadAttention(E, H, bias=bias, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name

    other = ax.MultiheadAttention(E, H, bias=bias, **options)
    other.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(other.state_dict(), strict=True)
    query = torch.randn(L, E)
    key, value = torch.randn(S, options.get("kdim", E)), torch.randn(S, options.get("vdim", E))
    assert_close(other(query, key, value), theirs(query, key, value))


@pytest.mark.parametrize("clone", ["deepcopy", "pickle", "torch.save"])
def test_copies(clone):
    module = ax.MultiheadAttention(E, H, add_bias_kv=True, batch_first=True).eval()
    if clone == "deepcopy":
        twin = copy.deepcopy(module)
    elif clone == "pickle":
        twin = pickle.loads(pickle.dumps(module))
    else:
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert type(twin) is ax.MultiheadAttention
    assert twin.in_proj_weight is not module.in_proj_weight
    x = torch.randn(N, L, E)
    assert torch.equal(twin(x, x, x)[0], module(x, x, x)[0])


# The same as torch.


DEVICE = torch.get_default_device()
MODULE_INPUTS = module_inputs_torch_nn_MultiheadAttention(None, DEVICE, torch.float64, True, False)


@pytest.mark.parametrize("index", range(len(MODULE_INPUTS)))
def test_torch_module_inputs(index):
    case = MODULE_INPUTS[index]
    theirs, ours = both(**case.constructor_input.kwargs)
    args, kwargs = case.forward_input.args, case.forward_input.kwargs
    for training in (True, False):
        theirs.train(training)
        ours.train(training)
        for need_weights, average in [(False, True), (True, True), (True, False)]:
            options = {"need_weights": need_weights, "average_attn_weights": average}
            if training:
                check_same(theirs, ours, args, kwargs, **options)
            else:
                assert_close(ours(*args, **kwargs, **options), theirs(*args, **kwargs, **options))
    options = {} if ours.batch_first else {"batch_first": False}
    batched = no_batch_dim_reference_mha(ours, None, *args, **kwargs, **options)
    assert_close(ours(*args, **kwargs), batched)


ATTN_MASKS = [None, "bool", "float", "hard", "bool heads", "float heads"]
PADDING_MASKS = [None, "bool", "float", "hard"]


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("padding", PADDING_MASKS)
@pytest.mark.parametrize("attn", ATTN_MASKS)
@pytest.mark.parametrize("kind", ["self", "cross", "three", "sizes"])
def test_same_as_torch(kind, attn, padding, need_weights):
    """Every kind of input with every pair of masks; layouts and appended keys take turns."""
    turn = ATTN_MASKS.index(attn) + PADDING_MASKS.index(padding)
    options = [
        {"batch_first": True},
        {"add_bias_kv": True},
        {"batch_first": True, "add_bias_kv": True, "add_zero_attn": True, "bias": False},
        {"add_zero_attn": True},
        {"bias": False},
    ][turn % 5]
    keys = L if kind == "self" else S
    shape = (N * H, L, keys) if attn and "heads" in attn else (L, keys)
    masks = {
        "attn_mask": mask_of(attn and attn.split()[0], shape),
        "key_padding_mask": mask_of(padding, (N, keys)),
    }
    sizes = {"kdim": KDIM, "vdim": VDIM} if kind == "sizes" else {}
    check_same(
        *both(E, H, **options, **sizes),
        sample_inputs(kind, options.get("batch_first", False)),
        masks,
        need_weights=need_weights,
        average_attn_weights=turn % 2 == 0,
    )


@pytest.mark.parametrize("need_weights", [True, False])
def test_eval_without_gradients_equals_torchs_fast_path(need_weights):
    theirs, ours = (m.eval() for m in both(E, H, batch_first=True))
    x = sample(N, L, E, requires_grad=False)
    with torch.no_grad():
        assert_close(ours(x, x, x, need_weights=need_weights), theirs(x, x, x, need_weights=need_weights))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("padding", [None, "bool", "float"])
@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}])
@pytest.mark.parametrize("masked", [True, -INF])
def test_is_causal_with_the_causal_mask(masked, options, padding, need_weights):
    theirs, ours = both(E, H, **options)
    x = sample(L, N, E)
    causal = torch.ones(L, L, dtype=torch.bool).triu(1)
    attn_mask = causal if masked is True else sample(L, L).detach().masked_fill(causal, masked)
    masks = {"attn_mask": attn_mask, "key_padding_mask": mask_of(padding, (N, L))}
    # Torch's is_causal hides the appended keys when it drops the mask; without the hint it is right.
    output, weights = ours(x, x, x, is_causal=True, need_weights=need_weights, **masks)
    check_same(theirs, ours, (x, x, x), masks, need_weights=need_weights)
    expected = ours(x, x, x, need_weights=need_weights, **masks)
    assert_close((output, weights) if need_weights else output, expected if need_weights else expected[0])


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_is_causal_honours_another_mask(kind, padded, need_weights):
    """It is a hint: the mask applies as it is, on every path."""
    theirs, ours = both(E, H)
    x = sample(L, N, E)
    attn_mask = mask_of(kind, (L, L)).detach()
    padding = torch.arange(L) >= torch.tensor([L, L - 1, L - 2])[:, None] if padded else None
    options = {"key_padding_mask": padding, "need_weights": need_weights}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs(x, x, x, attn_mask=attn_mask, **options)
    output, weights = ours(x, x, x, attn_mask=attn_mask, is_causal=True, **options)
    assert_close(output, expected[0])
    if need_weights:
        assert_close(weights, expected[1])


@pytest.mark.parametrize("sizes", [(0, L, S), (N, 0, S)])
def test_empty_inputs(sizes):
    n, queries, keys = sizes
    theirs, ours = both(E, H, batch_first=True)
    query, memory = sample(n, queries, E), sample(n, keys, E)
    check_same(theirs, ours, (query, memory, memory), {}, need_weights=False)
    output, weights = ours(query, memory, memory)
    assert output.shape == (n, queries, E)
    assert weights.shape == (n, queries, keys)


def test_no_keys_at_all():
    ours = both(E, H, batch_first=True)[1]
    output, weights = ours(sample(N, L, E), *[sample(N, 0, E)] * 2)
    assert torch.equal(output, ours.out_proj.bias.expand(N, L, E))
    assert weights.shape == (N, L, 0)


# Errors.


def bool_mask(*shape):
    return torch.zeros(*shape, dtype=torch.bool)


X = torch.randn(N, L, E)
ERRORS = {
    "query rank": (ValueError, (X[None], X, X), {}, "query: expected 2 dimensions"),
    "key rank": (ValueError, (X, X[0], X), {}, "key: expected 3 dimensions"),
    "value rank": (ValueError, (X[0], X[0], X), {}, "value: expected 2 dimensions"),
    "query features": (ValueError, (X[..., :4], X, X), {}, "query: expected a last dimension of 8"),
    "key features": (ValueError, (X, X[..., :4], X[..., :4]), {}, "key: expected a last dimension of 8"),
    "value features": (ValueError, (X, X, X[..., :4]), {}, "value: expected a last dimension of 8"),
    "value length": (ValueError, (X, X, X[:, :2]), {}, "value: expected the length and batch size of key"),
    "value batch": (ValueError, (X, X, X[:2]), {}, "value: expected the length and batch size of key"),
    "key batch": (ValueError, (X, X[:2], X[:2]), {}, "key: expected the batch size of query, 3"),
    "query dtype": (TypeError, (X.double(), X, X), {}, "query: expected torch.float32"),
    "key dtype": (TypeError, (X, X.double(), X), {}, "key: expected torch.float32"),
    "causal": (ValueError, (X, X, X), {"is_causal": True}, "is_causal: expected an attn_mask"),
    "padding rank": (
        ValueError,
        (X, X, X),
        {"key_padding_mask": bool_mask(L)},
        "key_padding_mask: expected shape",
    ),
    "padding shape": (
        ValueError,
        (X, X, X),
        {"key_padding_mask": bool_mask(N, 2)},
        r"shape \(3, 4\), got \(3, 2\)",
    ),
    "padding unbatched": (
        ValueError,
        (X[0],) * 3,
        {"key_padding_mask": bool_mask(1, L)},
        r"expected shape \(4,\)",
    ),
    "padding dtype": (
        TypeError,
        (X, X, X),
        {"key_padding_mask": bool_mask(N, L).int()},
        "key_padding_mask: expected",
    ),
    "mask dtype": (TypeError, (X, X, X), {"attn_mask": bool_mask(L, L).int()}, "got torch.int32"),
    "mask float64": (TypeError, (X, X, X), {"attn_mask": bool_mask(L, L).double()}, "got torch.float64"),
    "mask type": (TypeError, (X, X, X), {"attn_mask": [[False]]}, "attn_mask: expected a tensor, got list"),
    "mask rank": (ValueError, (X, X, X), {"attn_mask": bool_mask(N, H, L, L)}, "attn_mask: expected shape"),
    "mask shape": (
        ValueError,
        (X, X, X),
        {"attn_mask": bool_mask(L, S)},
        r"\(4, 4\) or \(6, 4, 4\), got \(4, 5\)",
    ),
    "mask heads": (ValueError, (X, X, X), {"attn_mask": bool_mask(N, L, L)}, "attn_mask: expected shape"),
    "mask unbatched": (
        ValueError,
        (X[0],) * 3,
        {"attn_mask": bool_mask(1, L, L)},
        "attn_mask: expected shape",
    ),
}


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("case", ERRORS)
def test_errors(case, need_weights):
    error, inputs, masks, message = ERRORS[case]
    theirs, ours = both(E, H, batch_first=True, dtype=torch.float32)
    arguments = {**masks, "need_weights": need_weights}
    with pytest.raises(Exception):  # noqa: B017, PT011 - any: torch has no rule
        theirs(*inputs, **arguments)
    with pytest.raises(error, match=message):
        ours(*inputs, **arguments)


def test_constructor_errors_are_torchs():
    with pytest.raises(ValueError, match="greater than 0"):
        ax.MultiheadAttention(0, 1)
    with pytest.raises(AssertionError, match="divisible by num_heads"):
        ax.MultiheadAttention(8, 3)


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_a_mask_with_appended_keys_is_an_error(option):
    module = ax.MultiheadAttention(E, H, **{option: True})
    with pytest.raises(ValueError, match="attn_mask: expected a tensor with add_bias_kv or add_zero_attn"):
        module(X, X, X, attn_mask=ax.masks.Causal())


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_an_error(layout):
    module = ax.MultiheadAttention(E, H, batch_first=True).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch, on nested tensors being a prototype
        nested = torch.nested.nested_tensor([X[0], X[1, :2]], layout=layout)
    with torch.no_grad(), pytest.raises(TypeError, match="query: expected a padded tensor"):
        module(nested, nested, nested, need_weights=False)


def test_a_layer_that_goes_round_it_warns():
    layer = nn.TransformerEncoderLayer(E, H, batch_first=True).eval()
    layer.self_attn = ax.MultiheadAttention(E, H, batch_first=True).eval()
    with torch.no_grad(), Watch() as watch, pytest.warns(UserWarning, match="replace_attention"):
        layer(X)
    assert watch.attention_calls == 0
