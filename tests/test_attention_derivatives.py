"""Attention's derivatives beyond a plain backward: right or an error, and what is fused stays fused."""

import warnings

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from derivative_cases import (
    ALL,
    F64,
    LENGTHS,
    M,
    count_calls,
    everything,
    formula,
    inputs,
    ours,
    scalar,
    unfused_is_an_error,
)
from torch.autograd import functional as autograd_functional
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import attention_ext as ax
from attention_ext import _warnings
from attention_ext._ops import attention_unfused, library
from attention_ext._ops.attention_schema import Call

# The routes do not depend on the instruction set, and values and gradients have their own tests.
pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore::attention_ext.UnfusedWarning")]


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


# what is fused, what warns, what raises


@unfused_is_an_error()
def test_first_order_is_fused(monkeypatch):
    calls = count_calls(monkeypatch)
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
NOTHING = {
    "band": [],
    "band_offset": None,
    "key_lengths": None,
    "mask_bits": None,
    "bias": None,
    "sinks": None,
    "alibi_slopes": None,
    "softcap": 0.0,
    "dropout_p": 0.0,
}


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


def test_the_formula_knows_every_part_of_a_call():
    q, k, v, bias, sinks, slopes = inputs()
    bits = library.pack_mask_bits(torch.rand(1, 2, 3, 4) > 0.2)
    band, offset = [-2, 1, 1, 0, 0, 0], torch.tensor([1, 0])
    lengths, seed = torch.tensor([4, 3]), torch.tensor(7)
    call = Call(
        q, k, v, band, offset, lengths, bits, None, [], bias, sinks, slopes, 0.6, 3.0, 0.3, seed
    )  # fmt: skip
    expected = library.forward(*call)
    torch.testing.assert_close(attention_unfused.attention(call), expected)
    for name, value in NOTHING.items():  # each changes the result, or it would prove nothing
        assert not torch.equal(attention_unfused.attention(call._replace(**{name: value}))[0], expected[0]), (
            name
        )


@pytest.mark.parametrize("part", [{"band": [0, 1, 1, 0, 4, 0]}, {"row_bounds": LENGTHS}])
def test_the_formula_refuses_the_reserved_parts(part):
    q, k, v, *_ = inputs()
    call = Call(q, k, v, *NO_TERMS)._replace(**part)
    with pytest.raises(ValueError, match="reserved parts of the mask"):
        attention_unfused.attention(call)


def test_functionalize_is_refused():
    q = torch.randn(1, 1, 2, 4)
    with pytest.raises(RuntimeError, match="Functionalize"):
        torch.func.functionalize(lambda q: ax.attention(q, q, q))(q)
