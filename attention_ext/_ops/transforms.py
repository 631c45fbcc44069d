"""torch's private functions: the only module that touches them, one wrapper each.

Where torch lacks one, the call raises: a wrong guess here would be a silently wrong derivative.
tests/test_private_torch.py holds a canary for each.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

T = TypeVar("T")


def transforms_active() -> bool:
    """Is a torch.func transform running? In an Autograd kernel: is one running that differentiates?

    The dispatcher is done with those that only batch when it comes to an Autograd kernel.
    """
    try:
        return torch._C._are_functorch_transforms_active()
    except AttributeError as error:
        raise _missing("torch._C._are_functorch_transforms_active") from error


def forward_mode_active() -> bool:
    """Is a level of forward-mode differentiation open, by torch.func.jvp or torch.autograd.forward_ad?"""
    try:
        return forward_ad._current_level >= 0
    except AttributeError as error:
        raise _missing("torch.autograd.forward_ad._current_level") from error


def below_autograd() -> AbstractContextManager[None]:
    """Ops called inside skip their Autograd kernels."""
    try:
        return torch._C._AutoDispatchBelowAutograd()
    except AttributeError as error:
        raise _missing("torch._C._AutoDispatchBelowAutograd") from error


def after_autograd(keyset: Any) -> Any:
    """The dispatch keys that come after Autograd."""
    try:
        return keyset & torch._C._after_autograd_keyset
    except AttributeError as error:
        raise _missing("torch._C._after_autograd_keyset") from error


def watch_ops(seen: Callable[[Any, tuple[Any, ...]], None]) -> AbstractContextManager[Any]:
    """Within it, seen(op, args) is called before each op that runs, below autograd."""
    try:
        mode = torch.utils._python_dispatch.TorchDispatchMode
    except AttributeError as error:
        raise _missing("torch.utils._python_dispatch.TorchDispatchMode") from error

    class Watch(mode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen(op, args)
            return op(*args, **(kwargs or {}))

    return Watch()


def is_fake(t: Tensor) -> bool:
    """Has t no values, as where torch.compile only asks for shapes? torch.func transforms may wrap it."""
    try:
        return torch._subclasses.fake_tensor.is_fake(t)
    except AttributeError as error:
        raise _missing("torch._subclasses.fake_tensor.is_fake") from error


def schema_of(op: Any) -> str:
    """An op's schema, as it is written."""
    try:
        return str(op._schema)
    except AttributeError as error:
        raise _missing("OpOverload._schema") from error


def wrapper_subclass(cls: Any, shape: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A tensor of class cls that has a shape and no storage: what it holds is up to the class."""
    try:
        return cls._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
    except AttributeError as error:
        raise _missing("torch.Tensor._make_wrapper_subclass") from error


def register_pytree_class(
    cls: type[T],
    flatten: Callable[[T], tuple[list[Any], list[Any]]],
    unflatten: Callable[[Sequence[Any], list[Any]], T],
    names: Callable[[T], Sequence[str]],
) -> None:
    """Makes `cls` a pytree node, so that torch.export and torch.func see the tensors inside.

    flatten gives (children, constants), unflatten takes them, names is the children's.

    Names must be identifiers. Constants must be None, bool, int, float or str, since torch.export.save
    writes them as JSON.
    """

    try:
        pytree = torch.utils._pytree
        key_of, register = pytree.GetAttrKey, pytree.register_pytree_node
    except AttributeError as error:
        raise _missing("torch.utils._pytree") from error

    def flatten_with_keys(node: T) -> tuple[list[tuple[Any, Any]], list[Any]]:
        children, constants = flatten(node)
        keys = [key_of(name) for name in names(node)]
        return list(zip(keys, children, strict=True)), constants

    register(
        cls,
        flatten,
        unflatten,
        # the public module, not the private file: saved programs hold this name
        serialized_type_name=f"{cls.__module__.partition('._')[0]}.{cls.__qualname__}",
        flatten_with_keys_fn=flatten_with_keys,
    )


def _missing(name: str) -> RuntimeError:
    return RuntimeError(f"attention_ext needs {name}, which torch {torch.__version__} does not have")
