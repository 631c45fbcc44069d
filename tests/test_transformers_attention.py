"""The attention function that Transformers calls, by itself, and its registration."""

import math
import sys

import pytest
import torch
import transformers as tf
from transformers import masking_utils
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers_models import (
    PADDING,
    qkv,
    registered_and_on_one_thread,  # noqa: F401  a fixture
)

import attention_ext as ax
from attention_ext.integrations import transformers as integration
from attention_ext.integrations._transformers_mask import mask as mask_function_of_ours

pytestmark = [
    pytest.mark.once,
    # what Transformers and dynamo say about themselves
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def attend(*args, training=False, is_causal=True, **kwargs):
    module = torch.nn.Module().train(training)
    module.is_causal = is_causal
    out, weights = integration.attention(module, *args, **kwargs)
    assert weights is None
    assert out.is_contiguous()
    return out


@pytest.mark.parametrize("additive", [False, True])
def test_row_that_sees_nothing_is_zero(additive):
    keep = torch.tensor(PADDING["left"])[:, :5].bool()
    mask = mask_function_of_ours(
        2, 5, 5, mask_function=masking_utils.causal_mask_function, attention_mask=keep
    )
    if additive:
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    tensors = qkv(grad=True)
    out = attend(*tensors, mask)
    assert out.shape == (2, 5, 4, 8)
    assert out[1, :3].eq(0).all()
    assert out[1, 3:].ne(0).all()
    gradients = torch.autograd.grad(out.sum(), tensors)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0][1, :, :3].eq(0).all()
    assert gradients[1][1, :, :3].eq(0).all()


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_flags(is_causal, window, padded):
    """Without a mask function: query i stands at key i + Lk - Lq, and a window counts its own key."""
    query, key, value = qkv(2, 4, 7)
    position, j = torch.arange(4)[:, None] + 3, torch.arange(7)
    allowed = (j <= position) if is_causal else torch.ones(4, 7, dtype=torch.bool)
    if window is not None:
        allowed = allowed & ((position - j).abs() < window)
    allowed = allowed.expand(2, 1, 4, 7)
    keep = None
    if padded:
        keep = torch.tensor([[1] * 9, [1, 1, 1, 1, 0, 1, 1, 0, 1]])  # of two keys more: the last ones count
        allowed = allowed & keep[:, None, None, -7:].bool()
    scores = (query @ key.repeat_interleave(2, 1).mT * 0.5).masked_fill(~allowed, -math.inf)
    expected = scores.softmax(-1).nan_to_num(0.0) @ value.repeat_interleave(2, 1)
    for given in ({"is_causal": is_causal}, {"is_causal": None}):
        module = torch.nn.Module()
        module.is_causal = is_causal
        out, _ = integration.attention(
            module, query, key, value, keep, scaling=0.5, sliding_window=window, **given
        )
        torch.testing.assert_close(out, expected.transpose(1, 2))


def test_dropout_acts_in_training_only():
    tensors = qkv()
    plain = attend(*tensors, None)
    assert attend(*tensors, None, dropout=0.5).equal(plain)
    torch.manual_seed(0)
    dropped = attend(*tensors, None, dropout=0.5, training=True)
    torch.manual_seed(0)
    assert attend(*tensors, None, dropout=0.5, training=True).equal(dropped)
    assert not dropped.equal(plain)


def test_position_bias_joins_an_additive_mask():
    query, key, value = qkv(kv_heads=4)
    bias = torch.randn(1, 4, 5, 5, requires_grad=True)
    mask = torch.where(torch.ones(5, 5).tril().bool(), 0.0, torch.finfo(torch.float32).min)[None, None]
    out = attend(query, key, value, mask, position_bias=bias)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias + mask)
    torch.testing.assert_close(out, expected.transpose(1, 2))
    ours, theirs = (torch.autograd.grad(o.square().sum(), bias)[0] for o in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_one_query_batch_for_many_sequences():
    query, key, value = qkv()
    out = attend(query[:1], key, value, None)
    assert out.equal(attend(query[:1].expand(2, -1, -1, -1), key, value, None))


@pytest.mark.parametrize("argument", ["cache", "sinks", "block_indices"])
def test_what_would_be_wrong_is_refused(argument):
    with pytest.raises(NotImplementedError, match=f"^{argument}: attention_ext does not support"):
        attend(*qkv(), None, **{argument: object()})


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(2, 5, 5), ValueError, r"attention_mask: expected .* got torch.float32 \(2, 5, 5\)"),
        (
            torch.ones(2, 4, dtype=torch.bool),
            ValueError,
            r"attention_mask: expected .* got torch.bool \(2, 4\)",
        ),
        (torch.ones(2, 5), ValueError, r"attention_mask: expected .* got torch.float32 \(2, 5\)"),
        (
            torch.ones(2, 1, 5, 5, dtype=torch.long),
            TypeError,
            "attention_mask: a 4-D mask is bool or floating point",
        ),
        ([1], TypeError, "attention_mask: expected Tensor or None, got list"),
        (torch.ones(2, 1, 5, 6, dtype=torch.bool), ValueError, "mask: expected Dense broadcastable to"),
    ],
)
def test_mask_not_understood_is_an_error(mask, error, message):
    with pytest.raises(error, match=message):
        attend(*qkv(), mask)


def test_output_attentions_warns(caplog, monkeypatch):
    monkeypatch.setattr(tf.utils.logging.get_logger("transformers"), "propagate", True)
    attend(*qkv(), None, output_attentions=True)
    assert "does not support `output_attentions=True`" in caplog.text


# Registration


def test_register_twice_and_under_another_name():
    integration.register()
    integration.register("fused")
    try:
        assert (
            ALL_ATTENTION_FUNCTIONS["fused"]
            is ALL_ATTENTION_FUNCTIONS["attention_ext"]
            is integration.attention
        )
        assert "fused" in masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    finally:
        del tf.AttentionInterface._global_mapping["fused"], tf.AttentionMaskInterface._global_mapping["fused"]
    assert ax.integrations.transformers is integration


@pytest.mark.parametrize(
    "name", ["", "eager", "sdpa", "flash_attention_2", "my_flash", "paged|mine", "me/mine"]
)
def test_register_refuses_names_with_a_meaning(name):
    with pytest.raises(ValueError, match=r"name: .* has a meaning of its own in Transformers"):
        integration.register(name)


def test_register_refuses_a_name_that_is_taken():
    tf.AttentionInterface.register("taken", print)
    try:
        with pytest.raises(
            ValueError, match="name: Transformers already has an implementation called 'taken'"
        ):
            integration.register("taken")
    finally:
        del tf.AttentionInterface._global_mapping["taken"]
    with pytest.raises(TypeError, match="name: expected str, got int"):
        integration.register(3)


def test_register_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"needs transformers >= 5\.4, which is not installed: pip install"):
        integration.register()


def test_register_with_an_old_transformers(monkeypatch):
    monkeypatch.setattr(masking_utils, "sdpa_mask", lambda batch_size, cache_position: None)
    with pytest.raises(ImportError, match=r"needs transformers >= 5\.4, found 5\."):
        integration.register()
