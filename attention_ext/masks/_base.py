"""What all masks share, the lowered form, and the intersection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import and_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._ops.transforms import register_pytree_class

UNBOUNDED = 2**62  # in a band: no limit on this side
_DENSITY_CHUNK = 2**24  # pairs looked at together


class LoweredMask(NamedTuple):
    """What the operators take: a band, and what restricts it further. Schema: csrc/README.md.

    band is [] or [lower, upper, dilation, phase, global_tokens, global_shift]: lower <= j - i <= upper.
    """

    band: list[int]
    band_offset: Tensor | None  # int64 (B,), added to i
    key_lengths: Tensor | None  # int64 (B,), 0..Lk
    mask_bits: Tensor | None  # int64 (B or 1, Hq or 1, Lq or 1, ceil(Lk / 64))
    row_bounds: Tensor | None
    block_table: list[Tensor]


NO_MASK = LoweredMask([], None, None, None, None, [])


class Mask:
    """Base of all masks: an immutable value, and a pytree whose leaves are the tensors inside.

    A subclass names its fields, sets them in __init__ with `_set`, and gives `_allowed` and `_lower`.
    """

    _tensor_fields: tuple[str, ...] = ()
    _plain_fields: tuple[str, ...] = ()
    _made: list[int | None] | None = None
    _cache: tuple[Any, LoweredMask] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        register_pytree_class(cls, cls._flatten, cls._unflatten, cls._child_names)

    # The value.

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        if not torch.compiler.is_compiling():
            object.__setattr__(self, "_made", self._versions())

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot delete {name!r}")

    def _child_names(self) -> Sequence[str]:
        return self._tensor_fields

    def _flatten(self) -> tuple[list[Any], list[Any]]:
        children = [getattr(self, name) for name in self._tensor_fields]
        return children, [getattr(self, name) for name in self._plain_fields]

    @classmethod
    def _unflatten(cls, children: Sequence[Any], plain: Sequence[Any]) -> Mask:
        # Without checks: pytree functions put anything in the place of a tensor.
        mask = object.__new__(cls)
        mask.__setstate__((children, plain))
        return mask

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._tensor_fields]

    def _versions(self) -> list[int | None]:
        return [_version(tensor) for tensor in self._tensors()]

    def _key(self) -> tuple[Any, ...]:
        # The version when made and the present one: writing to a tensor in between makes it another value.
        tensors = self._tensors()
        made = self._made or [None] * len(tensors)
        return (type(self), *zip(map(id, tensors), made, self._versions(), strict=True), *self._flatten()[1])

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Mask) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __getstate__(self) -> tuple[list[Any], list[Any]]:
        return self._flatten()

    def __setstate__(self, state: tuple[Sequence[Any], Sequence[Any]]) -> None:
        names = (*self._tensor_fields, *self._plain_fields)
        self._set(**dict(zip(names, (*state[0], *state[1]), strict=True)))

    def __repr__(self) -> str:
        fields = [
            f"{name}={_show(getattr(self, name))}" for name in (*self._tensor_fields, *self._plain_fields)
        ]
        return f"{type(self).__name__}({', '.join(fields)})"

    def to(self, device: torch.device | str | int) -> Mask:
        """The same mask with its tensors on `device`; itself where they are there already."""
        children, plain = self._flatten()
        moved = [child.to(device) for child in children]
        if all(a is b for a, b in zip(children, moved, strict=True)):
            return self
        return self._unflatten(moved, plain)

    # What it allows.

    def __and__(self, other: Mask) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        return Intersection((*_parts(self), *_parts(other)))

    def dense(self, Lq: int, Lk: int) -> Tensor:
        """The mask as a bool tensor, True = attend, that broadcasts to (B, Hq, Lq, Lk).

        Always 4-D, with size 1 in every dimension but the last along which the mask does not vary.
        Raises ValueError if the tensors inside don't fit Lq and Lk.
        """
        i = torch.arange(Lq, device=self._device())[:, None]
        j = torch.arange(Lk, device=self._device())[None, :]
        return self._allowed(i, j, Lq, Lk)

    def density(self, Lq: int, Lk: int) -> float:
        """The share of the pairs (query, key) that are allowed; 0.0 if there are no pairs."""
        if Lq == 0 or Lk == 0:
            return 0.0
        j = torch.arange(Lk, device=self._device())[None, :]
        total, step = 0.0, max(1, _DENSITY_CHUNK // Lk)
        for start in range(0, Lq, step):
            i = torch.arange(start, min(start + step, Lq), device=self._device())[:, None]
            allowed = self._allowed(i, j, Lq, Lk)
            total += float(allowed.double().mean()) * len(i) if allowed.numel() else 0.0
        return total / Lq

    def _device(self) -> torch.device | None:
        tensors = self._tensors()
        return tensors[0].device if tensors else None

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        """dense() for the queries i (rows, 1) and all keys j (1, Lk)."""
        raise NotImplementedError

    # What the operators are told.

    def lower(self, B: int, Hq: int, Lq: int, Lk: int, device: torch.device) -> LoweredMask:
        """The operators' arguments for attention of these sizes, which may be symbolic, on this device.

        What is computed from tensors is kept on the mask until one of them changes.
        Raises ValueError if the tensors don't fit the sizes or stand on another device.
        """
        tensors = self._tensors()
        for tensor in tensors:
            if tensor.device != device:
                where = f"on the query's device {device}, got {tensor.device}"
                raise ValueError(f"mask: expected tensors {where}; mask.to(device) moves them")
        if not tensors or torch.compiler.is_compiling():
            return self._lower(B, Hq, Lq, Lk)
        key = (B, Hq, Lq, Lk, *self._versions())
        cache = self._cache
        if cache is not None and cache[0] == key:
            return cache[1]
        if any(type(part) is not int for part in key):  # a symbolic size, a tensor without a version
            return self._lower(B, Hq, Lq, Lk)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):  # what is made in inference mode cannot serve in training later
                lowered = self._lower(B, Hq, Lq, Lk)
        else:
            lowered = self._lower(B, Hq, Lq, Lk)
        if all(type(part) is Tensor for part in lowered if isinstance(part, Tensor)):
            # not a fake tensor: it must not outlive the tracing it belongs to
            object.__setattr__(self, "_cache", (key, lowered))
        return lowered

    def _lower(self, B: int, Hq: int, Lq: int, Lk: int) -> LoweredMask:
        raise NotImplementedError


class Intersection(Mask):
    """What all of the parts allow; written a & b."""

    parts: tuple[Mask, ...]

    def __init__(self, parts: Sequence[Mask]) -> None:
        self._set(parts=tuple(parts))

    def _child_names(self) -> Sequence[str]:
        return [f"part{n}" for n in range(len(self.parts))]

    def _flatten(self) -> tuple[list[Any], list[Any]]:
        return list(self.parts), []

    def __setstate__(self, state: tuple[Sequence[Any], Sequence[Any]]) -> None:
        self._set(parts=tuple(state[0]))

    def _tensors(self) -> list[Tensor]:
        return [tensor for part in self.parts if isinstance(part, Mask) for tensor in part._tensors()]

    def _key(self) -> tuple[Any, ...]:
        return (type(self), *(part._key() for part in self.parts))

    def __repr__(self) -> str:
        return " & ".join(map(repr, self.parts))

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        parts = [part._allowed(i, j, Lq, Lk) for part in self.parts]
        try:
            torch.broadcast_shapes(*(part.shape for part in parts))
        except RuntimeError:
            raise ValueError(f"mask: expected parts of one batch size and head count, got {self!r}") from None
        return reduce(and_, parts)

    def _lower(self, B: int, Hq: int, Lq: int, Lk: int) -> LoweredMask:
        return reduce(_meet, [part._lower(B, Hq, Lq, Lk) for part in self.parts])


def _parts(mask: Mask) -> tuple[Mask, ...]:
    return mask.parts if isinstance(mask, Intersection) else (mask,)


def _meet(a: LoweredMask, b: LoweredMask) -> LoweredMask:
    band = a.band or b.band
    if a.band and b.band:
        lower = _bound(max, torch.sym_max, a.band[0], b.band[0])
        upper = _bound(min, torch.sym_min, a.band[1], b.band[1])
        band = [lower, upper, *band[2:]]
    return NO_MASK._replace(
        band=band,
        key_lengths=_either(torch.minimum, a.key_lengths, b.key_lengths),
        mask_bits=_either(torch.bitwise_and, a.mask_bits, b.mask_bits),
    )


def _bound(
    choose: Callable[[int, int], int], choose_symbolic: Callable[[Any, Any], Any], x: int, y: int
) -> int:
    # Plain integers are asked first: torch's compiler should not see a maximum of a size and 2**62.
    for one, other in ((x, y), (y, x)):
        if isinstance(one, int) and abs(one) == UNBOUNDED:
            return other
    # torch.compile knows min and max; outside of it they would fix which of two symbolic sizes is larger.
    return (choose if isinstance(x, int) and isinstance(y, int) else choose_symbolic)(x, y)


def _either(both: Callable[[Tensor, Tensor], Tensor], a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return both(a, b)


def _version(tensor: Any) -> int | None:
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else None


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"<{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}>"
    return repr(value)
