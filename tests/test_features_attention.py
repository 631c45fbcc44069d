"""ax.features in ax.linear_attention and its step, against the plain recurrence on their features."""

import re
import warnings

import pytest
import torch
from helpers import assert_matches

import attention_ext as ax
from attention_ext import reference
from attention_ext.features import FeatureMap, Learned, Performer, RandomFourier

pytestmark = pytest.mark.once
B, H, L, D, DV, M = 2, 4, 21, 8, 5, 24
F64 = {"dtype": torch.float64}
MAPS = {
    "softmax": lambda: Performer(D, M, **F64),
    "hyperbolic": lambda: Performer(D, M, "hyperbolic", **F64),
    "relu": lambda: Performer(D, M, "relu", **F64),
    "fourier": lambda: RandomFourier(D, M, **F64),
    "learned": lambda: Learned(D, M, **F64),
}


def rows(*heads, dtype=torch.float64, length=L):
    """query, key, value; short enough that sums of Fourier features stay clear of 0."""
    sizes = zip(heads, (D, D, DV), strict=True)
    return [0.3 * torch.randn(B, h, length, d, **F64).to(dtype) for h, d in sizes]


def on_features(query, key, value, *, feature_map, normalize=True, **options):
    """The recurrence on features that are computed apart."""
    q = feature_map.queries(query) if normalize else feature_map(query)
    eps = 1e-6 * feature_map.eps_factor
    result = reference.linear_attention(
        q,
        feature_map(key),
        value.to(q.dtype),
        feature_map="identity",
        normalize=normalize,
        eps=eps,
        **options,
    )
    if isinstance(result, tuple):
        return result[0].to(query.dtype), *(result[1] if normalize else result[1:])
    return result.to(query.dtype)


def fused(query, key, value, **options):
    result = ax.linear_attention(query, key, value, **options)
    if isinstance(result, tuple):
        state = result[1]
        return result[0], *(state if isinstance(state, tuple) else (state,))
    return result


OPTIONS = {
    "plain": {},
    "causal": {"causal": True, "return_state": True},
    "unnormalised": {"causal": True, "normalize": False, "scale": 0.5, "return_state": True},
    "decay": {"causal": True, "decay": -torch.rand(H, **F64)},
    "channels": {"causal": True, "decay": -torch.rand(B, H, L, M, **F64)},
    "lengths": {"key_lengths": torch.tensor([13, 0])},
    "causal_lengths": {"causal": True, "key_lengths": torch.tensor([13, L])},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("name", MAPS)
def test_values_and_gradients(name, options):
    torch.manual_seed(0)
    assert_matches(fused, *rows(H, H, H), against=on_features, feature_map=MAPS[name](), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_and_grouped_heads(dtype):
    torch.manual_seed(0)
    for heads in ((4, 2, 2), (2, 2, 4)):
        inputs = rows(*heads, dtype=dtype)
        assert_matches(fused, *inputs, against=on_features, feature_map=MAPS["softmax"](), causal=True)


def test_packed_sequences_are_apart():
    torch.manual_seed(0)
    phi, inputs = MAPS["softmax"](), [t[:1] for t in rows(H, H, H)]
    out = ax.linear_attention(*inputs, feature_map=phi, causal=True, cu_seqlens=[0, 5, 5, L])
    for a, b in ((0, 5), (5, L)):
        alone = ax.linear_attention(*(t[:, :, a:b] for t in inputs), feature_map=phi, causal=True)
        torch.testing.assert_close(out[:, :, a:b], alone)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", MAPS)
def test_halves_and_steps_equal_the_whole(name, normalize):
    torch.manual_seed(0)
    phi = MAPS[name]()
    options = {"feature_map": phi, "normalize": normalize}
    inputs = [t.requires_grad_() for t in rows(H, H, H)]
    whole, end = ax.linear_attention(*inputs, causal=True, return_state=True, **options)
    first, state = ax.linear_attention(
        *(t[:, :, :9] for t in inputs), causal=True, return_state=True, **options
    )
    second, last = ax.linear_attention(
        *(t[:, :, 9:] for t in inputs), causal=True, initial_state=state, return_state=True, **options
    )
    halves = torch.cat((first, second), 2)
    tight = {"rtol": 1e-11, "atol": 1e-13}
    torch.testing.assert_close(halves, whole, **tight)
    torch.testing.assert_close(last, end, **tight)
    cotangent, leaves = torch.randn_like(whole), [*inputs, *phi.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(halves, leaves, cotangent), torch.autograd.grad(whole, leaves, cotangent)
    )
    with torch.no_grad():
        state = torch.utils._pytree.tree_map(torch.zeros_like, end)
        steps = [
            ax.linear_attention_step(*(t[:, :, n].detach() for t in inputs), state, **options)
            for n in range(L)
        ]
    torch.testing.assert_close(torch.stack(steps, 2), whole, **tight)
    torch.testing.assert_close(state, end, **tight)


@pytest.mark.parametrize("name", MAPS)
def test_outputs_and_gradients_of_the_past_do_not_see_the_future(name):
    torch.manual_seed(0)
    phi, cut = MAPS[name](), 12
    inputs = rows(H, H, H)
    others = [torch.cat((t[:, :, :cut], 50 * t[:, :, cut:]), 2) for t in inputs]
    found = []
    for tensors in (inputs, others):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = ax.linear_attention(*leaves, feature_map=phi, causal=True)[:, :, :cut]
        grads = torch.autograd.grad(out.square().sum(), leaves)
        found.append([out, *(g[:, :, :cut] for g in grads)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("size", [0.01, 1.0, 3.0, 10.0, 1000.0])
def test_long_queries_and_keys_keep_their_weights(size):
    """In float32 as in float64 without eps; the first token sees itself alone."""
    torch.manual_seed(0)
    dim = 64
    phi, q, k = Performer(dim, 256), *(size * torch.randn(2, 1, 2, 33, dim))
    v = torch.randn(1, 2, 33, 3)
    out = ax.linear_attention(q, k, v, feature_map=phi, causal=True)
    exact = ax.linear_attention(*(t.double() for t in (q, k, v)), feature_map=phi, causal=True, eps=0.0)
    torch.testing.assert_close(out[:, :, 0], v[:, :, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out, exact.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [0.0, 10.0, 1e4])
def test_gradients_stay_finite(size):
    torch.manual_seed(0)
    inputs = [(size * torch.randn(1, 2, 33, 64)).requires_grad_() for _ in range(3)]
    out = ax.linear_attention(*inputs, feature_map=Performer(64, 256), causal=True)
    for t in (out, *torch.autograd.grad(out.sum(), inputs)):
        assert bool(t.isfinite().all())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["softmax", "learned"])
def test_padding_that_is_nan_reaches_nothing(name, causal):
    torch.manual_seed(0)
    phi, inputs = MAPS[name](), rows(H, H, H)
    lengths = torch.tensor([13, 7])
    broken = [t.clone() for t in inputs]
    for t in broken[0 if causal else 1 :]:
        t[0, :, 13:] = torch.nan
        t[1, :, 7:] = torch.inf
    found = []
    for tensors in (inputs, broken):
        leaves = [*(t.requires_grad_() for t in tensors), *phi.parameters()]
        out = ax.linear_attention(*leaves[:3], feature_map=phi, causal=causal, key_lengths=lengths)
        found.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_the_reference_takes_maps(options):
    torch.manual_seed(0)
    inputs, phi = rows(H, 2, 2), MAPS["softmax"]()
    if options.get("decay") is not None:
        options = {**options, "decay": options["decay"].narrow(0 if options["decay"].dim() == 1 else 1, 0, 2)}
    out = reference.linear_attention(*inputs, feature_map=phi, **options)
    expected = on_features(*inputs, feature_map=phi, **options)
    if not options.get("return_state"):
        assert torch.equal(out, expected)
        return
    state = out[1] if isinstance(out[1], tuple) else out[1:]
    assert all(torch.equal(a, b) for a, b in zip((out[0], *state), expected, strict=True))


@pytest.mark.parametrize("name", MAPS)
def test_gradcheck(name):
    torch.manual_seed(0)
    phi = MAPS[name]()
    inputs = [t[:1, :2, :4].detach().requires_grad_() for t in rows(H, H, H)]

    def attend(*tensors):
        return ax.linear_attention(*tensors, feature_map=phi, causal=True)

    assert torch.autograd.gradcheck(attend, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ax.UnfusedWarning)
        assert torch.autograd.gradgradcheck(attend, inputs)


def test_graphs_and_batching():
    torch.manual_seed(0)
    phi, inputs = Learned(D, M), rows(H, H, H, dtype=torch.float32)

    def attend(q, k, v):
        return ax.linear_attention(q, k, v, feature_map=phi, causal=True)

    expected = attend(*inputs)
    torch.testing.assert_close(torch.compile(attend, fullgraph=True, backend="aot_eager")(*inputs), expected)
    torch.testing.assert_close(torch.func.vmap(attend)(*(t[:, None] for t in inputs))[:, 0], expected)


def test_a_map_of_ones_own():
    class Square(FeatureMap):
        def forward(self, x):
            return x.square()

    q, k, v = rows(H, H, H)
    out = ax.linear_attention(q, k, v, feature_map=Square(D, D), causal=True)
    torch.testing.assert_close(
        out, ax.linear_attention(q.square(), k.square(), v, feature_map="identity", causal=True)
    )


def raises(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_bad_input():
    q, k, v = rows(H, H, H)
    token, phi = [t[:, :, 0] for t in (q, k, v)], Performer(D + 1)
    state = torch.zeros(B, H, 4 * D, DV, **F64), torch.zeros(B, H, 4 * D, **F64)
    message = "query: expected the head dimension of feature_map, 9, got shape "
    with raises(message + "(2, 4, 21, 8)"):
        ax.linear_attention(q, k, v, feature_map=phi)
    with raises(message + "(2, 4, 1, 8)"):
        ax.linear_attention_step(*token, state, feature_map=phi)
    with raises("initial_state: expected S of shape (2, 4, 24, 5), got (2, 4, 32, 5)"):
        ax.linear_attention(q, k, v, feature_map=Performer(D, M), causal=True, initial_state=state)
    learned = Learned(D, 4 * D)
    with pytest.raises(RuntimeError, match="derivative"):
        ax.linear_attention_step(*token, state, feature_map=learned)
