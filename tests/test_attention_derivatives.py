"""Attention's derivatives beyond a plain backward: right or an error, and what is fused stays fused."""

import functools
import threading
import warnings

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch.autograd import functional as autograd_functional
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import attention_ext as ax
from attention_ext import _warnings
from attention_ext._ops import library
from attention_ext._ops.attention_schema import BackwardCall, Call

# The routes do not depend on the instruction set, and values and gradients have their own tests.
pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore::attention_ext.UnfusedWarning")]

M = ax.masks
F64 = torch.float64
ALL = tuple(range(6))  # query, key, value, bias, sinks, slopes
LENGTHS = torch.tensor([0, 3])


def everything(attention, *, mask=True, sinks=True):
    """Attention with every option, as a function of its six tensors, returning (out, lse)."""

    def f(query, key, value, bias, sink, slopes):
        return attention(
            query,
            key,
            value,
            mask=M.Causal() & M.KeyLengths(LENGTHS) if mask else None,
            bias=bias,
            sinks=sink if sinks else None,
            alibi_slopes=slopes,
            softcap=3.0,
            dropout_p=0.0,
            return_lse=True,
        )

    return f


def scalar(f):
    """A scalar of (out, lse), curved in both; infinite lse left out."""

    @functools.wraps(f)
    def g(*args):
        out, lse = f(*args)
        return (out * out).sum() + lse.nan_to_num(neginf=0.0).sin().sum()

    return g


def inputs(requires_grad=False):
    """query, key, value, bias, sinks, slopes, small: B, Hq, Hkv, Lq, Lk, D, Dv = 2, 2, 1, 3, 4, 2, 1."""
    sizes = [(2, 2, 3, 2), (2, 1, 4, 2), (2, 1, 4, 1), (1, 2, 1, 4), (2,), (2, 2)]
    return tuple(torch.randn(s, dtype=F64, requires_grad=requires_grad) for s in sizes)


ours, formula = everything(ax.attention), everything(ax.reference.attention)


@pytest.fixture
def calls(monkeypatch):
    """How often the fused kernels were called."""
    counts = {"forward": 0, "backward": 0}

    def counted(name, op):
        @functools.wraps(op)
        def call(*args):
            counts[name] += 1
            return op(*args)

        return call

    for name in counts:
        monkeypatch.setattr(library, name, counted(name, getattr(library, name)))
    return counts


@pytest.fixture
def unfused_is_an_error(monkeypatch):
    monkeypatch.setattr(_warnings, "_warned", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error", ax.UnfusedWarning)
        yield


# by finite differences


def test_gradcheck_in_both_modes_and_batched():
    assert gradcheck(
        ours,
        inputs(requires_grad=True),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        fast_mode=True,
    )


def test_gradgradcheck():
    arguments = inputs(requires_grad=True)
    assert gradgradcheck(ours, arguments, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True)


# against the formula, whose derivatives are torch's own

TRANSFORMS = {
    "grad": lambda f: grad(f, ALL),
    "jvp": lambda f: lambda *x: jvp(f, x, tuple(t.cos() for t in x)),
    "jacrev": lambda f: jacrev(f, ALL),
    "jacfwd": lambda f: jacfwd(f, ALL),
    "hessian": lambda f: hessian(f, (0, 1, 2)),
    "jacrev_jacrev": lambda f: jacrev(jacrev(f, (0, 3, 4)), (1, 2, 5)),
    "jacfwd_jacfwd": lambda f: jacfwd(jacfwd(f, 0), (1, 4)),
    "jacrev_jacfwd": lambda f: jacrev(jacfwd(f, 5), (0, 2)),
    "third": lambda f: grad(lambda *x: grad(lambda *y: grad(f)(*y).sin().sum(), 1)(*x).sin().sum(), 2),
    "third_mixed": lambda f: lambda *x: jvp(lambda q: hessian(f)(q, *x[1:]), (x[0],), (x[0].cos(),)),
    "another_variable": lambda f: grad(lambda *x: grad(f, 0)(*x).sin().sum(), 1),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_func(name):
    arguments = inputs()
    transform = TRANSFORMS[name]
    found, expected = (transform(scalar(f))(*arguments) for f in (ours, formula))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["grad", "jvp", "jacrev_jacrev", "jacfwd", "hessian", "third"])
def test_func_of_the_public_op(name):
    q, k, v, *_ = inputs()
    mask = M.Causal().lower(2, 2, 3, 4, q.device)
    transform = {**TRANSFORMS, "grad": grad, "jacfwd": jacfwd, "hessian": hessian}[name]
    if name == "jacrev_jacrev":
        transform = lambda f: jacrev(jacrev(f, 0), 1)  # noqa: E731

    def public(q, k, v):
        return torch.ops.attention_ext.attention(q, k, v, *mask, None, None, None, None, 0.0, 0.0, None)

    def expected(q, k, v):
        return ax.reference.attention(q, k, v, mask=M.Causal(), return_lse=True)

    torch.testing.assert_close(transform(scalar(public))(q, k, v), transform(scalar(expected))(q, k, v))


def test_autograd_through_func():
    found, expected = (
        torch.autograd.grad(sum(t.sin().sum() for t in grad(scalar(f), ALL)(*arguments)), arguments)
        for arguments in [inputs(requires_grad=True)]
        for f in (ours, formula)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("sinks", [True, False], ids=["sinks", "no_sinks"])
@pytest.mark.parametrize("order", [2, 3])
def test_create_graph(order, sinks):
    # Without sinks the first row, which has no key, is empty: its lse is infinite.
    arguments = inputs(requires_grad=True)
    variables = arguments if sinks else arguments[:4] + arguments[5:]

    def derivative(attention):
        value = scalar(everything(attention, sinks=sinks))(*arguments)
        for _ in range(order):
            grads = torch.autograd.grad(value, variables, create_graph=True)
            value = sum(g.sin().sum() for g in grads)
        return grads

    found = derivative(ax.attention)
    assert all(g.isfinite().all() and g.any() for g in found)
    torch.testing.assert_close(found, derivative(ax.reference.attention))


def test_second_derivatives_with_masked_nan():
    q, k, v, *_ = inputs()
    bad_k, bad_v = k.clone(), v.clone()
    bad_k[1, :, 3] = bad_v[1, :, 3] = torch.nan  # beyond the second row's length
    bad_k[0], bad_v[0] = torch.inf, torch.nan  # the first sees no key

    def second(k, v):
        def f(q, k, v):
            return ax.attention(q, k, v, mask=M.KeyLengths(LENGTHS)).square().sum()

        return hessian(f, (0, 1, 2))(q, k, v)

    torch.testing.assert_close(second(bad_k, bad_v), second(k, v))


@pytest.mark.parametrize("subset", [(0,), (2,), (1, 3), (4, 5)])
def test_create_graph_for_some_inputs(subset):
    arguments = inputs()
    variables = [arguments[n].requires_grad_() for n in subset]

    def second(f):
        grads = torch.autograd.grad(scalar(f)(*arguments), variables, create_graph=True)
        return torch.autograd.grad(sum(g.sin().sum() for g in grads), variables)

    torch.testing.assert_close(second(ours), second(formula))


def test_one_tensor_as_query_key_and_value():
    x = torch.randn(1, 1, 3, 2, dtype=F64, requires_grad=True)

    def second(attention):
        g = torch.autograd.grad(attention(x, x, x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(g[0].sin().sum(), x)

    torch.testing.assert_close(second(ax.attention), second(ax.reference.attention))


def test_functions_of_torch_autograd():
    q, *rest = inputs()
    f, f_expected = (lambda q, g=g: scalar(g)(q, *rest) for g in (ours, formula))
    expected = autograd_functional.hessian(f_expected, q)
    for vectorize in (False, True):
        torch.testing.assert_close(autograd_functional.hessian(f, q, vectorize=vectorize), expected)
    out, out_expected = (lambda q, g=g: g(q, *rest)[0] for g in (ours, formula))
    expected = autograd_functional.jacobian(out_expected, q)
    for strategy in ("reverse-mode", "forward-mode"):
        found = autograd_functional.jacobian(out, q, vectorize=True, strategy=strategy)
        torch.testing.assert_close(found, expected)


def test_forward_mode():
    arguments = inputs()
    tangents = [torch.randn_like(t) for t in arguments]
    _, expected = jvp(formula, arguments, tuple(tangents))
    with forward_ad.dual_level(), torch.no_grad():  # no_grad is about reverse mode
        duals = [forward_ad.make_dual(*pair) for pair in zip(arguments, tangents, strict=True)]
        found = [forward_ad.unpack_dual(t).tangent for t in ours(*duals)]
    torch.testing.assert_close(found, list(expected), equal_nan=True)


def test_forward_mode_over_a_backward_recorded_before():
    q, *rest = inputs()
    q.requires_grad_()
    tangent = torch.randn_like(ours(q, *rest)[0])

    def tangent_of_gradient(f):
        out, _ = f(q, *rest)
        with forward_ad.dual_level():
            (g,) = torch.autograd.grad(out, q, forward_ad.make_dual(torch.ones_like(out), tangent))
            return forward_ad.unpack_dual(g).tangent

    torch.testing.assert_close(tangent_of_gradient(ours), tangent_of_gradient(formula))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_second_derivatives_in_low_precision(dtype):
    exact = inputs()
    arguments = tuple(t.to(dtype) for t in exact)
    found = hessian(scalar(ours), (0, 2))(*arguments)
    expected = hessian(scalar(formula), (0, 2))(*(t.double() for t in arguments))
    for f, e in zip(sum(found, ()), sum(expected, ()), strict=True):
        assert f.dtype == dtype
        torch.testing.assert_close(f.double(), e, rtol=0, atol=(1e-5 if dtype == torch.float32 else 0.1) * 10)


# vmap


def loop(f, arguments, batched, size):
    samples = [[t[n] if i in batched else t for i, t in enumerate(arguments)] for n in range(size)]
    results = [f(*sample) for sample in samples]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


BATCHED = [(0,), (1, 2), (3,), (4,), (5,), (0, 3), ALL]


@pytest.mark.parametrize("batched", BATCHED, ids=str)
@pytest.mark.parametrize("differentiate", [False, True], ids=["values", "gradients"])
def test_vmap_over_any_arguments(batched, differentiate, unfused_is_an_error):
    arguments = [torch.randn(3, *t.shape, dtype=F64) if i in batched else t for i, t in enumerate(inputs())]
    f = grad(scalar(ours), ALL) if differentiate else ours
    found = vmap(f, tuple(0 if i in batched else None for i in ALL))(*arguments)
    torch.testing.assert_close(found, loop(f, arguments, batched, 3))


@pytest.mark.parametrize("slopes", [(2,), (2, 2)], ids=["per_head", "per_row"])
@pytest.mark.parametrize("bias", [(1, 2, 3, 4), (2, 1, 1, 4), (3, 1)], ids=str)
def test_per_sample_gradients_of_what_the_samples_share(bias, slopes):
    q, k, v, *_ = inputs()
    bias, slopes = torch.randn(bias, dtype=F64), torch.randn(slopes, dtype=F64)
    batch = torch.randn(3, *q.shape, dtype=F64)

    def f(bias, slopes, q):
        return ax.attention(q, k, v, bias=bias, alibi_slopes=slopes).square().sum()

    g = grad(f, (0, 1))
    found = vmap(g, (None, None, 0))(bias, slopes, batch)
    torch.testing.assert_close(found, loop(g, [bias, slopes, batch], (2,), 3))


def test_vmap_is_one_fused_call(calls, unfused_is_an_error):
    q, k, v = (torch.randn(5, 2, 2, 3, 4) for _ in range(3))
    vmap(ax.attention)(q, k, v)
    assert calls == {"forward": 1, "backward": 0}
    vmap(grad(lambda *x: ax.attention(*x).sum(), (0, 1, 2)), (0, None, 0))(q, k[0], v)
    assert calls == {"forward": 2, "backward": 1}
    vmap(vmap(ax.attention))(*(t[None] for t in (q, k, v)))
    assert calls == {"forward": 3, "backward": 1}
    grad(lambda *x: vmap(ax.attention)(*x).sum())(q, k, v)
    assert calls == {"forward": 4, "backward": 2}
    torch.autograd.grad(vmap(ax.attention)(q.requires_grad_(), k, v).sum(), q)
    assert calls == {"forward": 5, "backward": 3}


def test_vmap_dimensions():
    q, k, v = torch.randn(2, 2, 3, 5, 4), torch.randn(5, 2, 2, 6, 4), torch.randn(2, 2, 6, 4)
    found = vmap(ax.attention, (3, 0, None), 2)(q, k, v)
    expected = torch.stack([ax.attention(q[:, :, :, n], k[n], v) for n in range(5)], 2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("batched", ["band_offset", "key_lengths", "mask_bits", "keep_for_all"])
def test_vmap_over_the_parts_of_a_mask(batched):
    q, k, v = torch.randn(2, 2, 3, 4), torch.randn(2, 1, 70, 4), torch.randn(2, 1, 70, 4)
    bits = library.pack_mask_bits(torch.rand(4, 1, 2, 3, 70) > 0.4)
    changes = {
        "band_offset": {"band": [-40, 30, 1, 0, 0, 0], "band_offset": torch.randint(-9, 60, (4, 2))},
        "key_lengths": {"key_lengths": torch.randint(0, 70, (4, 2))},
        "mask_bits": {"mask_bits": bits.movedim(0, -1)},  # the vmapped dimension apart the words of a row
        "keep_for_all": {"query": torch.randn(4, *q.shape), "mask_bits": bits[0].expand(2, -1, -1, -1)},
    }[batched]
    call = Call(q, k, v, [], None, None, None, None, [], None, None, None, 0.5, 0.0, 0.0, None)
    call = call._replace(**changes)
    dims = call._replace(**dict.fromkeys(call._fields))
    name = "query" if batched == "keep_for_all" else batched
    dims = dims._replace(**{name: 4 if batched == "mask_bits" else 0})

    def sample(values, n, dims):
        return [t if d is None else t.select(d, n) for t, d in zip(values, dims, strict=True)]

    # The band and the lists are no arguments of the function that vmap sees.
    def op(f, call, dims):
        tensors = [name for name in call._fields if isinstance(getattr(call, name), torch.Tensor)]
        found = vmap(
            lambda *x: f(*call._replace(**dict(zip(tensors, x, strict=True)))),
            tuple(getattr(dims, name) for name in tensors),
        )(*(getattr(call, name) for name in tensors))
        each = [f(*sample(call, n, dims)) for n in range(4)]
        expected = tuple(torch.stack(parts) for parts in zip(*each, strict=True))
        torch.testing.assert_close(found, expected, equal_nan=True)
        return found

    out, lse = op(library.forward, call, dims)
    backward = BackwardCall(
        torch.randn_like(out), None, *call[:3], out, lse, *call[3:], [True] * 3 + [False] * 3
    )
    op(library.backward, backward, BackwardCall(0, None, *dims[:3], 0, 0, *dims[3:], None))


def test_vmap_with_dropout():
    q = torch.randn(3, 2, 2, 3, 4, dtype=F64)
    k = torch.randn(2, 2, 5, 4, dtype=F64)
    seeds = torch.tensor([1, 2, 1])

    def f(q, seed):
        return ax.attention(q, k, k, dropout_p=0.5, dropout_seed=seed)

    g = grad(lambda q, seed: f(q, seed).square().sum())
    for function in (f, g):
        found = vmap(function)(q, seeds)
        expected = torch.stack([function(q[n], seeds[n]) for n in range(3)])
        torch.testing.assert_close(found, expected)

    def drawn(q):
        return ax.attention(q, k, k, dropout_p=0.5)

    same = q[:1].expand(3, -1, -1, -1, -1)
    out = vmap(drawn, randomness="same")(same)
    assert torch.equal(out[0], out[1])
    out = vmap(drawn, randomness="different")(same)
    assert not torch.equal(out[0], out[1])
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(drawn)(same)


def test_per_sample_gradients_of_a_module(unfused_is_an_error):
    linear = torch.nn.Linear(4, 4, dtype=F64)
    parameters = dict(linear.named_parameters())
    x = torch.randn(3, 2, 5, 4, dtype=F64)

    def loss(parameters, x):
        q = torch.func.functional_call(linear, parameters, (x,))
        return ax.attention(q, x, x, mask=M.Causal()).square().sum()

    found = vmap(grad(loss), (None, 0))(parameters, x)
    for n in range(3):
        expected = torch.autograd.grad(loss(parameters, x[n]), list(parameters.values()))
        torch.testing.assert_close([found[name][n] for name in parameters], list(expected))


# what is fused, what warns, what raises


def test_first_order_is_fused(calls, unfused_is_an_error):
    arguments = inputs(requires_grad=True)
    ours(*arguments)[0].sum().backward()
    grad(scalar(ours), ALL)(*(t.detach() for t in arguments))
    torch.autograd.grad(ours(*arguments)[0].sum(), arguments, create_graph=True)
    jacrev(lambda q: ours(q, *inputs()[1:])[0])(inputs()[0])
    assert calls["forward"] == 4
    assert calls["backward"] >= 4


@pytest.mark.parametrize(
    "derivative",
    [
        lambda f, x: jvp(f, (x,), (x,)),
        lambda f, x: hessian(f)(x),
        lambda f, x: torch.autograd.grad(
            torch.autograd.grad(f(x.requires_grad_()), x, create_graph=True)[0].sum(), x
        ),
    ],
    ids=["jvp", "hessian", "double_backward"],
)
def test_unfused_derivatives_warn_once(derivative, monkeypatch):
    monkeypatch.setattr(_warnings, "_warned", set())
    q, *rest = inputs()

    def f(q):
        return scalar(ours)(q, *rest)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ax.UnfusedWarning)
        derivative(f, q)
        derivative(f, q)
    messages = [str(w.message) for w in caught if issubclass(w.category, ax.UnfusedWarning)]
    assert len(messages) == 1
    assert messages[0].startswith("attention_ext.attention: ")


NO_TERMS = ([], None, None, None, None, [], None, None, None, 0.5, 0.0, 0.0, None)


def raw_forward(q):
    return library.forward(q, q, q, *NO_TERMS)[0]


def raw_backward(q):
    results = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2)
    return library.backward(*results, q, q, q, *results, *NO_TERMS, [True] * 6)[0]


@pytest.mark.parametrize("op", [raw_forward, raw_backward])
def test_raw_operators_raise_when_differentiated(op):
    q = torch.randn(1, 1, 2, 4)
    message = "a raw op has no derivative; call attention_ext.attention"
    with pytest.raises(RuntimeError, match=message):
        op(q.clone().requires_grad_())
    with pytest.raises(RuntimeError, match=message):
        vjp(op, q)
    with pytest.raises(RuntimeError, match=message):
        jvp(op, (q,), (q,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=message):
        op(forward_ad.make_dual(q, q))
    with torch.no_grad():
        op(q.clone().requires_grad_())
    vmap(op)(q[None])


def test_functionalize_is_refused():
    q = torch.randn(1, 1, 2, 4)
    with pytest.raises(RuntimeError, match="Functionalize"):
        torch.func.functionalize(lambda q: ax.attention(q, q, q))(q)


# the graph around it


def test_only_what_is_needed_gets_a_gradient(monkeypatch):
    arguments = inputs()
    arguments[1].requires_grad_()
    arguments[4].requires_grad_()
    seen, op = [], library.backward
    monkeypatch.setattr(library, "backward", lambda *args: seen.append(args[-1]) or op(*args))
    ours(*arguments)[0].sum().backward()
    assert seen == [[False, True, False, False, True, False]]
    assert [t.grad is not None for t in arguments] == [False, True, False, False, True, False]


def test_gradients_of_lse_alone_and_of_nothing():
    arguments = inputs(requires_grad=True)
    found, expected = (
        torch.autograd.grad(f(*arguments)[1].sum(), arguments[:2] + arguments[3:]) for f in (ours, formula)
    )
    torch.testing.assert_close(found, expected)
    (values,) = torch.autograd.grad(ours(*arguments)[1].sum(), arguments[2], allow_unused=True)
    assert values is None or not values.any()


def test_gradient_from_sum_with_expanded_key_and_value():
    q, k, v = (torch.randn(2, 3, 4, 5, dtype=F64, requires_grad=True) for _ in range(3))

    def f(attention):
        expanded = [t[:1, :1].expand(2, 3, -1, -1) for t in (k, v)]
        return torch.autograd.grad(attention(q, *expanded).sum(), (q, k, v))

    torch.testing.assert_close(f(ax.attention), f(ax.reference.attention))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_draws_the_same_dropout(reentrant):
    q, k, v = (torch.randn(2, 2, 5, 4, requires_grad=True) for _ in range(3))

    def f(q, k, v):
        return ax.attention(2 * q, k, v, mask=M.Causal(), dropout_p=0.5)

    def gradients(run):
        torch.manual_seed(3)
        for t in (q, k, v):
            t.grad = None
        run(q, k, v).square().sum().backward()
        return [t.grad for t in (q, k, v)]

    found = gradients(lambda *x: checkpoint(f, *x, use_reentrant=reentrant))
    torch.testing.assert_close(found, gradients(f), rtol=0, atol=0)


def test_saved_tensor_hooks(calls):
    arguments = inputs(requires_grad=True)
    expected = torch.autograd.grad(scalar(ours)(*arguments), arguments)
    with torch.autograd.graph.save_on_cpu():
        value = scalar(ours)(*arguments)
    torch.testing.assert_close(torch.autograd.grad(value, arguments), expected, rtol=0, atol=0)


def test_writing_to_what_is_saved_is_noticed():
    q = torch.randn(1, 1, 2, 4, requires_grad=True)
    x = q * 1
    out = ax.attention(x, x, x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_threads():
    tensors = [[torch.randn(2, 2, 17, 8, requires_grad=True) for _ in range(3)] for _ in range(4)]
    masks = [M.Causal(), None, M.SlidingWindow(3, 0), M.KeyLengths([5, 17])]

    def gradients(n):
        out = ax.attention(*tensors[n], mask=masks[n])
        return out, *torch.autograd.grad(out.square().sum(), tensors[n])

    expected = [gradients(n) for n in range(4)]
    found = [[] for _ in range(4)]

    def work(n):
        for _ in range(20):
            found[n].append(gradients(n))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for n in range(4):
        assert len(found[n]) == 20
        for result in found[n]:
            torch.testing.assert_close(result, expected[n], rtol=0, atol=0)


class Tagged(torch.Tensor):
    pass


def test_subclasses_parameters_and_modes():
    q, k, v = (torch.randn(1, 2, 3, 4) for _ in range(3))
    expected = ax.attention(q, k, v)
    parameter = torch.nn.Parameter(q)
    out = ax.attention(parameter, k, v)
    assert out.requires_grad
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    assert isinstance(ax.attention(q.as_subclass(Tagged), k, v), Tagged)
    with torch.inference_mode():
        out = ax.attention(parameter, k, v)
    assert out.is_inference()
    torch.testing.assert_close(torch.clone(out), expected, rtol=0, atol=0)
    with torch.no_grad():
        assert not ax.attention(parameter, k, v).requires_grad


def test_meta_tensors():
    q, k, v = (torch.randn(2, 3, n, 4, device="meta", requires_grad=True) for n in (5, 6, 6))
    out, lse = ax.attention(q, k, v, mask=M.Causal(), dropout_p=0.5, return_lse=True)
    assert (out.shape, lse.shape) == ((2, 3, 5, 4), (2, 3, 5))
    out.sum().backward()
    assert k.grad.shape == k.shape


@pytest.mark.parametrize("rank", [2, 3])
def test_without_batch_and_heads(rank):
    q, k, v = (torch.randn(1, 1, n, 4, dtype=F64, requires_grad=True) for n in (3, 5, 5))
    low = [t.detach()[(0,) * (4 - rank)].requires_grad_() for t in (q, k, v)]
    options = {"bias": torch.randn(3, 5, dtype=F64), "sinks": torch.randn(1, dtype=F64), "return_lse": True}
    full, found = ax.attention(q, k, v, **options), ax.attention(*low, **options)
    for a, b in zip(found, full, strict=True):
        torch.testing.assert_close(a, b[(0,) * (4 - rank)], rtol=0, atol=0)
    grads = torch.autograd.grad(found[0].square().sum(), low)
    expected = torch.autograd.grad(full[0].square().sum(), (q, k, v))
    torch.testing.assert_close(grads, tuple(g[(0,) * (4 - rank)] for g in expected), rtol=0, atol=0)
