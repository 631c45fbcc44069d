"""Linear attention's derivatives of every kind, its graphs, and how it is called."""

import pytest
import torch
from linear_cases import DECAYS, Shape, make_decay, make_qkv, make_state
from torch.func import grad, jvp, vmap

import attention_ext as ax
from attention_ext._ops import library
from attention_ext._ops import linear_attention as op

# The routes do not depend on the instruction set, and values and gradients have their own tests.
pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore::attention_ext.UnfusedWarning")]
F64 = torch.float64
SMALL = Shape(2, 4, 2, 2, 5, 3, 2)


def inputs(kind=None, normalize=True, s=SMALL, dtype=F64, requires_grad=True):
    tensors = [*make_qkv(s, dtype), *make_state(s, normalize, dtype)]
    if kind:
        tensors.append(make_decay(s, kind, dtype))
    return [t.requires_grad_(requires_grad) for t in tensors]


def function(normalize=True, causal=True, attention=ax.linear_attention):
    def f(q, k, v, *others):
        n = 1 + normalize
        state = others[:n] if normalize else others[0]
        decay = others[n] if len(others) > n else None
        out, last = attention(
            q, k, v, causal=causal, decay=decay, normalize=normalize, initial_state=state, return_state=True
        )
        return (out, *last) if normalize else (out, last)

    return f


def formula(normalize=True, causal=True):
    return function(normalize, causal, ax.reference.linear_attention)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", [None, *DECAYS])
def test_gradcheck(kind, normalize):
    assert torch.autograd.gradcheck(function(normalize), inputs(kind, normalize))


def test_gradcheck_not_causal():
    assert torch.autograd.gradcheck(function(causal=False), inputs())


def test_gradgradcheck():
    s = SMALL._replace(B=1, Hq=2, Hk=1, L=3)
    assert torch.autograd.gradgradcheck(function(False), inputs("token", False, s))
    assert torch.autograd.gradgradcheck(function(), inputs(None, True, s))


@pytest.mark.parametrize("kind", [None, "head", "channel"])
def test_forward_mode(kind):
    tensors = inputs(kind, requires_grad=False)
    tangents = tuple(torch.randn_like(t) for t in tensors)
    found, expected = (jvp(f, tuple(tensors), tangents) for f in (function(), formula()))
    torch.testing.assert_close(found, expected)


def total(f):
    return lambda *tensors: sum(t.sin().sum() for t in f(*tensors))


@pytest.mark.parametrize("kind", [None, *DECAYS])
@pytest.mark.parametrize("shared", [False, True])
def test_vmap(kind, shared):
    batches = [inputs(kind, requires_grad=False) for _ in range(3)]
    tensors = [torch.stack(parts) for parts in zip(*batches, strict=True)]
    dims = [0] * len(tensors)
    if shared:  # the key is the same for all samples
        tensors[1], dims[1] = tensors[1][0], None
        for sample in batches:
            sample[1] = tensors[1]
    everything = tuple(range(len(tensors)))
    for f in (function(), grad(total(function()), argnums=everything)):
        found = vmap(f, in_dims=tuple(dims))(*tensors)
        expected = [torch.stack(parts) for parts in zip(*(f(*sample) for sample in batches), strict=True)]
        torch.testing.assert_close(list(found), expected)


def test_unfused_warning(monkeypatch):
    monkeypatch.setattr("attention_ext._warnings._warned", set())
    tensors = tuple(inputs(requires_grad=False))
    with pytest.warns(ax.UnfusedWarning, match="linear_attention"):
        jvp(function(), tensors, tensors)


@pytest.mark.parametrize("kind", [None, *DECAYS])
def test_compile(kind):
    torch._dynamo.reset()
    tensors = inputs(kind, dtype=torch.float32)
    compiled = torch.compile(total(function()), fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(f(*tensors), tensors) for f in (compiled, total(function())))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def call(kind=None, normalize=True, causal=True, **options):
    q, k, v, S, *others = inputs(kind, normalize, dtype=torch.float32, requires_grad=False)
    z = others.pop(0) if normalize else None
    decay = others.pop() if others else None
    made = op.Call(q, k, v, 1, causal, decay, 1.0, normalize, 1e-6, None, None, S, z)
    return made._replace(**options)


@pytest.mark.parametrize(
    "arguments",
    [
        lambda: call(),
        lambda: call(causal=False, initial_state=None, initial_normalizer=None),
        lambda: call("head", False),
        lambda: call("channel", key_lengths=torch.tensor([0, 4])),
    ],
    ids=["plain", "not_causal", "per_head", "per_channel"],
)
def test_opcheck(arguments):
    arguments = arguments()
    torch.library.opcheck(library.linear_forward, arguments)
    torch.library.opcheck(library.linear_attention, arguments)
    differentiable = {
        name: t.clone().requires_grad_()
        for name in op.DIFFERENTIABLE
        if (t := getattr(arguments, name)) is not None
    }
    torch.library.opcheck(library.linear_attention, arguments._replace(**differentiable))
    out, denominator, S, z = library.linear_forward(*arguments)
    z = torch.randn_like(z) if arguments.normalize else None
    for needs in ([True] * 6, [False, True] * 3):
        torch.library.opcheck(library.linear_backward, (out, S, z, *arguments, out, denominator, needs))


def test_raw_ops_raise_when_differentiated():
    arguments = call()
    arguments = arguments._replace(query=arguments.query.requires_grad_())
    with pytest.raises(RuntimeError, match="no derivative"):
        library.linear_forward(*arguments)


def test_autocast():
    q, k, v = make_qkv(SMALL)
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        out, (S, _) = ax.linear_attention(q, k, v.double().float(), causal=True, return_state=True)
    assert out.dtype == torch.bfloat16
    assert S.dtype == torch.float32
    low = [t.bfloat16() for t in (q, k, v)]
    torch.testing.assert_close(out, ax.linear_attention(*low, causal=True), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [None, *DECAYS])
@pytest.mark.parametrize("B", [1, 8])
@pytest.mark.cpu_only("threads of the CPU")
def test_threads_change_nothing(kind, B, num_threads):
    s = Shape(B, 2, 2, 2, 1200 if B == 1 else 60, 16, 16)
    tensors = inputs(kind, s=s, dtype=torch.float32)
    results = []
    for threads in (1, 3):
        num_threads(threads)
        outputs = function()(*tensors)
        results.append((outputs, torch.autograd.grad(sum(t.sin().sum() for t in outputs), tensors)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", [None, *DECAYS])
def test_split_and_resume_equals_the_whole(kind, normalize):
    s = Shape(1, 2, 1, 2, 60, 8, 6)
    tensors = inputs(kind, normalize, s)
    n = 4 + normalize

    def halves(q, k, v, *others):
        state, decays = others[: 1 + normalize], others[1 + normalize :]
        outs = []
        for part in (slice(0, 25), slice(25, None)):
            own = [g if kind == "head" else g[:, :, part] for g in decays]
            out, *state = function(normalize)(*(t[:, :, part] for t in (q, k, v)), *state, *own)
            outs.append(out)
        return torch.cat(outs, 2), *state

    assert len(tensors) == n + (kind is not None)
    results = []
    for f in (function(normalize), halves):
        outputs = f(*tensors)
        results.append((outputs, torch.autograd.grad(sum(t.sin().sum() for t in outputs), tensors)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", [None, *DECAYS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_step_equals_parallel(dtype, kind, normalize):
    s = Shape(2, 6, 1, 2, 9, 20, 70)
    q, k, v = make_qkv(s, dtype)
    decay, state = make_decay(s, kind), make_state(s, normalize)
    initial = tuple(t.clone() for t in state) if normalize else state[0].clone()
    options = {"normalize": normalize, "scale": None if normalize else 0.5}
    whole, last = ax.linear_attention(
        q, k, v, causal=True, decay=decay, initial_state=initial, return_state=True, **options
    )
    running = tuple(state) if normalize else state[0]
    outs = []
    for t in range(s.L):
        g = decay if decay is None or kind == "head" else decay[:, :, t]
        outs.append(ax.linear_attention_step(q[:, :, t], k[:, :, t], v[:, :, t], running, decay=g, **options))
    torch.testing.assert_close(torch.stack(outs, 2), whole)
    torch.testing.assert_close(running, last)


def test_step_refuses_derivatives():
    q, k, v = (t[:, :, 0] for t in make_qkv(SMALL))
    state = tuple(make_state(SMALL, True))
    with pytest.raises(RuntimeError, match="no derivative"):
        ax.linear_attention_step(q.requires_grad_(), k, v, state)


@pytest.mark.parametrize("kind", [None, *DECAYS])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_future_never_reaches_the_past(kind, bad):
    s = Shape(1, 2, 2, 2, 60, 8, 8)
    tensors = inputs(kind, s=s, dtype=torch.float32, requires_grad=False)
    clean = [t.clone() for t in tensors]
    for t in tensors[:3]:
        t[:, :, 30:] = bad
    for dirty in (tensors, [tensors[0], *clean[1:]], [*clean[:2], tensors[2], *clean[3:]]):
        out = function()(*dirty)[0]
        torch.testing.assert_close(out[:, :, :30], function()(*clean)[0][:, :, :30])
        grads = []
        for q, *others in (dirty, clean):
            q = q.clone().requires_grad_()
            value = function()(q, *others)[0][:, :, :30].sin().sum()
            grads.append(torch.autograd.grad(value, q)[0][:, :, :30])
        torch.testing.assert_close(*grads)


def test_padding_stays_out():
    s = Shape(2, 2, 2, 2, 20, 4, 4)
    lengths = torch.tensor([7, 0])
    for causal in (True, False):
        q, k, v = make_qkv(s)
        clean = ax.linear_attention(q, k, v, causal=causal, key_lengths=lengths)
        k[0, :, 7:] = k[1] = v[0, :, 7:] = v[1] = torch.nan
        leaves = [t.requires_grad_() for t in (q, k, v)]
        out = ax.linear_attention(*leaves, causal=causal, key_lengths=lengths)
        torch.testing.assert_close(out, clean, rtol=0, atol=0)
        out.sum().backward()
        assert all(t.grad.isfinite().all() for t in leaves)
        assert not any(t.grad[1].any() for t in leaves)
