"""Layers with a sparse pattern, and putting them into models."""

import copy
import pickle

import pytest
import torch

import attention_ext as ax
from attention_ext import nn
from attention_ext.masks import (
    Blocks,
    Causal,
    Dense,
    Dilated,
    Documents,
    Neighborhood,
    SlidingWindow,
    Strided,
    _lowering,
)

pytestmark = pytest.mark.once

MAP = torch.rand(4, 3, 3) > 0.4
POSITIONS = torch.arange(24)
# Class, its own arguments, the same as a mask.
LAYERS = {
    "window": (nn.SlidingWindowAttention, {"window": 3}, SlidingWindow(3, 3)),
    "window_causal": (nn.SlidingWindowAttention, {"window": 3, "causal": True}, SlidingWindow(2, 0)),
    "window_pair": (nn.SlidingWindowAttention, {"window": (None, 1)}, SlidingWindow(None, 1)),
    "dilated": (nn.DilatedAttention, {"window": 2, "dilation": 3}, Dilated(2, 2, 3)),
    "strided": (nn.StridedAttention, {"stride": 5}, SlidingWindow(5, 0) | (Strided(5) & Causal())),
    "fixed": (
        nn.StridedAttention,
        {"stride": 6, "mode": "fixed", "expressivity": 2},
        (Documents(POSITIONS // 6) | Dense(POSITIONS % 6 >= 4)) & Causal(),
    ),
    "blocks": (nn.BlockSparseAttention, {"block_map": MAP, "block_size": 8}, Blocks(MAP, 8)),
    "neighborhood": (nn.NeighborhoodAttention, {"shape": (4, 6), "window": 3}, Neighborhood((4, 6), 3)),
}


def made(name, **options):
    cls, own, mask = LAYERS[name]
    torch.manual_seed(0)
    return cls(16, 4, batch_first=True, **own, **options), mask


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("need_weights", [False, True])
def test_a_layer_is_attention_with_its_mask(name, need_weights):
    layer, mask = made(name)
    dense = ax.MultiheadAttention(16, 4, batch_first=True)
    dense.load_state_dict(layer.state_dict())
    torch_layer = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    torch_layer.load_state_dict(layer.state_dict())
    x = torch.randn(2, 24, 16, requires_grad=True)
    padding = torch.zeros(2, 24, dtype=torch.bool)
    padding[1, 20:] = True
    options = {"key_padding_mask": padding, "need_weights": need_weights}
    expected = dense(x, x, x, attn_mask=mask, **options)
    actual = layer(x, x, x, **options)
    torch.testing.assert_close(actual, expected)
    wanted = torch.autograd.grad(expected[0].sum(), (x, dense.in_proj_weight))
    found = torch.autograd.grad(actual[0].sum(), (x, layer.in_proj_weight))
    torch.testing.assert_close(found, wanted)
    both = layer(x, x, x, attn_mask=~torch.ones(24, 24, dtype=torch.bool).tril(), **options)
    torch.testing.assert_close(both, dense(x, x, x, attn_mask=mask & Causal("top_left"), **options))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_travel_and_compile(name):
    layer, _ = made(name)
    x = torch.randn(2, 24, 16)
    expected = layer(x, x, x, need_weights=False)[0]
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(copied(x, x, x, need_weights=False)[0], expected)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, x, x, need_weights=False)[0], expected)
    assert [*layer.state_dict()] == [*torch.nn.MultiheadAttention(16, 4).state_dict()]
    assert type(layer).__name__ in repr(layer)


def test_a_window_makes_no_square_of_its_length():
    layer = nn.SlidingWindowAttention(8, 1, window=64, batch_first=True)
    x = torch.randn(1, 20_000, 8)
    out, weights = layer(x, x, x, need_weights=False)
    assert weights is None
    dense = torch.nn.functional.linear(x[:, :65], layer.in_proj_weight, layer.in_proj_bias)
    q, k, v = dense.unflatten(-1, (3, 1, 8)).permute(2, 0, 3, 1, 4)
    first = layer.out_proj((torch.softmax(q[:, :, :1] @ k.mT * 8**-0.5, -1) @ v)[:, 0])
    torch.testing.assert_close(out[:, :1], first)


@pytest.mark.parametrize("name", ["fixed", "blocks", "neighborhood"])
def test_a_table_is_built_once(name, monkeypatch):
    layer, _ = made(name)
    x = torch.randn(2, 24, 16)
    padding = torch.arange(24) >= torch.tensor([[24], [20]])
    layer(x, x, x, need_weights=False)
    monkeypatch.setattr(_lowering, "_build", None)
    for step in range(3):
        layer(x, x, x, key_padding_mask=padding.roll(step, 0), need_weights=False)


def encoder():
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    return torch.nn.TransformerEncoder(layer, 2)


def test_replace_attention_with_windows():
    model = encoder()
    parameters = [*model.parameters()]
    x = torch.randn(2, 24, 16)
    dense = model.eval()(x)
    report = ax.replace_attention(model, "sliding_window", window=2, causal=True)
    assert report.replaced == ("layers.0.self_attn", "layers.1.self_attn")
    assert report.skipped == {}
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(type(layer.self_attn) is nn.SlidingWindowAttention for layer in model.layers)
    mask = ~SlidingWindow(1, 0).dense(24, 24)[0, 0]
    expected = encoder()
    expected.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), expected.eval()(x, mask=mask))
    assert not torch.allclose(model(x), dense)
    again = ax.replace_attention(model, "dilated", window=1, dilation=2)
    assert again.replaced == ()
    assert set(again.skipped.values()) == {"SlidingWindowAttention has a pattern of its own"}


def test_replace_attention_keeps_subclasses():
    class Mine(torch.nn.MultiheadAttention):
        def hello(self):
            return "hello"

    model = torch.nn.ModuleList([Mine(16, 4), ax.MultiheadAttention(16, 4)])
    model.append(torch.nn.MultiheadAttention(16, 4, add_bias_kv=True))
    report = ax.replace_attention(model, "strided", stride=4)
    assert report.replaced == ("0", "1")
    assert report.skipped == {"2": "add_bias_kv and add_zero_attn have no place in a pattern"}
    assert model[0].hello() == "hello"
    assert isinstance(model[0], nn.StridedAttention)
    assert isinstance(model[0], Mine)
    x = torch.randn(24, 2, 16)
    model[1].load_state_dict(model[0].state_dict())
    torch.testing.assert_close(model[0](x, x, x), model[1](x, x, x))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.SlidingWindowAttention(8, 2, window=0), ValueError, "window: expected at least 1, got 0"),
        (lambda: nn.SlidingWindowAttention(8, 2, window=2.0), TypeError, "window: expected an int or"),
        (lambda: nn.SlidingWindowAttention(8, 2, window=(1, 2, 3)), ValueError, "window: expected an int or"),
        (
            lambda: nn.SlidingWindowAttention(8, 2, window=(-1, 0)),
            ValueError,
            "left: expected a non-negative",
        ),
        (
            lambda: nn.DilatedAttention(8, 2, window=2, dilation=0),
            ValueError,
            "dilation: expected a positive",
        ),
        (lambda: nn.StridedAttention(8, 2, stride=4, mode="odd"), ValueError, 'mode: expected "strided" or'),
        (
            lambda: nn.StridedAttention(8, 2, stride=4, expressivity=5),
            ValueError,
            "expressivity: expected 1 to",
        ),
        (
            lambda: nn.SlidingWindowAttention(8, 2, window=2, add_zero_attn=True),
            ValueError,
            "add_zero_attn: expected False with SlidingWindowAttention, got True",
        ),
        (lambda: ax.replace_attention(encoder(), "odd"), ValueError, "kind: expected one of dense, sliding"),
        (
            lambda: ax.replace_attention(encoder(), window=3),
            TypeError,
            "window: expected no pattern with kind",
        ),
        (
            lambda: ax.replace_attention(encoder(), "strided", stride=0),
            ValueError,
            "stride: expected a positive",
        ),
        (lambda: ax.replace_attention(encoder(), "sliding_window", size=3), TypeError, "size|window"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
