"""What takes part in a measurement: ours and its peers, each as a function to be called again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import Case

__all__ = ["Call", "Contender", "Inputs", "NotHere", "Results", "Work", "make_call", "make_inputs"]

Results = dict[str, Tensor]
Call = Callable[[], Results]


class NotHere(Exception):
    """A peer can't take part on this machine; the message says why. Raised by Contender.build."""


@dataclass(frozen=True)
class Inputs:
    """tensors: those of the forward, by name. grad_out: None where no gradients are made."""

    tensors: dict[str, Tensor]
    grad_out: Tensor | None

    def leaves(self) -> dict[str, Tensor]:
        """The tensors, fresh, as leaves that want gradients if there are to be any."""
        wanted = self.grad_out is not None
        return {name: t.detach().requires_grad_(wanted) for name, t in self.tensors.items()}


@dataclass(frozen=True)
class Work:
    """forward: makes the output. leaves: what it is differentiated by, by name."""

    forward: Callable[[], Tensor]
    leaves: dict[str, Tensor]


@dataclass(frozen=True)
class Contender:
    """title: for people. build: the work of a case, masks in the form it wants included.

    quick: False if it takes long to get ready.
    instead: for ours under other conditions, the case it does instead of the one measured; its results are
    then compared with SDPA's of that case.
    """

    title: str
    build: Callable[[Case, Inputs], Work]
    quick: bool = True
    instead: Callable[[Case], Case] | None = None


def make_inputs(case: Case, device: torch.device | str = "cpu") -> Inputs:
    """The same numbers for every contender, in every layout and in every process."""
    s = case.shape
    generator = torch.Generator(device).manual_seed(0)
    drawn = {"generator": generator, "dtype": getattr(torch, case.dtype), "device": device}

    def randn(*size: int) -> Tensor:
        return torch.randn(size, **drawn)

    def rows(*size: int) -> Tensor:
        x = randn(*size)
        return x if case.layout == "BHLD" else x.transpose(1, 2).contiguous().transpose(1, 2)

    if case.op == "multihead_attention":
        size = s.B, s.Lq, s.H * s.D
        return Inputs({"x": randn(*size)}, randn(*size) if case.grad else None)
    tensors = {
        "query": rows(s.B, s.H, s.Lq, s.D),
        "key": rows(s.B, s.Hkv, s.Lk, s.D),
        "value": rows(s.B, s.Hkv, s.Lk, s.Dv),
    }
    grad_out = rows(s.B, s.H, s.Lq, s.Dv) if case.grad else None
    if case.pair_bias:
        tensors["bias"] = randn(1, s.H, s.Lq, s.Lk)
    if case.op == "delta_rule":
        tensors["beta"] = torch.rand(s.B, s.H, s.Lq, **drawn)
    if case.variant == "decay":  # most of them weak
        tensors["decay"] = -torch.rand(s.B, s.H, s.Lq, **drawn).pow(3)
    if case.op == "linear_attention_step":
        tensors["state"] = randn(s.B, s.H, s.D, s.Dv)
    return Inputs(tensors, grad_out)


def make_call(case: Case, contender: Contender, inputs: Inputs) -> Call:
    """The contender's work on the inputs of the case: "out", and "d..." of each leaf.

    Grad mode is the caller's: on if case.grad, else off.
    """
    if contender.instead is not None:
        case = contender.instead(case)
        inputs = make_inputs(case)
    work = contender.build(case, inputs)
    if not case.grad:
        return lambda: {"out": work.forward()}
    names, leaves = [f"d{name}" for name in work.leaves], tuple(work.leaves.values())

    def results(out: Tensor, **options: bool) -> Results:
        gradients = torch.autograd.grad(out, leaves, inputs.grad_out, **options)
        return {"out": out.detach()} | dict(zip(names, gradients, strict=True))

    if case.passes == "both":
        return lambda: results(work.forward())
    out = work.forward()
    return lambda: results(out, retain_graph=True)
