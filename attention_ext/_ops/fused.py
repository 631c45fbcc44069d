"""What makes a torch op of a raw forward and a raw backward: routes, autograd, transforms.

    FusedOperator(call)
        -> forward                  the C++ kernel, where no gradient is wanted
        -> an autograd.Function     reverse mode: forward, then backward
        -> its twin                 the same inside torch.func transforms
        -> unfused                  forward mode and higher orders: the plain formula
        -> public                   torch.compile and torch.export: one node in the graph

The raw backward takes the gradients of the differentiable outputs, the arguments of the forward, the outputs
it saves, and `needs`, one bool for each differentiable argument; it returns one tensor for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._warnings import QUADRATIC, warn_unfused
from .transforms import after_autograd, below_autograd, forward_mode_active, transforms_active

_SAVED = object()  # stands for a tensor that ctx keeps
Tensors = tuple[Tensor, ...]


class FusedOperator:
    """One operator family. Everything it is told is in the attributes.

    Args:
        name: of the public op.
        forward, backward, public: the ops.
        call: the NamedTuple of the forward's arguments.
        differentiable: names of arguments, in the order of the backward's outputs.
        cotangents: which of the forward's outputs have gradients; the first is never None in the backward.
        saved: which of the forward's outputs the backward takes.
        formula: the plain formula, of a call: all outputs, those without gradients as they come.
        described: the formula, for the warning.
        fold: for vmap, see `forward_rule`.
    """

    def __init__(
        self,
        name: str,
        *,
        forward: Any,
        backward: Any,
        public: Any,
        call: Any,
        differentiable: tuple[str, ...],
        cotangents: tuple[int, ...],
        saved: tuple[int, ...],
        formula: Callable[[Any], Tensors],
        fold: Callable[[Any, Any, int, list[str]], tuple[Any, int] | None],
        described: str = QUADRATIC,
    ) -> None:
        self.name = name
        self.forward, self.backward, self.public = forward, backward, public
        self.call = call
        self.differentiable = differentiable
        self.cotangents, self.saved = cotangents, saved
        self.formula, self.fold = formula, fold
        self.described = described
        self.function, self.transformed, self.backward_function = _functions(self)
        library = torch.library.Library("attention_ext", "IMPL")
        library.impl(public, self._public_autograd, "Autograd", with_keyset=True)
        for op in (forward, backward):
            library.impl(op, raises_when_differentiated(op, name), "Autograd", with_keyset=True)
        torch.library.register_vmap(public, self.forward_rule(public))
        torch.library.register_vmap(forward, self.forward_rule(forward))
        torch.library.register_vmap(backward, self.backward_rule(backward))
        self._library = library

    def __call__(self, call: Any) -> Tensors:
        """The outputs, for arguments that are checked already; any derivative of them is right."""
        if torch.compiler.is_compiling():
            return self.public(*call)
        if forward_mode_active():
            return self.unfused(call)
        if transforms_active():
            return self.transformed.apply(*call)
        if torch.is_grad_enabled() and self.requires_grad(call):
            return self.function.apply(*call)
        with below_autograd():
            return self.forward(*call)

    def requires_grad(self, call: Any) -> bool:
        return any((t := getattr(call, name)) is not None and t.requires_grad for name in self.differentiable)

    def _public_autograd(self, keyset: Any, *args: Any) -> Tensors:
        call = self.call(*args)
        if transforms_active() or forward_mode_active():
            return self.unfused(call)
        if torch.is_grad_enabled() and self.requires_grad(call):
            return self.function.apply(*call)
        with below_autograd():
            return self.public.redispatch(after_autograd(keyset), *args)

    # the unfused formula

    def unfused(self, call: Any) -> Tensors:
        warn_unfused(self.name, self.described)
        return self.formula(call)

    def split_backward_args(self, args: tuple[Any, ...]) -> tuple[Tensors, Any, list[bool]]:
        """(gradients of the outputs, call, needs)"""
        n, fields = len(self.cotangents), len(self.call._fields)
        return args[:n], self.call(*args[n : n + fields]), args[-1]

    def unfused_gradients(self, *args: Any) -> tuple[Tensor | None, ...]:
        """The backward op through the formula, None where not needed: differentiable itself."""
        grads, call, needs = self.split_backward_args(args)
        names = [
            name
            for name, need in zip(self.differentiable, needs, strict=True)
            if need and getattr(call, name) is not None
        ]

        def outputs(*variables: Tensor) -> Tensors:
            found = self.unfused(call._replace(**dict(zip(names, variables, strict=True))))
            return tuple(found[i] for i in self.cotangents)

        values, pullback = torch.func.vjp(outputs, *(getattr(call, name) for name in names))
        filled = tuple(
            torch.zeros_like(v) if g is None else g.to(v.dtype) for g, v in zip(grads, values, strict=True)
        )
        found = dict(zip(names, pullback(filled), strict=True))
        return tuple(found.get(name) for name in self.differentiable)

    # vmap

    def forward_rule(self, op: Callable[..., Tensors]) -> Callable[..., Any]:
        """The vmap rule of an op, or autograd.Function, that takes the forward's arguments.

        `fold(call, dims, size, per_sample)` gives the call with all samples in one batch, the arguments named
        in per_sample once for each, and the batch rows of a sample; or None, and the samples go one by one.
        """

        def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
            call, dims, size = self.call(*args), self.call(*in_dims), info.batch_size
            folded = self.fold(call, dims, size, [])
            if folded is None:
                return one_by_one(op, args, in_dims, size)
            results = op(*folded[0])
            return _unfold(results, size, folded[1])

        return rule

    def backward_rule(self, op: Callable[..., Tensors]) -> Callable[..., Any]:
        def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
            size = info.batch_size
            _, call, needs = self.split_backward_args(args)
            _, dims, _ = self.split_backward_args(in_dims)
            wanted = [
                name
                for name, need in zip(self.differentiable, needs, strict=True)
                if need and getattr(call, name) is not None
            ]
            folded = self.fold(call, dims, size, wanted)
            if folded is None:
                return one_by_one(op, args, in_dims, size)
            n = len(self.cotangents)
            end = n + len(self.call._fields)
            others = [
                t
                if not isinstance(t, Tensor)
                else _batch_first(t, d, size).flatten(0, 1)
                if t.dim() > 1
                else t
                for t, d in zip((*args[:n], *args[end:-1]), (*in_dims[:n], *in_dims[end:-1]), strict=True)
            ]
            results = op(*others[:n], *folded[0], *others[n:], needs)
            return _unfold(results, size, folded[1])

        return rule


def _functions(operator: FusedOperator) -> tuple[Any, Any, Any]:
    """The autograd.Functions of an operator: in plain eager, inside torch.func, and of its backward."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        kept = [x for x in inputs if isinstance(x, Tensor)]
        ctx.save_for_backward(*kept, *(output[i] for i in operator.saved))
        ctx.inputs = [_SAVED if isinstance(x, Tensor) else x for x in inputs]
        ctx.mark_non_differentiable(*(t for i, t in enumerate(output) if i not in operator.cotangents))
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        grads = tuple(grads[i] for i in operator.cotangents)
        fields = operator.call._fields
        if all(g is None for g in grads):
            return (None,) * len(fields)
        kept = list(ctx.saved_tensors)
        outputs = kept[len(kept) - len(operator.saved) :]
        tensors = iter(kept)
        call = operator.call(*(next(tensors) if x is _SAVED else x for x in ctx.inputs))
        if grads[0] is None:
            grads = (torch.zeros_like(outputs[0]), *grads[1:])
        wants = dict(zip(fields, ctx.needs_input_grad, strict=True))
        needs = [wants[name] for name in operator.differentiable]
        args = (*grads, *call, *outputs, needs)
        if torch.compiler.is_compiling():  # compiled autograd
            found = operator.backward(*args)
        elif forward_mode_active():  # a dual level entered after the forward
            found = operator.unfused_gradients(*args)
        elif torch.is_grad_enabled() or transforms_active():  # create_graph=True, or inside torch.func
            found = backward_function.apply(*args)
        else:
            with below_autograd():
                found = operator.backward(*args)
        made = dict(zip(operator.differentiable, found, strict=True))
        return tuple(made[name] if name in made and wants[name] else None for name in fields)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Tensors:
            with below_autograd():
                output = operator.forward(*args)
            save(ctx, args, output)
            return output

    class Transformed(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Tensors:
            with below_autograd():
                return operator.forward(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
            save(ctx, inputs, output)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
            return operator.forward_rule(Transformed.apply)(info, in_dims, *args)

    class Backward(torch.autograd.Function):
        """The fused backward where its own derivative may be asked for; that one is unfused."""

        @staticmethod
        def forward(*args: Any) -> Tensors:
            with below_autograd():
                return operator.backward(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
            ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
            ctx.inputs = [_SAVED if isinstance(x, Tensor) else x for x in inputs]

        @staticmethod
        def backward(ctx: Any, *cotangents: Tensor) -> Any:
            saved = iter(ctx.saved_tensors)
            args = [next(saved) if x is _SAVED else x for x in ctx.inputs]
            # The saved outputs are functions of the other arguments, and the formula starts from those.
            end = len(operator.cotangents) + len(operator.call._fields)
            wanted = [i for i, need in enumerate(ctx.needs_input_grad[:end]) if need]
            needed = [
                i
                for i, name in enumerate(operator.differentiable)
                if args[-1][i] and args[len(operator.cotangents) + fields.index(name)] is not None
            ]

            def formula(*variables: Tensor) -> Tensors:
                filled = list(args)
                for i, variable in zip(wanted, variables, strict=True):
                    filled[i] = variable
                found = operator.unfused_gradients(*filled)
                return tuple(found[i] for i in needed)

            _, pullback = torch.func.vjp(formula, *(args[i] for i in wanted))
            found = dict(zip(wanted, pullback(tuple(cotangents[i] for i in needed)), strict=True))
            return tuple(found.get(i) for i in range(len(args)))

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
            return operator.backward_rule(Backward.apply)(info, in_dims, *args)

    fields = operator.call._fields
    Eager.backward = staticmethod(backward)
    Transformed.backward = staticmethod(backward)
    backward_function = Backward
    for function, suffix in ((Eager, ""), (Transformed, "_transformed"), (Backward, "_backward")):
        function.__name__ = function.__qualname__ = operator.name + suffix
    return Eager, Transformed, Backward


def raises_when_differentiated(op: Any, name: str) -> Any:
    """The Autograd kernel of a raw op: by itself the dispatcher would let its derivative be zero."""

    def kernel(keyset: Any, *args: Any) -> Any:
        if asks_for_derivative(args):
            raise RuntimeError(f"{op}: a raw op has no derivative; call attention_ext.{name}")
        with below_autograd():
            return op.redispatch(after_autograd(keyset), *args)

    return kernel


def asks_for_derivative(args: tuple[Any, ...]) -> bool:
    tensors = [x for x in args if isinstance(x, Tensor)]
    unpack = torch.autograd.forward_ad.unpack_dual
    return (
        transforms_active()
        or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        or (forward_mode_active() and any(unpack(t).tangent is not None for t in tensors))
    )


def _batch_first(t: Tensor, dim: int | None, size: int) -> Tensor:
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)


def _unfold(results: Tensors, size: int, rows: int) -> Any:
    """Outputs of the folded call, per sample; an output that isn't there is empty and has no samples."""
    present = [t.dim() > 1 for t in results]
    unfolded = tuple(t.unflatten(0, (size, rows)) if p else t for t, p in zip(results, present, strict=True))
    return unfolded, tuple(0 if p else None for p in present)


def one_by_one(op: Callable[..., Tensors], args: tuple[Any, ...], dims: tuple[Any, ...], size: int) -> Any:
    """What a vmap rule returns where the samples can't share a call."""
    results = [op(*(sample(x, d, n) for x, d in zip(args, dims, strict=True))) for n in range(size)]
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def sample(x: Any, dim: Any, n: int) -> Any:
    """Sample n of a batched argument, which may be a list of tensors."""
    if isinstance(dim, (list, tuple)):
        return [sample(t, d, n) for t, d in zip(x, dim, strict=True)]
    return x.select(dim, n) if isinstance(dim, int) else x
