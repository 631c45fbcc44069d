"""ax.nn.PerformerAttention, as in performer-pytorch, and RandomFeatureAttention: gate, states, draws."""

import re
from functools import partial

import pytest
import torch
from performer_pytorch import SelfAttention, performer_pytorch

from attention_ext import nn, reference

pytestmark = pytest.mark.once
N, L, E, H, M = 2, 13, 12, 3, 16
F64 = {"dtype": torch.float64}


def performer(**options):
    return nn.PerformerAttention(E, H, batch_first=True, num_features=M, **F64, **options)


def random_features(**options):
    return nn.RandomFeatureAttention(E, H, batch_first=True, num_features=M, **F64, **options)


LAYERS = {
    "performer": partial(performer, causal=True),
    "hyperbolic": partial(performer, causal=True, kind="hyperbolic"),
    "random_features": partial(random_features, causal=True),
    "gated": partial(random_features, causal=True, gated=True),
}


def own_weights(peer):
    """Its weights and draws under the names of PerformerAttention."""
    theirs = peer.state_dict()
    projections = ("to_q", "to_k", "to_v")
    return {
        "in_proj_weight": torch.cat([theirs[f"{name}.weight"] for name in projections]),
        "in_proj_bias": torch.cat([theirs[f"{name}.bias"] for name in projections]),
        "out_proj.weight": theirs["to_out.weight"],
        "out_proj.bias": theirs["to_out.bias"],
        "feature_map.projection": theirs["fast_attention.projection_matrix"],
    }


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["softmax", "relu"])
def test_performer_is_that_of_performer_pytorch(kind, causal, monkeypatch):
    """But for what it adds to softmax features and sums, which we set to 0."""
    torch.manual_seed(0)
    kernel = performer_pytorch.softmax_kernel
    monkeypatch.setattr(performer_pytorch, "softmax_kernel", partial(kernel, eps=0.0))
    options = {"causal": causal, "generalized_attention": kind == "relu", "qkv_bias": True}
    peer = SelfAttention(E, heads=H, dim_head=E // H, nb_features=M, **options).double()
    if causal:
        peer.fast_attention.causal_linear_fn = partial(peer.fast_attention.causal_linear_fn, eps=0.0)
    layer = performer(kind=kind, causal=causal, eps=0.0)
    layer.load_state_dict(own_weights(peer))
    x = torch.randn(N, L, E, requires_grad=True, **F64)
    ours, theirs = layer(x, x, x)[0], peer(x)
    torch.testing.assert_close(ours, theirs)
    cotangent = torch.randn_like(ours)
    dx, dw, dout = torch.autograd.grad(ours, (x, layer.in_proj_weight, layer.out_proj.weight), cotangent)
    theirs_in = [getattr(peer, name).weight for name in ("to_q", "to_k", "to_v")]
    expected = torch.autograd.grad(theirs, (x, *theirs_in, peer.to_out.weight), cotangent)
    torch.testing.assert_close((dx, dw, dout), (expected[0], torch.cat(expected[1:4]), expected[4]))


@pytest.mark.parametrize("gated", [False, True])
def test_random_feature_attention_is_its_recurrence(gated):
    torch.manual_seed(0)
    layer = random_features(causal=True, gated=gated)
    with torch.no_grad():
        layer.sigma.mul_(torch.rand_like(layer.sigma))
    x = torch.randn(N, L, E, requires_grad=True, **F64)
    q, k, v = torch.nn.functional.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
    q, k, v = (t.unflatten(-1, (H, -1)).transpose(1, 2) for t in (q, k, v))
    q, k = (t / t.norm(dim=-1, keepdim=True) * layer.sigma / (E // H) ** 0.25 for t in (q, k))
    growth = (k.square().sum(-1, keepdim=True) / 2).exp()
    q, k = (t @ layer.feature_map.projection.mT for t in (q, k))
    q, k = (torch.cat((t.sin(), t.cos()), -1) * (M // 2) ** -0.5 for t in (q, k))
    k = k * growth
    decay = None
    if gated:
        gate = layer.gate(x).sigmoid().transpose(1, 2)
        k, decay = k * (1 - gate)[..., None], gate.log()
    heads = reference.linear_attention(q, k, v, feature_map="identity", causal=True, decay=decay)
    expected = layer.out_proj(heads.transpose(1, 2).flatten(2))
    out = layer(x, x, x)[0]
    torch.testing.assert_close(out, expected)
    leaves, cotangent = [x, *layer.parameters()], torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent)
    )


@pytest.mark.parametrize("name", LAYERS)
def test_steps_and_halves_equal_the_whole(name):
    torch.manual_seed(0)
    layer = LAYERS[name]()
    x = torch.randn(N, L, E, requires_grad=True, **F64)
    whole, end = layer(x, x, x, return_state=True)
    first, state = layer(*[x[:, :5]] * 3, return_state=True)
    second, last = layer(*[x[:, 5:]] * 3, initial_state=state, return_state=True)
    halves = torch.cat((first, second), 1)
    torch.testing.assert_close((halves, last), (whole, end))
    leaves, cotangent = [x, *layer.parameters()], torch.randn_like(whole)
    torch.testing.assert_close(
        torch.autograd.grad(halves, leaves, cotangent), torch.autograd.grad(whole, leaves, cotangent)
    )
    state = layer.new_state(N)
    with torch.no_grad():
        steps = torch.stack([layer.step(x[:, t], state) for t in range(L)], 1)
    torch.testing.assert_close((steps, state), (whole, end))


@pytest.mark.parametrize("name", LAYERS)
def test_padded_tokens_are_as_if_not_there(name):
    torch.manual_seed(0)
    layer, x = LAYERS[name](), torch.randn(1, L, E, **F64)
    hidden = torch.rand(1, L) < 0.4
    out = layer(x, x, x, key_padding_mask=hidden)[0]
    seen = x[:, ~hidden[0]]
    torch.testing.assert_close(out[:, ~hidden[0]], layer(seen, seen, seen)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_draws_are_saved_and_renewed(name):
    torch.manual_seed(0)
    layer, x = LAYERS[name](), torch.randn(N, L, E, **F64)
    copy = LAYERS[name]()
    before = layer(x, x, x)[0]
    assert not torch.equal(copy(x, x, x)[0], before)
    copy.load_state_dict(layer.state_dict())
    assert torch.equal(copy(x, x, x)[0], before)
    layer.redraw(torch.Generator(torch.get_default_device()).manual_seed(1))
    copy.redraw(torch.Generator(torch.get_default_device()).manual_seed(1))
    assert torch.equal(copy(x, x, x)[0], layer(x, x, x)[0])
    assert not torch.equal(layer(x, x, x)[0], before)


@pytest.mark.parametrize("name", LAYERS)
def test_initial_weights_are_those_of_torch(name):
    torch.manual_seed(0)
    made = LAYERS[name]().state_dict()
    torch.manual_seed(0)
    expected = torch.nn.MultiheadAttention(E, H, **F64).state_dict()
    assert all(torch.equal(made[name], t) for name, t in expected.items())


@pytest.mark.parametrize("name", LAYERS)
def test_training_in_bfloat16_and_a_whole_graph(name):
    torch.manual_seed(0)
    layer, x = LAYERS[name]().float(), torch.randn(N, L, E)
    exact = layer(x, x, x)[0]
    whole = torch.compile(lambda x: layer(x, x, x)[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(x), exact)
    torch.testing.assert_close(torch.export.export(layer, (x, x, x)).module()(x, x, x)[0], exact)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        out = layer(x, x, x)[0]
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.1)
    out.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in layer.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: random_features(gated=True), "gated: expected False where not causal, got True"),
        (lambda: performer(kind="gelu"), "kind: expected one of softmax, hyperbolic, relu, got 'gelu'"),
        (
            lambda: nn.RandomFeatureAttention(E, H, num_features=15),
            "num_features: expected a multiple of 2, 2 for each draw, got 15",
        ),
        (lambda: performer(dropout=0.1), "dropout: expected 0.0 without weights, got 0.1"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()
