"""ax.nn.LinformerAttention and NystromAttention against the packages of these names; padding."""

import re

import linformer
import nystrom_attention
import pytest
import torch

from attention_ext import nn
from attention_ext.nn.nystrom import pseudoinverse

pytestmark = pytest.mark.once
N, L, S, E, H, K = 2, 13, 9, 12, 3, 4
F64 = {"dtype": torch.float64}


def linformer_layer(**options):
    options = {"max_length": L, "num_projections": K, "bias": False, **options}
    return nn.LinformerAttention(E, H, batch_first=True, **F64, **options)


def nystrom_layer(heads=H, **options):
    return nn.NystromAttention(E, heads, batch_first=True, num_landmarks=K, **F64, **options)


LAYERS = {
    "linformer": linformer_layer,
    "shared": lambda: linformer_layer(share_projections=True, bias=True),
    "nystrom": nystrom_layer,
    "convolution": lambda: nystrom_layer(conv_kernel_size=3),
}


def assert_same(ours, theirs, mine, peers):
    """Equal outputs, and gradients: peers is a list of tensors for each of mine, one below the other."""
    torch.testing.assert_close(ours, theirs)
    cotangent = torch.randn_like(ours)
    grads = torch.autograd.grad(ours, mine, cotangent)
    expected = iter(torch.autograd.grad(theirs, [t for parts in peers for t in parts], cotangent))
    torch.testing.assert_close(grads, tuple(torch.cat([next(expected) for _ in parts]) for parts in peers))


@pytest.mark.parametrize("length", [L, S])
def test_linformer_is_that_of_its_package(length):
    torch.manual_seed(0)
    peer = linformer.LinformerSelfAttention(E, L, k=K, heads=H).double()
    layer = linformer_layer()
    w = (peer.to_q.weight, peer.to_k.weight, peer.to_v.weight)
    layer.load_state_dict(
        {
            "in_proj_weight": torch.cat(w),
            "proj_k": peer.proj_k,
            "proj_v": peer.proj_v,
            "out_proj.weight": peer.to_out.weight,
        },
        strict=False,
    )
    layer.out_proj.bias = torch.nn.Parameter(peer.to_out.bias.detach().clone())
    x = torch.randn(N, L, E, requires_grad=True, **F64)
    memory = x if length == L else torch.randn(N, S, E, requires_grad=True, **F64)
    leaves = [x] if memory is x else [x, memory]
    assert_same(
        layer(x, memory, memory)[0],
        peer(x, None if memory is x else memory),
        [*leaves, layer.in_proj_weight, layer.proj_k, layer.proj_v, layer.out_proj.weight],
        [*([t] for t in leaves), w, [peer.proj_k], [peer.proj_v], [peer.to_out.weight]],
    )


@pytest.mark.parametrize("one_kv_head", [False, True])
def test_linformer_with_shared_keys_and_values(one_kv_head):
    torch.manual_seed(0)
    peer = linformer.LinformerSelfAttention(
        E, L, k=K, heads=H, share_kv=True, one_kv_head=one_kv_head
    ).double()
    layer = linformer_layer(share_projections=True)
    w = peer.to_k.weight.repeat(H if one_kv_head else 1, 1)
    with torch.no_grad():
        layer.in_proj_weight.copy_(torch.cat((peer.to_q.weight, w, w)))
        layer.proj_k.copy_(peer.proj_k)
        layer.out_proj.weight.copy_(peer.to_out.weight)
        layer.out_proj.bias = torch.nn.Parameter(peer.to_out.bias.clone())
    assert "proj_v" not in layer.state_dict()
    x = torch.randn(N, L, E, requires_grad=True, **F64)
    assert_same(layer(x, x, x)[0], peer(x), [x, layer.proj_k], [[x], [peer.proj_k]])


@pytest.mark.parametrize("conv_kernel_size", [None, 5])
@pytest.mark.parametrize(("length", "padded"), [(12, False), (L, False), (L, True)])
@pytest.mark.parametrize(("batch", "heads", "iterations"), [(1, 1, 6), (N, H, 40)])
def test_nystrom_is_that_of_its_package(batch, heads, iterations, length, padded, conv_kernel_size):
    """Which scales its iterations by all heads and batch rows at once: several of them agree in the limit.
    Told that no token is padded, it leaves out the zeros that it fills up the length with."""
    torch.manual_seed(0)
    peer = nystrom_attention.NystromAttention(
        E,
        dim_head=E // heads,
        heads=heads,
        num_landmarks=K,
        pinv_iterations=iterations,
        residual=conv_kernel_size is not None,
        residual_conv_kernel=conv_kernel_size or 1,
        eps=0.0,
    ).double()
    layer = nystrom_layer(heads, pinv_iterations=iterations, conv_kernel_size=conv_kernel_size, bias=False)
    linear = peer.to_out[0]
    with torch.no_grad():
        layer.in_proj_weight.copy_(peer.to_qkv.weight)
        layer.out_proj.weight.copy_(linear.weight)
        layer.out_proj.bias = torch.nn.Parameter(linear.bias.clone())
    mine, theirs = [layer.in_proj_weight, layer.out_proj.weight], [[peer.to_qkv.weight], [linear.weight]]
    if conv_kernel_size is not None:
        layer.conv.load_state_dict(peer.res_conv.state_dict())
        mine, theirs = [*mine, layer.conv.weight], [*theirs, [peer.res_conv.weight]]
    x = (3 * torch.randn(batch, length, E, **F64)).requires_grad_()
    keep = torch.ones(batch, length, dtype=torch.bool)
    if padded:
        keep[0, -2:] = keep[0, 2] = False
    ours = layer(x, x, x, key_padding_mask=~keep if padded else None)[0][keep]
    assert_same(ours, peer(x, mask=keep)[keep], [x, *mine], [[x], *theirs])


def test_pseudoinverse():
    torch.manual_seed(0)
    a = torch.randn(3, 5, 5, **F64).softmax(-1)
    torch.testing.assert_close(pseudoinverse(a, 40), torch.linalg.pinv(a))
    a[:, 3:], a[:, :, 2] = 0.0, 0.0
    torch.testing.assert_close(pseudoinverse(a, 40), torch.linalg.pinv(a))
    assert torch.equal(pseudoinverse(torch.zeros(2, 2), 6), torch.zeros(2, 2))


@pytest.mark.parametrize("num_landmarks", [L, L + 3])
def test_a_landmark_for_each_token_gives_softmax_attention(num_landmarks):
    torch.manual_seed(0)
    layer = nn.NystromAttention(
        E, H, batch_first=True, num_landmarks=num_landmarks, pinv_iterations=40, **F64
    )
    x, memory = 2 * torch.randn(N, L, E, **F64), 2 * torch.randn(N, L, E, **F64)
    exact = nn.MultiheadAttention(E, H, batch_first=True, **F64)
    exact.load_state_dict(layer.state_dict())
    for other in (x, memory):
        expected = exact(x, other, other, need_weights=False)[0]
        torch.testing.assert_close(layer(x, other, other)[0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_padded_tokens_reach_nothing(name):
    torch.manual_seed(0)
    layer, x = LAYERS[name](), torch.randn(N, L, E, **F64)
    hidden = torch.zeros(N, L, dtype=torch.bool)
    hidden[0, 4:6], hidden[1, :7] = True, True
    other = x.masked_fill(hidden[..., None], 1e3)
    out = layer(x, x, x, key_padding_mask=hidden)[0]
    assert torch.equal(out[~hidden], layer(other, other, other, key_padding_mask=hidden)[0][~hidden])
    float_mask = torch.zeros(N, L, **F64).masked_fill(hidden, -torch.inf)
    assert torch.equal(out, layer(x, x, x, key_padding_mask=float_mask)[0])
    nothing = layer(x, x, x, key_padding_mask=torch.ones_like(hidden))[0]
    torch.testing.assert_close(nothing, layer.out_proj(torch.zeros_like(nothing)))


@pytest.mark.parametrize("name", LAYERS)
def test_layouts_graphs_and_gradients(name):
    torch.manual_seed(0)
    layer, x = LAYERS[name](), torch.randn(N, L, E, **F64)
    expected = layer(x, x, x)[0]
    torch.testing.assert_close(layer(x[0], x[0], x[0])[0], expected[0])
    layer.batch_first = False
    t = x.transpose(0, 1)
    torch.testing.assert_close(layer(t, t, t)[0].transpose(0, 1), expected)
    layer.batch_first = True
    whole = torch.compile(lambda x: layer(x, x, x)[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(x), expected)
    x = x[:1, :6].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x, x, x)[0], (x,))
    assert layer(x[:0], x[:0], x[:0])[0].shape == (0, 6, E)
    assert layer(x[:, :0], x[:, :0], x[:, :0])[0].shape == (1, 0, E)


@pytest.mark.parametrize("name", LAYERS)
def test_initial_weights_are_those_of_torch(name):
    torch.manual_seed(0)
    made = LAYERS[name]()
    torch.manual_seed(0)
    expected = torch.nn.MultiheadAttention(E, H, bias=made.in_proj_bias is not None, **F64).state_dict()
    assert all(torch.equal(made.state_dict()[name], t) for name, t in expected.items())


def test_linformer_drops_weights_in_training_alone():
    torch.manual_seed(0)
    layer, x = linformer_layer(dropout=0.5), torch.randn(N, L, E, **F64)
    plain = linformer_layer()
    plain.load_state_dict(layer.state_dict())
    assert not torch.allclose(layer(x, x, x)[0], plain(x, x, x)[0])
    torch.testing.assert_close(layer.eval()(x, x, x)[0], plain(x, x, x)[0])


def test_an_encoder_layer_calls_it():
    encoder = torch.nn.TransformerEncoderLayer(E, H, dropout=0.0, batch_first=True, **F64).eval()
    encoder.self_attn = nystrom_layer()
    calls = []
    encoder.self_attn.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        encoder(torch.randn(N, L, E, **F64))
    assert calls == [1]


X = torch.zeros(1, L + 1, E, **F64)
BAD = [
    (lambda: linformer_layer(max_length=0), "max_length: expected at least 1, got 0"),
    (lambda: linformer_layer(num_projections=0), "num_projections: expected at least 1, got 0"),
    (lambda: linformer_layer()(X, X, X), f"key: expected at most max_length = {L} tokens, got {L + 1}"),
    (
        lambda: linformer_layer(add_bias_kv=True),
        "add_bias_kv: expected False with LinformerAttention, got True",
    ),
    (
        lambda: nystrom_layer(add_zero_attn=True),
        "add_zero_attn: expected False with NystromAttention, got True",
    ),
    (lambda: nystrom_layer(dropout=0.1), "dropout: expected 0.0 without weights, got 0.1"),
    (lambda: nystrom_layer(pinv_iterations=0), "pinv_iterations: expected at least 1, got 0"),
    (lambda: nystrom_layer(conv_kernel_size=4), "conv_kernel_size: expected an odd number, got 4"),
    (
        lambda: nystrom_layer(conv_kernel_size=3)(X, X[:, 1:], X[:, 1:]),
        f"key: expected the length of query, {L + 1}, got {L}",
    ),
    (
        lambda: nystrom_layer()(X, X, X, key_padding_mask=torch.full((1, L + 1), 0.5, **F64)),
        "key_padding_mask: expected bool, or 0 and -inf without a gradient, as there are no scores to add to;"
        " got other numbers, or a gradient",
    ),
    (
        lambda: nystrom_layer()(X, X, X, need_weights=True),
        "need_weights: expected False, NystromAttention computes no weights; got True",
    ),
    (
        lambda: nystrom_layer()(X, X, X, is_causal=True),
        "is_causal: expected False with a NystromAttention that isn't causal, got True",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()
