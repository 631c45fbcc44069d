"""The CUDA kernels of linear attention against the recurrence in float64: out, last state, every gradient.

The tables are those of the tests on the CPU. Sizes stand around the kernels' chunks and blocks: 64 tokens and
columns, 32 for float64, with groups of 16 tokens where decays are of each channel.
"""

import emulation
import pytest
import torch
from linear_cases import (
    DECAYS,
    EMPTY_SHAPES,
    FEATURE_MAPS,
    SHAPES,
    Shape,
    assert_linear_attention_matches,
    make_decay,
    make_qkv,
    make_state,
)
from test_attention_kernels import CHECKED, FLOATS, variants
from test_linear_attention import test_a_decay_of_minus_infinity_forgets  # noqa: F401  runs here, too

import attention_ext as ax

KINDS = (None, *DECAYS)
# Schedules as in test_attention_kernels.py.
HALVES = ((torch.bfloat16, 3),) if CHECKED else ((torch.bfloat16, 7), (torch.float16, 0))
ALL = (*FLOATS, *HALVES)
# Checks, and the interpreter of PTX, take their time.
FEW = emulation.MODE in ("checked", "ptx")
# Of the largest value, or of 1 where it is smaller: products round their operands to 16 bits, and what
# cancels in float keeps that noise.
NOISE = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


@pytest.fixture
def schedule(request, kernels):
    kernels.set_schedule(request.param)


def assert_near(q, k, v, *, decay=None, state=None, **options):
    """Out, the last state and all gradients."""
    if q.dtype in NOISE:
        assert_near_in_16_bits(q, k, v, decay, state, **options)
    else:
        floor = 1e-12 if q.dtype == torch.float64 else 1.2e-5
        assert_linear_attention_matches(q, k, v, decay=decay, state=state, floor=floor, **options)


def assert_near_in_16_bits(q, k, v, decay, state, *, normalize=True, **options):
    inputs = {"q": q, "k": k, "v": v, "S": None, "z": None, "decay": decay}
    inputs |= dict(zip("Sz", state or [], strict=False))
    inputs = {name: t for name, t in inputs.items() if t is not None}
    cotangents = []

    def results(function, dtype):
        leaves = {n: t.detach().to(dtype or t.dtype).requires_grad_() for n, t in inputs.items()}
        state = [leaves[n] for n in "Sz" if n in leaves]
        out, last = function(
            *(leaves[n] for n in "qkv"),
            decay=leaves.get("decay"),
            initial_state=(tuple(state) if normalize else state[0]) if state else None,
            normalize=normalize,
            return_state=True,
            **options,
        )
        outputs = [out, *(last if normalize else [last])]
        cotangents.extend(torch.randn_like(t) for t in outputs[len(cotangents) :])
        given = [c.to(t.dtype) for c, t in zip(cotangents, outputs, strict=True)]
        gradients = torch.autograd.grad(outputs, list(leaves.values()), given)
        return dict(enumerate(outputs)) | dict(zip(leaves, gradients, strict=True))

    found, exact = results(ax.linear_attention, None), results(ax.reference.linear_attention, torch.float64)
    for name, value in exact.items():
        if value.numel() == 0:
            continue
        size = max(float(value.detach().abs().max()), 1.0)
        error = float((found[name].double() - value).detach().abs().max())
        noise = NOISE[q.dtype] * (4 if name == "decay" and value.dim() == 1 else 1)  # a sum over all tokens
        assert error <= noise * size, f"{name}: error {error:.3g}, size {size:.3g}"


def assert_shape_near(s, dtype, *, kind=None, initial=True, Lk=None, strength=1.0, sequences=None, **options):
    options = {"normalize": True, "causal": True, **options}
    state = make_state(s, options["normalize"], sequences=sequences) if initial else None
    decay = make_decay(s, kind, strength=strength)
    assert_near(*make_qkv(s, dtype, Lk=Lk), decay=decay, state=state, **options)


@variants(ALL)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["grouped"] if FEW else ["tiny", "grouped", "more_values"])
def test_causal(shape, kind, normalize, dtype, schedule):
    assert_shape_near(SHAPES[shape], dtype, kind=kind, normalize=normalize)


@variants(ALL)
@pytest.mark.parametrize("L", [130] if FEW else [17, 64, 130])
@pytest.mark.parametrize("kind", KINDS)
def test_chunk_borders(L, kind, dtype, schedule):
    assert_shape_near(Shape(1, 2, 1, 1, L, 3, 5), dtype, kind=kind)


@variants(ALL)
@pytest.mark.parametrize("dims", [(72, 66)] if FEW else [(64, 8), (70, 3), (8, 130)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_head_dims(dims, kind, dtype, schedule):
    assert_shape_near(Shape(1, 2, 1, 1, 40, *dims), dtype, kind=kind)


@variants(ALL)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("Lk", [0, 1, 70])
def test_not_causal(Lk, normalize, dtype, schedule):
    for initial in (True, False):
        assert_shape_near(SHAPES["grouped"], dtype, causal=False, Lk=Lk, normalize=normalize, initial=initial)


@pytest.mark.parametrize("kind", KINDS)
def test_parts(kind):
    # 1030 tokens go in two parts: as they do in two calls.
    s = SHAPES["parts"]
    inputs = [*make_qkv(s), *make_state(s, True)] + ([make_decay(s, kind)] if kind else [])
    inputs = [t.requires_grad_() for t in inputs]

    def run(pieces):
        state, outs = tuple(inputs[3:5]), []
        for piece in pieces:
            decay = inputs[5] if kind else None
            decay = decay[:, :, piece] if decay is not None and decay.dim() > 1 else decay
            tokens = [t[:, :, piece] for t in inputs[:3]]
            out, state = ax.linear_attention(
                *tokens, causal=True, decay=decay, initial_state=state, return_state=True
            )
            outs.append(out)
        outputs = [torch.cat(outs, 2), *state]
        return [*outputs, *torch.autograd.grad(sum(t.sin().sum() for t in outputs), inputs)]

    for a, b in zip(run([slice(None)]), run([slice(0, 500), slice(500, None)]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_parts_that_are_not_causal():
    query, key, value = make_qkv(SHAPES["parts"]._replace(L=40), Lk=1030)
    assert_near(query, key, value)
    assert_near(*make_qkv(SHAPES["parts"], Lk=40))


@variants(ALL)
@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
@pytest.mark.parametrize("causal", [True, False])
def test_feature_maps(feature_map, causal, dtype, schedule):
    s = Shape(1, 2, 1, 2, 20, 40, 6)
    q, k, v = (t.abs() + 0.1 for t in make_qkv(s, dtype))
    assert_near(q, k, v, causal=causal, feature_map=feature_map)
    q, k, v = make_qkv(s, dtype)
    assert_near(q, k, v, causal=causal, feature_map=feature_map, normalize=False, scale=0.3)


@variants(ALL)
@pytest.mark.parametrize("kind", KINDS)
def test_key_lengths(kind, dtype, schedule):
    s = Shape(4, 2, 1, 1, 70, 6, 5)
    lengths = torch.tensor([0, 1, 66, s.L])
    for causal in (True, False) if kind is None else (True,):
        for initial in (True, False):
            assert_shape_near(s, dtype, kind=kind, causal=causal, key_lengths=lengths, initial=initial)


@variants(ALL)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences(kind, dtype, schedule):
    s = Shape(1, 2, 1, 2, 140, 7, 5)
    borders = torch.tensor([0, 0, 1, 66, 66, 131, s.L])
    for causal in (True, False) if kind is None else (True,):
        for n in (6, None):
            assert_shape_near(
                s, dtype, kind=kind, causal=causal, cu_seqlens=borders, initial=n is not None, sequences=n
            )


@variants(FLOATS)
@pytest.mark.parametrize("strength", [0.0, 30.0, 1e4])
@pytest.mark.parametrize("kind", DECAYS)
def test_strong_and_zero_decay(kind, strength, dtype, schedule):
    assert_shape_near(Shape(1, 2, 1, 1, 70, 5, 6), dtype, kind=kind, strength=strength)


@variants(((torch.float32, 3), *HALVES))
def test_strides(dtype, schedule):
    s = SHAPES["grouped"]
    q, k, v = make_qkv(s, dtype, heads_last=True)
    assert_near(q, k, v, causal=True, decay=make_decay(s, "token"))
    wide = [torch.randn(*t.shape[:3], 2 * t.shape[3]).to(dtype)[..., ::2] for t in (q, k, v)]
    decay = make_decay(s, "channel").mT.contiguous().mT
    assert_near(*wide, causal=True, decay=decay)
    shared = [t[:, :1].expand(-1, 4, -1, -1) for t in (q, k, v)]
    assert_near(*shared)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", EMPTY_SHAPES)
def test_empty(shape, causal):
    s = EMPTY_SHAPES[shape]
    leaves = [t.requires_grad_() for t in (*make_qkv(s), make_decay(s, "head"))]
    decay = leaves[3] if causal else None
    out, (S, z) = ax.linear_attention(*leaves[:3], causal=causal, decay=decay, return_state=True)
    assert out.shape == (s.B, s.H, s.L, s.Dv)
    assert S.shape == (s.B, s.Hs, s.D, s.Dv)
    (out.sum() + S.sum() + z.sum()).backward()
    assert all(t.grad.shape == t.shape for t in leaves[: 3 + causal])


@variants(ALL)
@pytest.mark.parametrize("kind", KINDS)
def test_the_future_never_reaches_the_past(kind, dtype, schedule):
    s = Shape(1, 2, 2, 2, 60, 8, 8)
    tensors, decay = make_qkv(s, dtype), make_decay(s, kind)
    results = []
    for bad in (0.0, torch.nan, torch.inf):
        leaves = [t.clone() for t in tensors]
        for t in leaves:
            t[:, :, 30:] = bad
            t.requires_grad_()
        out = ax.linear_attention(*leaves, causal=True, decay=decay)[:, :, :30]
        dq = torch.autograd.grad(out.sin().sum(), leaves[0])[0][:, :, :30]
        results.append((out, dq))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-3, atol=1e-3)


@variants(ALL)
@pytest.mark.parametrize("causal", [True, False])
def test_padding_stays_out(causal, dtype, schedule):
    lengths = torch.tensor([7, 0])
    q, k, v = make_qkv(Shape(2, 2, 2, 2, 20, 4, 4), dtype)
    results = []
    for bad in (0.0, torch.nan):
        k[0, :, 7:] = k[1] = v[0, :, 7:] = v[1] = bad
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        out = ax.linear_attention(*leaves, causal=causal, key_lengths=lengths)
        results.append((out, *torch.autograd.grad(out.sum(), leaves)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not any(gradient[1].any() for gradient in results[0][1:])


@pytest.mark.parametrize("kind", KINDS)
def test_results_do_not_depend_on_the_schedule(kind, kernels):
    s = Shape(1, 2, 1, 2, 70, 20, 6)
    inputs = [*make_qkv(s), *make_state(s, True)] + ([make_decay(s, kind)] if kind else [])
    inputs = [t.requires_grad_() for t in inputs]
    results = []
    for seed in (0, 1, 2, 3):
        kernels.set_schedule(seed)
        out, last = ax.linear_attention(
            *inputs[:3], causal=True, decay=inputs[5] if kind else None, initial_state=tuple(inputs[3:5]),
            return_state=True,
        )  # fmt: skip
        total = sum(t.sin().sum() for t in (out, *last))
        results.append([out, *last, *torch.autograd.grad(total, inputs)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("wanted", range(6))
def test_one_gradient_alone(wanted):
    s = Shape(1, 2, 1, 2, 40, 6, 5)
    tensors = [*make_qkv(s), *make_state(s, True), make_decay(s, "token")]
    gradients = []
    for chosen in ([wanted], range(6)):
        leaves = [t.clone().requires_grad_(n in chosen) for n, t in enumerate(tensors)]
        q, k, v, S, z, decay = leaves
        out = ax.linear_attention(q, k, v, causal=True, decay=decay, initial_state=(S, z))
        gradients.append(torch.autograd.grad(out.sin().sum(), leaves[wanted])[0])
    assert torch.equal(*gradients)


@variants(ALL)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_step_equals_the_recurrence(kind, normalize, dtype, schedule):
    s = Shape(2, 6, 1, 2, 3, 20, 40)
    q, k, v = make_qkv(s, dtype)
    decay, state = make_decay(s, kind), make_state(s, normalize)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    running = tuple(t.to(wide) for t in state) if normalize else state[0].to(wide)
    options = {"normalize": normalize, "scale": None if normalize else 0.5}
    expected, last = ax.reference.linear_attention(
        *(t.double() for t in (q, k, v)),
        causal=True,
        decay=decay if decay is None else decay.double(),
        initial_state=tuple(t.double() for t in state) if normalize else state[0].double(),
        return_state=True,
        **options,
    )
    outs = []
    for t in range(s.L):
        g = decay if decay is None or kind == "head" else decay[:, :, t]
        outs.append(ax.linear_attention_step(q[:, :, t], k[:, :, t], v[:, :, t], running, decay=g, **options))
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(dtype, 1e-5)
    found = (torch.stack(outs, 2), *(running if normalize else (running,)))
    for a, b in zip(found, (expected, *(last if normalize else (last,))), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def test_devices_without_tensor_cores(kernels):
    if emulation.MODE == "device":
        pytest.skip("the device is what it is")
    kernels.set_architecture(75)
    try:
        assert_shape_near(Shape(1, 2, 1, 1, 20, 6, 5), torch.float16, kind="token")
    finally:
        kernels.set_architecture(80)


def test_gradcheck():
    s = Shape(1, 2, 1, 1, 3, 2, 2)
    tensors = [*make_qkv(s, torch.float64), *make_state(s, True, torch.float64)]
    tensors.append(make_decay(s, "channel", torch.float64))
    leaves = [t.requires_grad_() for t in tensors]

    def function(q, k, v, S, z, decay):
        out, last = ax.linear_attention(
            q, k, v, causal=True, decay=decay, initial_state=(S, z), return_state=True
        )
        return (out, *last)

    assert torch.autograd.gradcheck(function, leaves)
