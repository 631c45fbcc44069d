"""The delta rule's CUDA kernels against the recurrence in float64: outputs, states and every gradient.

The tables are those of the tests on the CPU. Sizes stand around the kernels' tiles: 64 tokens and columns, 32
of float64.
"""

import emulation
import pytest
import torch
from helpers import assert_matches
from linear_cases import EMPTY_SHAPES, SHAPES, Shape
from test_delta_rule import (
    KINDS,
    function,
    make_inputs,
    test_a_decay_of_minus_infinity_forgets,  # noqa: F401  runs here, too
)

import attention_ext as ax
from attention_ext._ops import library

CHECKED = emulation.MODE == "checked"
# Schedule 0 lets threads take turns, others are random orders. The checks take one, each test its own.
FLOATS = ((torch.float32, 3),) if CHECKED else ((torch.float32, 0), (torch.float64, 7))
HALVES = ((torch.float16, 3),) if CHECKED else ((torch.float16, 0), (torch.bfloat16, 7))
BOTH = (FLOATS[0], HALVES[-1])
LONG = {"long": Shape(1, 2, 1, 1, 140, 8, 8)}
SINGLE = {name: s for name, s in SHAPES.items() if name != "parts"} | LONG
# Of 16-bit dtypes numbers are multiplied as sums of two of bfloat16, with 16 bits each. Strong decays cost
# digits of float64: their sums are kept in no more than that.
FLOORS = {torch.float32: 4e-6, torch.float64: 1e-12, torch.float16: 1e-4, torch.bfloat16: 1e-4}


@pytest.fixture
def dtype(request, kernels):
    kernels.set_schedule(request.param[1])
    return request.param[0]


def variants(cases):
    """Parametrizes a test by dtype, and a schedule that comes with it."""
    names = [f"{str(dtype).removeprefix('torch.')}-schedule{seed}" for dtype, seed in cases]
    return pytest.mark.parametrize("dtype", cases, ids=names, indirect=True)


floats, halves, both = variants(FLOATS), variants(HALVES), variants(BOTH)
kinds = pytest.mark.parametrize("kind", ("token",) if CHECKED else KINDS)
plain_only = pytest.mark.skipif(CHECKED, reason="the checks have seen these accesses in other tests")


def inputs(s, kind, dtype, **options):
    tensors = make_inputs(s, kind, dtype, **options)
    return [t.double() for t in tensors] if dtype == torch.float64 else tensors


def assert_near(tensors, kind, grads=True, **options):
    against = function(kind, ax.reference.delta_rule, **options)
    floor = FLOORS[tensors[0].dtype]
    assert_matches(function(kind, **options), *tensors, against=against, floor=floor, grads=grads)


@floats
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["grouped", "long"] if CHECKED else SINGLE)
def test_shapes(shape, kind, dtype):
    assert_near(inputs(SINGLE[shape], kind, dtype), kind, scale=0.7)


@halves
@pytest.mark.parametrize("shape", ["grouped", "long"] if CHECKED else SINGLE)
def test_shapes_on_tensor_cores(shape, dtype):
    assert_near(inputs(SINGLE[shape], "token", dtype), "token", scale=0.7)


@plain_only
@halves
@pytest.mark.parametrize("kind", [None, "channel"])
def test_decays_on_tensor_cores(kind, dtype):
    assert_near(inputs(SHAPES["grouped"], kind, dtype), kind)


@plain_only
@halves
def test_states_beyond_float16(dtype):
    q, k, v, beta, state = inputs(Shape(1, 1, 1, 1, 3, 8, 8), None, dtype)
    assert_near([q, k, v, beta, 1e6 * state], None, grads=False, scale=1e-6)


@floats
@kinds
@pytest.mark.parametrize("L", [64] if CHECKED else [31, 32, 33, 63, 64, 65, 129])
def test_chunk_borders(L, kind, dtype):
    assert_near(inputs(Shape(1, 1, 1, 1, L, 3, 2), kind, dtype), kind)


@halves
@pytest.mark.parametrize("dims", [(65, 3)] if CHECKED else [(1, 65), (64, 64), (65, 3), (256, 70)], ids=str)
def test_head_dims(dims, dtype):
    assert_near(inputs(Shape(1, 1, 1, 1, 20, *dims), "token", dtype), "token")


@both
@kinds
def test_key_lengths(kind, dtype):
    s = Shape(4, 1, 1, 1, 66, 6, 5)
    lengths = torch.tensor([0, 30, 64, s.L])
    tensors = inputs(s, kind, dtype)
    assert_near(tensors, kind, key_lengths=lengths)
    results = []
    for bad in () if CHECKED else (0.0, torch.nan):
        for t in tensors[: 5 if kind else 4]:
            for row, length in enumerate(lengths):
                t[row, :, length:] = bad
        leaves = [t.clone().requires_grad_() for t in tensors]
        outputs = function(kind, key_lengths=lengths)(*leaves)
        grads = torch.autograd.grad(sum(t.float().sin().sum() for t in outputs), leaves)
        results.append([*outputs, *grads])
    if results:
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@both
@kinds
def test_packed_sequences(kind, dtype):
    s = Shape(1, 1, 1, 1, 150, 7, 9)
    borders = torch.tensor([0, 0, 1, 67, 67, s.L])
    assert_near(inputs(s, kind, dtype, sequences=5), kind, cu_seqlens=borders)


@plain_only
@both
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("strength", [0.0, 30.0, 1e4])
def test_strong_and_zero_decay(kind, strength, dtype):
    assert_near(inputs(Shape(1, 1, 1, 1, 70, 4, 4), kind, dtype, strength=strength), kind)


@both
@kinds
def test_without_a_state_and_heads_last(kind, dtype):
    assert_near(inputs(SHAPES["grouped"], kind, dtype, state=False, heads_last=True), kind)


@plain_only
@both
@pytest.mark.parametrize("wanted", range(6))
def test_one_gradient_alone(wanted, dtype):
    tensors = inputs(Shape(1, 1, 1, 1, 66, 5, 4), "token", dtype)
    results = []
    for names in (range(6), (wanted,)):
        leaves = [t.clone().requires_grad_(n in names) for n, t in enumerate(tensors)]
        outputs = function("token")(*leaves)
        total = sum(t.double().sin().sum() for t in outputs)
        results.append(torch.autograd.grad(total, [leaves[n] for n in names]))
    assert torch.equal(results[0][wanted], results[1][0])


@floats
@pytest.mark.parametrize("shape", EMPTY_SHAPES)
def test_empty(shape, dtype):
    tensors = [t.requires_grad_() for t in inputs(EMPTY_SHAPES[shape], "token", dtype)]
    outputs = function("token")(*tensors)
    grads = torch.autograd.grad(sum(t.sum() for t in outputs), tensors)
    formula = function("token", ax.reference.delta_rule)(*tensors)
    expected = torch.autograd.grad(sum(t.sum() for t in formula), tensors, allow_unused=True)
    for found, exact in zip((*outputs, *grads), (*formula, *expected), strict=True):
        torch.testing.assert_close(found, torch.zeros_like(found) if exact is None else exact)


@both
@kinds
@pytest.mark.parametrize("bad", [torch.nan] if CHECKED else [torch.nan, torch.inf], ids=str)
def test_the_future_never_reaches_the_past(bad, kind, dtype):
    tensors = inputs(Shape(1, 1, 1, 1, 70, 8, 8), kind, dtype)
    dirty = [t.clone() for t in tensors]
    for t in dirty[1:4]:
        t[:, :, 40:] = bad
    results = []
    for q, *others in (dirty, tensors):
        q = q.clone().requires_grad_()
        out = function(kind)(q, *others)[0][:, :, :40]
        results.append((out, torch.autograd.grad(out.float().sin().sum(), q)[0][:, :, :40]))
    # A chunk with such numbers is summed pair by pair.
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if dtype in (torch.float16, torch.bfloat16) else {}
    torch.testing.assert_close(*results, **tolerance)


@both
@kinds
def test_what_is_not_finite_stays_where_it_is_seen(kind, dtype):
    # Of a query and its gradient the tokens behind it know nothing, and of values all keys but its own.
    tensors = inputs(Shape(1, 1, 1, 1, 70, 8, 8), kind, dtype)
    dout = torch.randn(1, 1, 70, 8).to(dtype)
    results = []
    for bad in (0.0, torch.nan):
        tensors[0][:, :, 30] = bad
        leaves = [t.clone().requires_grad_() for t in tensors]
        out, _ = function(kind)(*leaves)
        results.append([out, *torch.autograd.grad(out, leaves, dout)])
    (out, *_, good), (bad_out, *_, found) = (r[:4] for r in results)
    later = torch.arange(70) > 30
    assert bad_out[:, :, 30].isnan().all()
    others = torch.arange(70) != 30
    torch.testing.assert_close(bad_out[:, :, others], out[:, :, others])
    torch.testing.assert_close(found[:, :, later], good[:, :, later], rtol=1e-2, atol=1e-2)
    assert found[:, :, ~later].isnan().any()


@variants((*FLOATS, HALVES[-1]))
@kinds
def test_step_equals_parallel(kind, dtype):
    tensors = inputs(Shape(2, 6, 1, 2, 5, 20, 70), kind, dtype)
    *tokens, state = tensors
    whole, last = function(kind, scale=0.4)(*tokens, state.clone())
    outs = []
    for t in range(5):
        q, k, v, beta, *decay = (x[:, :, t] for x in tokens)
        outs.append(ax.delta_rule_step(q, k, v, beta, state, decay=decay[0] if decay else None, scale=0.4))
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if state.dtype == torch.float32 else {}
    torch.testing.assert_close(state, last, **tolerance)
    half = dtype in (torch.float16, torch.bfloat16)
    torch.testing.assert_close(torch.stack(outs, 2), whole, **({"rtol": 1e-2, "atol": 1e-3} if half else {}))


def test_lengths_of_nobody_are_clamped():
    # The values stay on the device: nothing checks them, and no access may leave its tensor.
    q, k, v, beta, decay, _ = inputs(Shape(1, 1, 1, 1, 70, 4, 4), "token", torch.float32)
    scale = 0.5
    full = library.delta_forward(q, k, v, beta, decay, scale, None, None, None)
    call = emulation.kernels().run
    beyond = call("_delta_rule_forward", q, k, v, beta, decay, scale, torch.tensor([1000]), None, None)
    for found, expected in zip(beyond, full, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for borders in ([0, 900, 30, 70], [0, 70, 0, 70], [-5, 64, 3, 1 << 40]):
        call("_delta_rule_forward", q, k, v, beta, decay, scale, None, torch.tensor(borders), None)
    # Sequences that overlap are written by several blocks.
    findings = [text for text in emulation.kernels().findings() if not text.startswith("race")]
    assert not findings, findings
    emulation.kernels().calls += 1


@plain_only
@pytest.mark.parametrize("kind", ["token", "channel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_do_not_depend_on_the_schedule(dtype, kind, kernels):
    tensors = [t.requires_grad_() for t in make_inputs(Shape(1, 4, 2, 1, 70, 9, 6), kind, dtype)]
    results = []
    for seed in (0, 1, 2, 3):
        kernels.set_schedule(seed)
        outputs = function(kind)(*tensors)
        grads = torch.autograd.grad(sum(t.float().sin().sum() for t in outputs), tensors)
        results.append([*outputs, *grads])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@plain_only
@pytest.mark.skipif(emulation.MODE == "device", reason="a device has one architecture")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_device_without_tensor_cores_computes_the_same_otherwise(dtype, kernels):
    tensors = make_inputs(SHAPES["grouped"], "token", dtype)
    on_tensor_cores = function("token")(*tensors)[1]
    kernels.set_architecture(75)
    try:
        assert_near(tensors, "token")
        plain = function("token")(*tensors)[1]
    finally:
        kernels.set_architecture(80)
    assert not torch.equal(plain, on_tensor_cores)
