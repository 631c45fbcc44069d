"""Values and gradients of the delta rule against the recurrence in float64."""

from functools import partial

import pytest
import torch
from helpers import DTYPES, assert_matches
from linear_cases import EMPTY_SHAPES, SHAPES, make_decay, make_qkv, make_state
from torch.nn.functional import normalize

import attention_ext as ax

KINDS = (None, "token", "channel")
SINGLE = {name: s for name, s in SHAPES.items() if name != "parts"} | {
    "long": SHAPES["parts"]._replace(L=300)
}


def make_inputs(s, kind=None, dtype=torch.float32, state=True, strength=1.0, sequences=None, **options):
    """query, key, value, beta, then decay and state if there."""
    q, k, v = make_qkv(s, **options)
    beta = 1.5 * torch.rand(s.B, s.Hs, s.L)
    tensors = [t.to(dtype) for t in (q, normalize(k, dim=-1), v)] + [beta]
    if kind:
        tensors.append(make_decay(s, kind, strength=strength))
    return tensors + (make_state(s, False, sequences=sequences) if state else [])


def function(kind, rule=ax.delta_rule, **options):
    """(out, state) of what make_inputs gives."""

    def flat(q, k, v, beta, *others):
        others = list(others)
        decay = others.pop(0) if kind else None
        state = others.pop(0) if others else None
        return rule(q, k, v, beta, decay=decay, initial_state=state, return_state=True, **options)

    return partial(flat)  # not a function: its arguments have no names of their own


def assert_delta_rule_matches(tensors, kind, floor=None, **options):
    floor = 4e-6 if tensors[0].dtype == torch.float32 and floor is None else floor
    formula = function(kind, ax.reference.delta_rule, **options)
    assert_matches(function(kind, **options), *tensors, against=formula, floor=floor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SINGLE)
def test_values_and_gradients(shape, kind):
    assert_delta_rule_matches(make_inputs(SINGLE[shape], kind), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, kind):
    assert_delta_rule_matches(make_inputs(SHAPES["grouped"], kind, dtype, state=False), kind, scale=0.7)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_decay_of_minus_infinity_forgets(kind):
    q, k, v, beta, decay, state = make_inputs(SHAPES["grouped"], kind)
    decay[:, :, 20] = -torch.inf
    tensors = [t.requires_grad_() for t in (q, k, v, beta, decay, state)]
    out, last = function(kind)(*tensors)
    later = [t[:, :, 20:].detach().requires_grad_() for t in tensors[:5]]
    fresh, fresh_last = function(kind)(*later)
    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close((out[:, :, 20:], last), (fresh, fresh_last), **tolerance)
    found = torch.autograd.grad(out[:, :, 20:].sin().sum() + last.sin().sum(), tensors)
    expected = torch.autograd.grad(fresh.sin().sum() + fresh_last.sin().sum(), later)
    for a, b in zip(found, expected, strict=False):
        torch.testing.assert_close(a[:, :, 20:], b, **tolerance)
        assert not a[:, :, :20].any()
    assert not found[-1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_strides(kind):
    assert_delta_rule_matches(make_inputs(SHAPES["grouped"], kind, heads_last=True), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_key_lengths(kind):
    s = SHAPES["square"]._replace(B=4)
    assert_delta_rule_matches(make_inputs(s, kind), kind, key_lengths=torch.tensor([0, 1, 20, s.L]))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences(kind):
    s = SHAPES["more_values"]
    borders = torch.tensor([0, 0, 1, 40, 40, s.L])
    assert_delta_rule_matches(make_inputs(s, kind, sequences=5), kind, cu_seqlens=borders)


@pytest.mark.parametrize("L", [1, 2, 15, 16, 17, 47, 48, 49, 96, 97])
@pytest.mark.parametrize("kind", KINDS)
def test_chunk_borders(L, kind):
    s = SHAPES["square"]._replace(B=1, L=L, D=3, Dv=2)
    assert_delta_rule_matches(make_inputs(s, kind), kind)


@pytest.mark.parametrize("strength", [0.0, 30.0, 1e4])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_strong_and_zero_decay(kind, strength):
    assert_delta_rule_matches(make_inputs(SHAPES["square"], kind, strength=strength), kind)


@pytest.mark.parametrize("shape", EMPTY_SHAPES)
def test_empty(shape):
    s = EMPTY_SHAPES[shape]
    tensors = [t.requires_grad_() for t in make_inputs(s, "token")]
    out, state = function("token")(*tensors)
    assert out.shape == (s.B, s.H, s.L, s.Dv)
    (out.sum() + state.sum()).backward()
    assert all(t.grad.shape == t.shape for t in tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_beta_one_writes_the_value(kind):
    # With orthonormal keys the state gives back what was written last.
    k = torch.linalg.qr(torch.randn(1, 1, 8, 8))[0]
    v = torch.randn(1, 1, 8, 3)
    decay = make_decay(SHAPES["tiny"]._replace(L=8, D=8), kind, strength=0.0)
    out = ax.delta_rule(k, k, v, torch.ones(1, 1, 8), decay=decay, scale=1.0)
    torch.testing.assert_close(out, v)
