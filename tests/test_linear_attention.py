"""Values and gradients of linear attention against the recurrence in float64."""

import pytest
import torch
from helpers import DTYPES
from linear_cases import (
    DECAYS,
    EMPTY_SHAPES,
    FEATURE_MAPS,
    SHAPES,
    assert_linear_attention_matches,
    make_decay,
    make_qkv,
    make_state,
)

import attention_ext as ax


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", [None, *DECAYS])
@pytest.mark.parametrize("shape", SHAPES)
def test_causal(shape, kind, normalize):
    s = SHAPES[shape]
    q, k, v = make_qkv(s)
    state = make_state(s, normalize)
    assert_linear_attention_matches(
        q, k, v, causal=True, decay=make_decay(s, kind), state=state, normalize=normalize
    )


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("Lk", [0, 1, 70, 1100])
@pytest.mark.parametrize("shape", ["tiny", "grouped", "more_values"])
def test_not_causal(shape, Lk, normalize):
    s = SHAPES[shape]
    for state in (None, make_state(s, normalize)):
        assert_linear_attention_matches(*make_qkv(s, Lk=Lk), state=state, normalize=normalize)


@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
@pytest.mark.parametrize("causal", [True, False])
def test_feature_maps(feature_map, causal):
    q, k, v = make_qkv(SHAPES["square"])
    if feature_map == "identity":
        q, k = q.abs(), k.abs()
    if feature_map == "relu":  # a first sum that may be empty is 0 / eps
        k = k + 1
        q = q + 1
    assert_linear_attention_matches(q, k, v, causal=causal, feature_map=feature_map)
    assert_linear_attention_matches(
        q, k, v, causal=causal, feature_map=feature_map, normalize=False, scale=0.3
    )


@pytest.mark.parametrize("kind", [None, *DECAYS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, kind):
    s = SHAPES["grouped"]
    q, k, v = make_qkv(s, dtype)
    decay = make_decay(s, kind)
    assert_linear_attention_matches(q, k, v, causal=True, decay=decay)
    assert_linear_attention_matches(
        q, k, v, causal=True, decay=decay, state=make_state(s, False), normalize=False
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides(dtype):
    s = SHAPES["grouped"]
    q, k, v = make_qkv(s, dtype, heads_last=True)
    assert_linear_attention_matches(q, k, v, causal=True, decay=make_decay(s, "token"))
    wide = [torch.randn(*t.shape[:3], 2 * t.shape[3]).to(dtype)[..., ::2] for t in (q, k, v)]
    assert_linear_attention_matches(*wide, causal=True, decay=make_decay(s, "channel").mT.contiguous().mT)
    shared = [t[:, :1].expand(-1, 4, -1, -1) for t in (q, k, v)]
    assert_linear_attention_matches(*shared)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", [None, *DECAYS])
def test_key_lengths(kind, causal):
    if kind and not causal:
        return
    s = SHAPES["square"]._replace(B=4)
    lengths = torch.tensor([0, 1, 20, s.L])
    q, k, v = make_qkv(s)
    for state in (None, make_state(s, True)):
        assert_linear_attention_matches(
            q, k, v, causal=causal, decay=make_decay(s, kind), key_lengths=lengths, state=state
        )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", [None, *DECAYS])
def test_packed_sequences(kind, causal):
    if kind and not causal:
        return
    s = SHAPES["more_values"]
    borders = torch.tensor([0, 0, 1, 40, 40, s.L])
    for state in (None, make_state(s, True, sequences=5)):
        assert_linear_attention_matches(
            *make_qkv(s), causal=causal, decay=make_decay(s, kind), cu_seqlens=borders, state=state
        )


@pytest.mark.parametrize("L", [1, 2, 3, 15, 16, 17, 47, 48, 49, 96, 97])
@pytest.mark.parametrize("kind", [None, *DECAYS])
def test_chunk_borders(L, kind):
    s = SHAPES["square"]._replace(B=1, L=L, D=3, Dv=2)
    assert_linear_attention_matches(
        *make_qkv(s), causal=True, decay=make_decay(s, kind), state=make_state(s, True)
    )


@pytest.mark.parametrize("strength", [0.0, 30.0, 1e4])
@pytest.mark.parametrize("kind", DECAYS)
def test_strong_and_zero_decay(kind, strength):
    s = SHAPES["square"]
    assert_linear_attention_matches(*make_qkv(s), causal=True, decay=make_decay(s, kind, strength=strength))


@pytest.mark.parametrize("kind", ["token", "channel"])
@pytest.mark.parametrize("strength", [0.5, 3.0])
def test_equal_tokens_add_up_no_rounding_in_the_gradient_of_decays(kind, strength):
    # All tokens round the same way: a sum over the whole sequence would drift away by length times that.
    s = SHAPES["tiny"]._replace(L=8192, D=8, Dv=8)
    token = s._replace(L=1)
    equal = [t.expand(1, 1, s.L, 8) for t in (*make_qkv(token), torch.randn(1, 1, 1, 8))]
    decay = make_decay(token, kind, strength=strength)
    decay = decay.expand(1, 1, s.L, 8) if kind == "channel" else decay.expand(1, 1, s.L)

    def gradient(dtype):
        q, k, v, grad_out, g = (t.to(dtype) for t in (*equal, decay))
        g = g.clone().requires_grad_()
        out = ax.linear_attention(q, k, v, causal=True, decay=g, normalize=False)
        return torch.autograd.grad(out, g, grad_out)[0].double()

    exact = gradient(torch.float64)
    assert float((gradient(torch.float32) - exact).abs().max()) <= 1.2e-5 * float(exact.abs().max())


@pytest.mark.parametrize("kind", DECAYS)
def test_a_decay_of_minus_infinity_forgets(kind):
    s = SHAPES["square"]
    q, k, v = make_qkv(s)
    decay = make_decay(s, kind)
    if kind == "head":
        decay[0] = -torch.inf
        out = ax.linear_attention(q, k, v, causal=True, decay=decay)
        torch.testing.assert_close(out[:, 0], v[:, 0], rtol=1e-4, atol=1e-5)
    else:
        decay[:, :, 20] = -torch.inf
        out = ax.linear_attention(q, k, v, causal=True, decay=decay)
        fresh = ax.linear_attention(*(t[:, :, 20:] for t in (q, k, v)), causal=True, decay=decay[:, :, 20:])
        torch.testing.assert_close(out[:, :, 20:], fresh)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", EMPTY_SHAPES)
def test_empty(shape, causal):
    s = EMPTY_SHAPES[shape]
    leaves = [t.requires_grad_() for t in (*make_qkv(s), make_decay(s, "head"))]
    decay = leaves[3] if causal else None
    out, (S, z) = ax.linear_attention(*leaves[:3], causal=causal, decay=decay, return_state=True)
    assert out.shape == (s.B, s.H, s.L, s.Dv)
    assert S.shape == (s.B, s.Hs, s.D, s.Dv)
    assert z.shape == (s.B, s.Hs, s.D)
    (out.sum() + S.sum() + z.sum()).backward()
    assert all(t.grad.shape == t.shape for t in leaves[: 3 + causal])


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("kind", DECAYS)
def test_fewer_dimensions(rank, kind):
    s = SHAPES["square"]._replace(B=1, Hq=1, Hk=1, Hv=1)
    first = (0,) * (4 - rank)
    q, k, v = make_qkv(s)
    decay, state = make_decay(s, kind), make_state(s, True)
    whole, (S, z) = ax.linear_attention(
        q, k, v, causal=True, decay=decay, initial_state=tuple(state), return_state=True
    )
    short = decay[first] if kind != "head" else decay[0] if rank == 2 else decay
    small = [t[first] for t in (q, k, v, *state)]
    for function in (ax.linear_attention, ax.reference.linear_attention):
        out, last = function(
            *small[:3], causal=True, decay=short, initial_state=tuple(small[3:]), return_state=True
        )
        torch.testing.assert_close((out, *last), (whole[first], S[first], z[first]), rtol=1e-4, atol=1e-5)
