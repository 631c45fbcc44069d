"""Attention in the autograd graph and beside torch's other machinery: checkpoints, threads, modes."""

import subprocess
import sys
import threading

import pytest
import torch
from derivative_cases import F64, M, formula, inputs, ours, scalar
from torch.utils.checkpoint import checkpoint

import attention_ext as ax
from attention_ext._ops import library

# The routes do not depend on the instruction set, and values and gradients have their own tests.
pytestmark = pytest.mark.once


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


def test_saved_tensor_hooks(monkeypatch):
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


AFTER_FORK = """
import os, sys
import torch
import attention_ext as ax

torch.set_num_threads(2)
tensors = [torch.randn(1, 2, 70, 8, requires_grad=True) for _ in range(3)]

def gradients():
    out = ax.attention(*tensors, mask=ax.masks.Causal())
    return torch.autograd.grad(out.square().sum(), tensors)

expected = gradients()
if (child := os.fork()) == 0:
    torch.set_num_threads(1)  # as DataLoader does: of more, OpenMP has none after a fork
    os._exit(0 if all(map(torch.equal, gradients(), expected)) else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.cpu_only("a fork")
def test_after_fork():
    """In a process of its own: torch refuses a backward after a fork once its autograd has run threads."""
    run = subprocess.run([sys.executable, "-c", AFTER_FORK], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


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
