"""MoBA and native sparse attention against their papers' definitions, written out in plain torch."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F

import attention_ext as ax
from attention_ext import nn
from attention_ext.masks import Causal

pytestmark = pytest.mark.once

E, H, D = 16, 4, 4
MOBA = {"block_size": 8, "top_k": 3}
NSA = {
    "compress_length": 4,
    "compress_stride": 2,
    "compress_hidden": 5,
    "block_size": 8,
    "top_k": 4,
    "local_blocks": 2,
    "window": 11,
}


def heads(x, n):
    """(B, L, n * d) as (B, n, L, d)."""
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def dense_attention(q, k, v, allowed):
    """softmax over what is allowed; 0 where nothing is."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~allowed, -math.inf)
    weights = torch.softmax(scores.masked_fill(~allowed.any(-1, keepdim=True), 0.0), -1)
    return torch.where(allowed, weights, 0.0) @ v, torch.where(allowed, weights, 0.0)


def moba_choice(q, k, block, top_k):
    """bool (B, H, L, L): for each query the keys up to it of its own block and the top_k - 1 best before."""
    B, heads, L, _ = q.shape
    allowed = torch.zeros(B, heads, L, L, dtype=torch.bool)
    for b in range(B):
        for h in range(heads):
            for i in range(L):
                own = i // block
                score = [q[b, h, i] @ k[b, h, n * block : (n + 1) * block].mean(0) for n in range(own)]
                best = sorted(range(own), key=lambda n: -score[n])[: top_k - 1]
                for n in [own, *best]:
                    allowed[b, h, i, n * block : (n + 1) * block] = True
    return allowed & torch.ones(L, L, dtype=torch.bool).tril()


def nsa_choice(p, layer, L):
    """The same for the selected branch, from the probabilities p (B, H, L, keys); (B, Hkv, L, L)."""
    length, stride, block = layer.compress_length, layer.compress_stride, layer.block_size
    B, Hkv = p.shape[0], layer.num_kv_heads
    allowed = torch.zeros(B, Hkv, L, L, dtype=torch.bool)
    p = p.unflatten(1, (Hkv, -1)).sum(2)
    for b in range(B):
        for h in range(Hkv):
            for i in range(L):
                own = i // block
                score = []
                for n in range(own + 1):  # equation 9, its blocks counted from 0
                    pairs = [(m, s) for m in range(block // stride) for s in range(length // stride)]
                    keys = [n * block // stride + m - s for m, s in pairs]
                    score.append(sum(float(p[b, h, i, c]) for c in keys if 0 <= c < p.shape[-1]))
                fixed = {
                    n for n in range(own + 1) if n < layer.initial_blocks or n > own - layer.local_blocks
                }
                others = sorted(set(range(own + 1)) - fixed, key=lambda n: (-score[n], n))
                for n in [*fixed, *others[: layer.top_k - len(fixed)]]:
                    allowed[b, h, i, n * block : (n + 1) * block] = True
    return allowed & torch.ones(L, L, dtype=torch.bool).tril()


def compress(module, x):
    """(B, H, L, D) to (B, H, keys, D), a stretch at a time."""
    made = []
    for begin in range(0, x.shape[2] - module.length + 1, module.stride):
        stretch = x[:, :, begin : begin + module.length] + module.position
        made.append(module.outer(F.silu(module.inner(stretch.flatten(2)))))
    return torch.stack(made, 2)


def nsa_definition(layer, x):
    """x (B, L, E) through the layer, all of it dense."""
    L = x.shape[1]
    Hkv = layer.num_kv_heads
    sizes = [E, Hkv * D, Hkv * D]
    w, b = layer.in_proj_weight.split(sizes), layer.in_proj_bias.split(sizes)
    q, k, v = (heads(F.linear(x, *p), n) for p, n in zip(zip(w, b, strict=True), (H, Hkv, Hkv), strict=True))
    compressed_k = compress(layer.compress_keys, heads(layer.compressed_key(x), Hkv))
    compressed_v = compress(layer.compress_values, heads(layer.compressed_value(x), Hkv))
    i, c = torch.arange(L)[:, None], torch.arange(compressed_k.shape[2])
    complete = c * layer.compress_stride + layer.compress_length <= i + 1
    out_compressed, p = dense_attention(q, compressed_k, compressed_v, complete)
    allowed = nsa_choice(p.detach(), layer, L).repeat_interleave(H // Hkv, 1)
    out_selected, _ = dense_attention(q, k, v, allowed)
    near = (torch.arange(L) <= i) & (torch.arange(L) > i - layer.window)
    k, v = heads(layer.sliding_key(x), Hkv), heads(layer.sliding_value(x), Hkv)
    out_sliding, _ = dense_attention(q, k, v, near)
    gates = torch.sigmoid(heads(layer.gates(x), H))
    out = gates[..., :1] * out_compressed + gates[..., 1:2] * out_selected + gates[..., 2:] * out_sliding
    return layer.out_proj(out.transpose(1, 2).flatten(2))


def moba_definition(layer, x):
    q, k, v = (heads(t, H) for t in F.linear(x, layer.in_proj_weight, layer.in_proj_bias).split(E, -1))
    allowed = moba_choice(q.detach(), k.detach(), layer.block_size, layer.top_k)
    return layer.out_proj(dense_attention(q, k, v, allowed)[0].transpose(1, 2).flatten(2))


def moba(**options):
    torch.manual_seed(0)
    return nn.MoBAAttention(E, H, batch_first=True, **MOBA | options)


def nsa(**options):
    torch.manual_seed(0)
    return nn.NativeSparseAttention(E, H, **{"batch_first": True} | NSA | options)


LAYERS = {
    "moba": (moba, moba_definition),
    "nsa": (nsa, nsa_definition),
    "nsa_grouped": (lambda **o: nsa(num_kv_heads=2, **o), nsa_definition),
    "nsa_one_kv_head": (lambda **o: nsa(num_kv_heads=1, initial_blocks=0, **o), nsa_definition),
}


@pytest.mark.parametrize("name", LAYERS)
def test_values_and_all_gradients(name):
    make, definition = LAYERS[name]
    layer = make(dtype=torch.float64)
    x = torch.randn(2, 70, E, dtype=torch.float64, requires_grad=True)
    inputs = (x, *layer.parameters())
    out, expected = layer(x, x, x, need_weights=False)[0], definition(layer, x)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, inputs, grad)
    torch.testing.assert_close(found, torch.autograd.grad(expected, inputs, grad))
    assert all(bool(g.abs().max() > 0) for g in found)


@pytest.mark.parametrize("name", LAYERS)
def test_the_last_queries_alone(name):
    layer = LAYERS[name][0](dtype=torch.float64)
    x = torch.randn(2, 60, E, dtype=torch.float64)
    whole = layer(x, x, x, need_weights=False)[0]
    for n in (1, 7):
        torch.testing.assert_close(layer(x[:, -n:], x, x, need_weights=False)[0], whole[:, -n:])
    for end in (1, 3, 33):  # and what comes later doesn't matter
        first = x[:, :end]
        torch.testing.assert_close(layer(first, first, first, need_weights=False)[0], whole[:, :end])


@pytest.mark.parametrize("name", LAYERS)
def test_layouts_travel_and_compile(name):
    layer = LAYERS[name][0]()
    x = torch.randn(2, 40, E)
    expected = layer(x, x, x, need_weights=False)[0]
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(copied(x, x, x, need_weights=False)[0], expected)
    torch.testing.assert_close(layer(x[1], x[1], x[1], need_weights=False)[0], expected[1])
    layer.batch_first = False
    y = x.transpose(0, 1)
    torch.testing.assert_close(layer(y, y, y, need_weights=False)[0], expected.transpose(0, 1))
    layer.batch_first = True
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, x, x, need_weights=False)[0], expected)
    assert "block_size=8" in repr(layer)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("as_float", [False, True])
def test_padding_reaches_nothing(name, as_float):
    """On the right a shorter sequence; on the left what is hidden may hold anything."""
    layer = LAYERS[name][0]()
    x = torch.randn(2, 50, E)
    hidden = torch.zeros(2, 50, dtype=torch.bool)
    hidden[0, 37:] = True
    hidden[1, :21] = True
    mask = torch.zeros(2, 50).masked_fill(hidden, -math.inf) if as_float else hidden
    out = layer(x, x, x, key_padding_mask=mask, need_weights=False)[0]
    short = x[:1, :37]
    torch.testing.assert_close(out[:1, :37], layer(short, short, short, need_weights=False)[0])
    other = torch.where(hidden[..., None], torch.nan, x)
    spoiled = layer(other, other, other, key_padding_mask=mask, need_weights=False)[0]
    torch.testing.assert_close(spoiled[~hidden], out[~hidden])


def test_moba_without_order():
    layer = moba(causal=False, dtype=torch.float64)
    x = torch.randn(1, 40, E, dtype=torch.float64)
    q, k, v = (heads(t, H) for t in F.linear(x, layer.in_proj_weight, layer.in_proj_bias).split(E, -1))
    scores = q @ k.unflatten(2, (5, 8)).mean(3).mT
    scores = scores.masked_fill(F.one_hot(torch.arange(40) // 8, 5).bool(), math.inf)
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(3).indices, True)
    out = dense_attention(q, k, v, chosen.repeat_interleave(8, -1))[0]
    found, weights = layer(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(found, layer.out_proj(out.transpose(1, 2).flatten(2)))
    assert torch.equal(weights > 0, chosen.repeat_interleave(8, -1))


def test_weights_of_dense_layers_load():
    dense = torch.nn.MultiheadAttention(E, H, batch_first=True)
    assert moba().load_state_dict(dense.state_dict())
    layer = nsa()
    result = layer.load_state_dict(dense.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert {key.split(".")[0] for key in result.missing_keys} == {
        *("compressed_key", "compressed_value", "sliding_key", "sliding_value"),
        *("compress_keys", "compress_values", "gates"),
    }
    assert torch.equal(layer.in_proj_weight, dense.in_proj_weight)
    assert torch.equal(layer.out_proj.weight, dense.out_proj.weight)


def test_replace_attention_with_moba():
    model = torch.nn.TransformerEncoderLayer(E, H, 32, dropout=0.0, batch_first=True).eval()
    x = torch.randn(1, 40, E)
    report = ax.replace_attention(model, "moba", **MOBA)
    assert report.replaced == ("self_attn",)
    assert type(model.self_attn) is nn.MoBAAttention
    attended = moba_definition(model.self_attn, x)
    y = model.norm1(x + attended)
    expected = model.norm2(y + model.linear2(torch.relu(model.linear1(y))))
    torch.testing.assert_close(model(x), expected)


def test_nsa_inside_an_encoder_layer():
    model = torch.nn.TransformerEncoderLayer(E, H, 32, dropout=0.0, batch_first=True)
    model.self_attn = nsa()
    mask = torch.nn.Transformer.generate_square_subsequent_mask(40)
    x = torch.randn(1, 40, E)
    expected = model.norm1(x + nsa_definition(model.self_attn, x))
    expected = model.norm2(expected + model.linear2(torch.relu(model.linear1(expected))))
    torch.testing.assert_close(model(x, src_mask=mask, is_causal=True), expected)
    torch.testing.assert_close(nsa()(x, x, x, attn_mask=Causal())[0], nsa()(x, x, x)[0])


def test_other_widths_of_keys_and_no_biases():
    layer = nsa(kdim=6, vdim=10, bias=False, num_kv_heads=2)
    x, k, v = torch.randn(2, 30, E), torch.randn(2, 30, 6), torch.randn(2, 30, 10)
    out = layer(x, k, v)[0]
    assert out.shape == x.shape
    assert layer.compressed_key.bias is None
    grads = torch.autograd.grad(out.sum(), [*layer.parameters()])
    assert all(bool(g.isfinite().all()) for g in grads)


def test_dropout_and_bfloat16():
    layer = nsa(dropout=0.5, dtype=torch.bfloat16)
    x = torch.randn(1, 40, E, dtype=torch.bfloat16)
    assert not torch.equal(layer(x, x, x)[0], layer(x, x, x)[0])
    layer.eval()
    assert torch.equal(layer(x, x, x)[0], layer(x, x, x)[0])


X = torch.randn(1, 20, E)
WRONG = [
    (lambda: moba(block_size=0), ValueError, "block_size: expected a positive integer"),
    (lambda: moba(top_k=1.5), TypeError, "top_k: expected a positive integer"),
    (lambda: moba(add_bias_kv=True), ValueError, "add_bias_kv: expected False with MoBAAttention, got True"),
    (lambda: moba().pattern(4, 4), TypeError, "pattern: MoBAAttention has none"),
    (lambda: nsa(add_zero_attn=True), ValueError, "add_zero_attn: expected False with NativeSparse"),
    (lambda: nsa(num_kv_heads=3), ValueError, "num_kv_heads: expected a divisor of num_heads 4, got 3"),
    (lambda: nsa(compress_length=5), ValueError, "compress_length: expected a multiple of compress_stride 2"),
    (lambda: nsa(block_size=9), ValueError, "block_size: expected a multiple of compress_stride 2, got 9"),
    (lambda: nsa(top_k=2), ValueError, r"top_k: expected at least initial_blocks .* got 2 for 1 \+ 2"),
    (lambda: nsa(window=0), ValueError, "window: expected a positive integer"),
    (lambda: nsa()(X, X, X, need_weights=True), ValueError, "need_weights: expected False"),
    (lambda: nsa()(X, X, X, attn_mask=X[0]), ValueError, "attn_mask: expected None, masks.Causal"),
    (lambda: nsa()(X, X, X, attn_mask=~Causal()), ValueError, "attn_mask: expected None, masks.Causal"),
    (lambda: nsa()(X, X, X, torch.ones(1, 20)), ValueError, "key_padding_mask: expected bool, or float of 0"),
    (lambda: nsa()(X, X, X.double()), TypeError, "value: expected torch.float32"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2] for w in WRONG])
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
