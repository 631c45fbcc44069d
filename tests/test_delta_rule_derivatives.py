"""The delta rule's derivatives of every kind, its graphs, and how it is called."""

import pytest
import torch
from linear_cases import Shape
from test_delta_rule import KINDS, function, make_inputs
from torch.func import grad, jvp, vmap

import attention_ext as ax
from attention_ext._ops import delta_rule as op
from attention_ext._ops import library

# The routes do not depend on the instruction set, and values and gradients have their own tests.
pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore::attention_ext.UnfusedWarning")]
F64 = torch.float64
SMALL = Shape(2, 4, 2, 2, 5, 3, 2)


def inputs(kind=None, s=SMALL, dtype=F64, requires_grad=True):
    return [t.to(dtype).requires_grad_(requires_grad) for t in make_inputs(s, kind)]


def total(f):
    return lambda *tensors: sum(t.sin().sum() for t in f(*tensors))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    assert torch.autograd.gradcheck(function(kind), inputs(kind))


def test_gradgradcheck():
    s = SMALL._replace(B=1, Hq=2, Hk=1, Hv=1, L=3)
    assert torch.autograd.gradgradcheck(function("token"), inputs("token", s))


def test_forward_mode():
    tensors = inputs("token", requires_grad=False)
    tangents = tuple(torch.randn_like(t) for t in tensors)
    formula = function("token", ax.reference.delta_rule)
    found, expected = (jvp(f, tuple(tensors), tangents) for f in (function("token"), formula))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_vmap(kind):
    batches = [inputs(kind, requires_grad=False) for _ in range(3)]
    tensors = [torch.stack(parts) for parts in zip(*batches, strict=True)]
    everything = tuple(range(len(tensors)))
    for f in (function(kind), grad(total(function(kind)), argnums=everything)):
        expected = [torch.stack(parts) for parts in zip(*(f(*sample) for sample in batches), strict=True)]
        torch.testing.assert_close(list(vmap(f)(*tensors)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_compile(kind):
    torch._dynamo.reset()
    tensors = inputs(kind, dtype=torch.float32)
    f = total(function(kind))
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(g(*tensors), tensors) for g in (compiled, f))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind):
    tensors = inputs(kind, dtype=torch.float32, requires_grad=False)
    decay = tensors[4] if kind else None
    call = op.Call(*tensors[:4], decay, 0.5, torch.tensor([3, 5]), None, tensors[-1])
    torch.library.opcheck(library.delta_forward, call)
    differentiable = {
        name: t.clone().requires_grad_()
        for name in op.DIFFERENTIABLE
        if (t := getattr(call, name)) is not None
    }
    torch.library.opcheck(library.delta_rule, call._replace(**differentiable))
    out, state = library.delta_forward(*call)
    for needs in ([True] * 6, [False, True] * 3):
        torch.library.opcheck(library.delta_backward, (out, state, *call, out, needs))


# Heads are divided by columns and tokens where there are fewer than threads.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("s", [Shape(2, 2, 2, 2, 100, 16, 16), Shape(1, 2, 1, 1, 500, 16, 40)])
@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.cpu_only("threads of the CPU")
def test_threads_change_nothing(kind, s, bad, num_threads):
    tensors = inputs(kind, s, torch.float32)
    if bad:  # in one column of one token: chunks with it go token by token, in all columns
        with torch.no_grad():
            tensors[2][:, :, s.L // 2, -1] = torch.nan
    results = []
    for threads in (1, 2, 3):
        num_threads(threads)
        outputs = function(kind)(*tensors)
        results.append((outputs, torch.autograd.grad(sum(t.sin().sum() for t in outputs), tensors)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_split_and_resume_equals_the_whole(kind):
    tensors = inputs(kind, Shape(1, 2, 1, 2, 60, 8, 6))

    def halves(*tensors):
        state, outs = tensors[-1], []
        for part in (slice(0, 25), slice(25, None)):
            out, state = function(kind)(*(t[:, :, part] for t in tensors[:-1]), state)
            outs.append(out)
        return torch.cat(outs, 2), state

    results = []
    for f in (function(kind), halves):
        outputs = f(*tensors)
        results.append((outputs, torch.autograd.grad(sum(t.sin().sum() for t in outputs), tensors)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_step_equals_parallel(dtype, kind):
    s = Shape(2, 6, 1, 2, 9, 20, 70)
    tensors = make_inputs(s, kind, dtype)
    *tokens, state = tensors
    whole, last = function(kind, scale=0.4)(*tokens, state.clone())
    outs = []
    for t in range(s.L):
        q, k, v, beta, *decay = (x[:, :, t] for x in tokens)
        outs.append(ax.delta_rule_step(q, k, v, beta, state, decay=decay[0] if decay else None, scale=0.4))
    torch.testing.assert_close(torch.stack(outs, 2), whole)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_future_never_reaches_the_past(kind, bad):
    tensors = inputs(kind, Shape(1, 2, 2, 2, 60, 8, 8), torch.float32, requires_grad=False)
    dirty = [t.clone() for t in tensors]
    for t in dirty[1:4]:
        t[:, :, 30:] = bad
    results = []
    for q, *others in (dirty, tensors):
        q = q.clone().requires_grad_()
        out = function(kind)(q, *others)[0][:, :, :30]
        results.append((out, torch.autograd.grad(out.sin().sum(), q)[0][:, :, :30]))
    torch.testing.assert_close(*results)


def test_autocast():
    q, k, v, beta, state = make_inputs(SMALL)
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        out, last = ax.delta_rule(q, k, v, beta, initial_state=state, return_state=True)
    assert (out.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    low = (t.bfloat16() for t in (q, k, v))
    torch.testing.assert_close(out, ax.delta_rule(*low, beta, initial_state=state), rtol=0, atol=0)


def test_unfused_warning(monkeypatch):
    monkeypatch.setattr("attention_ext._warnings._warned", set())
    tensors = tuple(inputs(requires_grad=False))
    with pytest.warns(ax.UnfusedWarning, match="delta_rule: .* a plain recurrence, token by token"):
        jvp(function(None), tensors, tensors)


@pytest.mark.parametrize("rank", [2, 3])
def test_fewer_dimensions(rank):
    s = SMALL._replace(B=1, Hq=1, Hk=1, Hv=1)
    tensors = make_inputs(s, "token")
    first = (0,) * (4 - rank)
    whole = function("token")(*tensors)
    found = function("token")(*(t[first] for t in tensors))
    torch.testing.assert_close(found, tuple(t[first] for t in whole))


T = torch.zeros


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"beta": None}, TypeError, "beta: expected a torch.Tensor, got NoneType"),
        (
            {"beta": T(2, 4, 5)},
            ValueError,
            "beta: expected shape (2, 2, 5), one for each state and token, got (2, 4, 5)",
        ),
        (
            {"decay": T(2)},
            ValueError,
            "decay: expected shape (B, Hs, L) = (2, 2, 5) or (B, Hs, L, D) = (2, 2, 5, 3), got (2,)",
        ),
        ({"scale": "a"}, TypeError, "scale: expected a finite number or None, got str"),
        (
            {"key_lengths": [1, 2], "cu_seqlens": [0, 5]},
            ValueError,
            "key_lengths: expected None with cu_seqlens",
        ),
        (
            {"initial_state": T(2, 2, 3, 3)},
            ValueError,
            "initial_state: expected S of shape (2, 2, 3, 2), got (2, 2, 3, 3)",
        ),
    ],
)
def test_messages(change, error, message):
    q, k, v, beta, _ = make_inputs(SMALL)
    with pytest.raises(error) as caught:
        ax.delta_rule(**{"query": q, "key": k, "value": v, "beta": beta, **change})
    assert str(caught.value) == message


def test_the_raw_op_checks():
    q, k, v, beta, state = make_inputs(SMALL)
    with pytest.raises(RuntimeError, match="beta: expected"):
        library.delta_forward(q, k, v, beta[:, :1], None, 1.0, None, None, state)
    with pytest.raises(RuntimeError, match="decay: expected"):
        library.delta_forward(q, k, v, beta, T(2), 1.0, None, None, state)
    with pytest.raises(RuntimeError, match="no derivative"):
        library.delta_forward(q.requires_grad_(), k, v, beta, None, 1.0, None, None, state)
