"""Registers a class with torch's pytree, so that torch.export and torch.func see the tensors inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

# Private by its path, yet what torch.export's messages tell users to call; the public register_dataclass
# makes every field a leaf. Canary: tests/test_masks_in_graphs.py exports with masks as arguments.
from torch.utils import _pytree

T = TypeVar("T")


def register_pytree_class(
    cls: type[T],
    flatten: Callable[[T], tuple[list[Any], list[Any]]],
    unflatten: Callable[[Sequence[Any], list[Any]], T],
    names: Callable[[T], Sequence[str]],
) -> None:
    """Makes `cls` a node: flatten gives (children, constants), unflatten takes them, names is the children's.

    Names must be identifiers. Constants must be None, bool, int, float or str, since torch.export.save
    writes them as JSON.
    """

    def flatten_with_keys(node: T) -> tuple[list[tuple[Any, Any]], list[Any]]:
        children, constants = flatten(node)
        keys = [_pytree.GetAttrKey(name) for name in names(node)]
        return list(zip(keys, children, strict=True)), constants

    _pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        # the public module, not the private file: saved programs hold this name
        serialized_type_name=f"{cls.__module__.partition('._')[0]}.{cls.__qualname__}",
        flatten_with_keys_fn=flatten_with_keys,
    )
