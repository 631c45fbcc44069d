"""Transformers' mask functions as we read them, against its own `sdpa_mask`."""

import itertools

import pytest
import torch
import transformers as tf
from transformers import masking_utils
from transformers_models import (
    WINDOWED,
    qkv,
    registered_and_on_one_thread,  # noqa: F401  a fixture
)

from attention_ext import masks
from attention_ext.integrations import _compact_mask, _transformers_mask
from attention_ext.integrations import transformers as integration
from attention_ext.integrations._transformers_mask import mask as mask_function_of_ours

pytestmark = [
    pytest.mark.once,
    # what Transformers and dynamo say about themselves
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

FUNCTIONS = {
    "causal": masking_utils.causal_mask_function,
    "bidirectional": masking_utils.bidirectional_mask_function,
    "window": masking_utils.sliding_window_causal_mask_function(3),
    "wide window": masking_utils.sliding_window_causal_mask_function(50),
    "bidirectional window": masking_utils.sliding_window_bidirectional_mask_function(2),
    "window, written otherwise": masking_utils.and_masks(
        masking_utils.causal_mask_function,
        masking_utils.and_masks(
            masking_utils.sliding_window_overlay(5), masking_utils.sliding_window_overlay(2)
        ),
    ),
    "custom": lambda b, h, i, j: (j <= i) & (j != 1),
    "union": masking_utils.or_masks(masking_utils.causal_mask_function, lambda b, h, i, j: j < 2),
    "custom intersection": masking_utils.and_masks(
        masking_utils.causal_mask_function, lambda b, h, i, j: (i + j) % 2 == 0
    ),
    "chunks": masking_utils.chunked_causal_mask_function(3, torch.tensor([0, 1])),
}
UNDERSTOOD = [name for name in FUNCTIONS if "window" in name or name in ("causal", "bidirectional")]
LENGTHS = [  # q_length, kv_length, q_offset, kv_offset
    (7, 7, 0, 0),
    (1, 7, 6, 0),
    (3, 7, 4, 0),
    (3, 12, 4, 0),  # a static cache with a tail
    (7, 12, 0, 0),
    (1, 12, 4, 0),
    (2, 4, 9, 7),  # a sliding cache
    (5, 3, 0, 0),
    (2, 6, 20, 0),
]


def dense_of(mask, causal, q_length, kv_length):
    """What the attention function makes of a mask."""
    query, key = torch.zeros(2, 1, q_length, 4), torch.zeros(2, 1, kv_length, 4)
    made, bias = integration._read_mask(mask, query, key, causal, None)
    assert bias is None
    if made is None:
        return torch.ones(2, 1, q_length, kv_length, dtype=torch.bool)
    return made.dense(q_length, kv_length).expand(2, 1, q_length, kv_length)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_mask_function_equals_sdpa_mask(name):
    function, compact = FUNCTIONS[name], 0
    for lengths, padding, tensor_offset in itertools.product(LENGTHS, (None, "right", "left"), (False, True)):
        q_length, kv_length, q_offset, kv_offset = lengths
        keep = None
        if padding is not None:  # what Transformers hands over: all tokens seen so far, in bool
            keep = torch.ones(2, q_offset + q_length, dtype=torch.bool)
            keep[1, (slice(0, 2) if padding == "left" else slice(-2, None))] = False
        given = {
            "batch_size": 2, "q_length": q_length, "kv_length": kv_length,
            "q_offset": torch.tensor(q_offset) if tensor_offset else q_offset, "kv_offset": kv_offset,
            "mask_function": function, "attention_mask": keep,
        }  # fmt: skip
        expected = masking_utils.sdpa_mask(**given, allow_is_causal_skip=False)
        mask = mask_function_of_ours(**given, allow_is_causal_skip=True, allow_is_bidirectional_skip=True)
        compact += mask is None or isinstance(mask, _compact_mask.CompactMask)
        assert dense_of(mask, name != "bidirectional", q_length, kv_length).equal(expected), lengths
        if mask is not None:
            assert mask.shape == expected.shape
            assert mask.dtype == torch.bool
            assert (mask & True).equal(expected)
    assert (compact > 0) == (name in UNDERSTOOD)


def test_what_another_version_means_otherwise_is_dense(monkeypatch):
    """A function of the same name and form that masks otherwise is not taken for the one we know."""

    def sliding_window_overlay(sliding_window):
        return lambda b, h, i, j: j >= i - sliding_window  # one key more

    given = {"batch_size": 1, "q_length": 9, "kv_length": 9}
    try:
        with monkeypatch.context() as patch:
            patch.setattr(masking_utils, "sliding_window_overlay", sliding_window_overlay)
            _transformers_mask.learn(masking_utils)
            given["mask_function"] = masking_utils.sliding_window_causal_mask_function(3)
            mask = mask_function_of_ours(**given)
    finally:
        _transformers_mask.learn(masking_utils)
    assert type(mask) is torch.Tensor
    assert mask.equal(masking_utils.sdpa_mask(**given, allow_is_causal_skip=False))


def test_mask_function_makes_nothing_quadratic():
    length = 1_000_000  # a dense mask would take 10^12 bytes
    keep = torch.ones(1, length, dtype=torch.bool)
    for function, padding in itertools.product(
        ("causal", "bidirectional", "window"), (None, keep, keep.clone())
    ):
        if padding is not None and padding is not keep:
            padding[:, :5] = False
        mask = mask_function_of_ours(
            1, length, length, mask_function=FUNCTIONS[function], attention_mask=padding,
            allow_is_causal_skip=True, allow_is_bidirectional_skip=True,
        )  # fmt: skip
        nothing = function != "window" and (padding is None or bool(padding.all()))
        assert (mask is None) == nothing
        if mask is not None:
            assert _compact_mask.as_mask(mask) is not None


def test_mask_function_leaves_nothing_to_a_flag_that_may_differ():
    """Where a skip is not allowed, or the layer may apply the configuration's window, a mask is made."""
    given = {"batch_size": 1, "q_length": 5, "kv_length": 5, "mask_function": FUNCTIONS["causal"]}
    assert mask_function_of_ours(**given) is None
    assert mask_function_of_ours(**given, allow_is_causal_skip=False) is not None
    config = tf.MistralConfig(**WINDOWED)
    mask = mask_function_of_ours(**given, config=config)
    out = [
        integration.attention(torch.nn.Module(), *qkv(1, 5, 5), mask, sliding_window=window)[0]
        for window in (None, 2)
    ]
    assert out[0].equal(out[1])


def test_padding_at_the_end_becomes_lengths():
    keep = torch.tensor([[True, True, True, False], [False, False, False, False], [True, True, True, True]])
    for padding, kind in ((keep, masks.KeyLengths), (keep.flip(1), masks.KeyPadding)):
        mask = mask_function_of_ours(
            3, 4, 4, mask_function=FUNCTIONS["bidirectional"], attention_mask=padding
        )
        made = _compact_mask.as_mask(mask)
        assert isinstance(made, kind)
        assert made.dense(4, 4).expand(3, 1, 4, 4).equal(padding[:, None, None].expand(3, 1, 4, 4))


def test_compact_mask_is_the_dense_one_for_who_computes_with_it():
    keep = torch.tensor([[True, True, False, True, True]])
    mask = mask_function_of_ours(1, 5, 5, mask_function=FUNCTIONS["window"], attention_mask=keep)
    expected = masking_utils.sdpa_mask(1, 5, 5, mask_function=FUNCTIONS["window"], attention_mask=keep)
    assert isinstance(mask, _compact_mask.CompactMask)
    for compute in (
        lambda m: m[:, :, 1:3],
        lambda m: m & ~torch.eye(5, dtype=torch.bool),
        lambda m: torch.cat([m, m], -1),
        lambda m: torch.where(m, 0.0, -1.0),
        lambda m: m.to(torch.float32).sum(),
        lambda m: m.clone(),
    ):
        result = compute(mask)
        assert type(result) is torch.Tensor
        assert result.equal(compute(expected))
    assert "CompactMask" in repr(mask)


def test_compact_mask_written_into_is_read_as_written():
    mask = mask_function_of_ours(1, 5, 5, mask_function=FUNCTIONS["window"])
    before = dense_of(mask, True, 5, 5)
    mask[:, :, 3].fill_(True)
    after = dense_of(mask, True, 5, 5)
    assert not before.equal(after)
    assert after[:, :, 3].all()
