"""What all masks share, and their algebra: a & b, a | b, ~a."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import and_, or_
from typing import Any

import torch
from torch import Tensor

from .._ops.transforms import register_pytree_class, transforms_active
from . import _lowering, _tiles
from ._kept import KeptTables
from ._lowering import (
    NO_MASK,
    UNBOUNDED,
    LoweredMask,
    Program,
    check_heads,
    is_built,
    lower_program,
    meet,
)
from ._rule import Rule, band_density, unbounded

_DENSITY_CHUNK = 2**24  # pairs looked at together
_tables = KeptTables(most=64)


class Mask:
    """Base of all masks: an immutable value, and a pytree whose leaves are the tensors inside.

    A subclass names its fields, sets them in __init__ with `_set`, and gives `_allowed`, the definition, and
    `_emit`, the same for the kernels. One that reaches the operators without a block table gives `_rule` or
    `_lower`, too, and is `_plain`.
    """

    _tensor_fields: tuple[str, ...] = ()
    _plain_fields: tuple[str, ...] = ()
    _plain = False  # `_lower` gives no block table
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
        # The last of the tensors may be None, which pytree functions would take for a leaf.
        return [name for name in self._tensor_fields if getattr(self, name) is not None]

    def _flatten(self) -> tuple[list[Any], list[Any]]:
        children = [getattr(self, name) for name in self._child_names()]
        # Lists, not tuples: what torch.export.save writes as JSON comes back as lists.
        plain = [getattr(self, name) for name in self._plain_fields]
        return children, [list(x) if isinstance(x, tuple) else x for x in plain]

    @classmethod
    def _unflatten(cls, children: Sequence[Any], plain: Sequence[Any]) -> Mask:
        # Without checks: pytree functions put anything in the place of a tensor.
        mask = object.__new__(cls)
        mask.__setstate__((children, plain))
        return mask

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._child_names()]

    def _versions(self) -> list[int | None]:
        return [_version(tensor) for tensor in self._tensors()]

    def _key(self) -> tuple[Any, ...]:
        # The version when made and the present one: writing to a tensor in between makes it another value.
        tensors = self._tensors()
        made = self._made or [None] * len(tensors)
        plain = [getattr(self, name) for name in self._plain_fields]
        return (type(self), *zip(map(id, tensors), made, self._versions(), strict=True), *plain)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Mask) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __getstate__(self) -> tuple[list[Any], list[Any]]:
        return self._flatten()

    def __setstate__(self, state: tuple[Sequence[Any], Sequence[Any]]) -> None:
        names = (*self._tensor_fields, *self._plain_fields)
        absent = [None] * (len(self._tensor_fields) - len(state[0]))
        plain = [tuple(x) if isinstance(x, list) else x for x in state[1]]
        self._set(**dict(zip(names, (*state[0], *absent, *plain), strict=True)))

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
        return Intersection((*_parts(self, Intersection), *_parts(other, Intersection)))

    def dense(self, Lq: int, Lk: int) -> Tensor:
        """The mask as a bool tensor, True = attend, that broadcasts to (B, Hq, Lq, Lk).

        Always 4-D, with size 1 in every dimension but the last along which the mask does not vary.
        Raises ValueError if the tensors inside don't fit Lq and Lk.
        """
        i = torch.arange(Lq, device=self._device())[:, None]
        j = torch.arange(Lk, device=self._device())[None, :]
        return self._allowed(i, j, Lq, Lk)

    def __or__(self, other: Mask) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        return Union((*_parts(self, Union), *_parts(other, Union)))

    def __invert__(self) -> Mask:
        return Complement(self)

    def density(self, Lq: int, Lk: int) -> float:
        """The share of the pairs (query, key) that are allowed; 0.0 if there are no pairs."""
        if Lq == 0 or Lk == 0:
            return 0.0
        rule = self._rule()
        if rule is not None and not rule.dilated:
            return band_density(rule, Lq, Lk)
        if not self._plain:
            return _tiles.table_density(self._table(Lq, Lk), Lq, Lk)
        j = torch.arange(Lk, device=self._device())[None, :]
        total, step = 0.0, max(1, _DENSITY_CHUNK // Lk)
        for start in range(0, Lq, step):
            i = torch.arange(start, min(start + step, Lq), device=self._device())[:, None]
            allowed = self._allowed(i, j, Lq, Lk)
            total += float(allowed.double().mean()) * len(i) if allowed.numel() else 0.0
        return total / Lq

    def plot(self, Lq: int | None = None, Lk: int | None = None, *, b: int = 0, h: int = 0, ax: Any = None):
        """Draws the 64 x 64 tiles of one row of the batch and one head: skipped, partial, full.

        Lq, Lk: None is the length the mask was made for, or 1024 where it fits any; Lk is Lq then.
        ax: matplotlib axes to draw on; None makes a figure. Returns the axes. Needs matplotlib.
        """
        own = self._own_sizes() or (1024, None)
        Lq = own[0] if Lq is None else Lq
        Lk = (own[1] or Lq) if Lk is None else Lk
        return _tiles.plot_table(self._table(Lq, Lk), Lq, Lk, b, h, ax, repr(self))

    def tiles(self, Lq: int, Lk: int) -> Mask:
        """The same pairs for these lengths as a `Tiles`, the kernels' table, built here and now.

        Inside torch.compile it leaves nothing to build: of a mask with tensors on a GPU a graph builds the
        table anew in each call, which waits for the GPU and can be no part of a CUDA graph. That of
        :class:`Selected`, alone or with a :class:`Causal`, the GPU makes without that.
        """
        from ._blocks import Tiles

        return Tiles(*self._table(Lq, Lk)[1:], Lq, Lk).to(self._device() or "cpu")

    def _own_sizes(self) -> tuple[int, int] | None:
        """(Lq, Lk) where the mask fits no others."""
        return None

    def _table(self, Lq: int, Lk: int) -> list[Tensor]:
        """The whole mask as a built table, on the CPU."""
        program = Program()
        self.to("cpu")._emit(program)
        return lower_program(program, Lq, Lk)

    def _device(self) -> torch.device | None:
        tensors = self._tensors()
        return tensors[0].device if tensors else None

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        """dense() for the queries i (rows, 1) and all keys j (1, Lk)."""
        raise NotImplementedError

    # What the operators are told.

    def lower(self, B: int, Hq: int, Lq: int, Lk: int, device: torch.device) -> LoweredMask:
        """The operators' arguments for attention of these sizes, which may be symbolic, on this device.

        The answer is kept on the mask until a tensor inside changes, or another size is asked for.
        Raises ValueError if the tensors don't fit the sizes or stand on another device.
        """
        tensors = self._tensors()
        for tensor in tensors:
            if tensor.device != device:
                where = f"on the query's device {device}, got {tensor.device}"
                raise ValueError(f"mask: expected tensors {where}; mask.to(device) moves them")
        if torch.compiler.is_compiling():
            return self._lower(B, Hq, Lq, Lk)
        key = (B, Hq, Lq, Lk, *self._versions())
        cache = self._cache
        if cache is not None and cache[:2] == (key, device):
            return cache[2]
        if any(type(part) is not int for part in key):  # a symbolic size, a tensor without a version
            return self._lower(B, Hq, Lq, Lk)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):  # what is made in inference mode cannot serve in training later
                lowered = self._lower(B, Hq, Lq, Lk).on(device)
        else:
            lowered = self._lower(B, Hq, Lq, Lk).on(device)
        made = [t for t in (*lowered[1:5], *lowered.block_table) if t is not None]
        if all(type(t) is Tensor for t in made) and not (lowered.block_table and transforms_active()):
            # No fake tensor: it must not outlive the tracing it belongs to. No table that is yet to be built.
            object.__setattr__(self, "_cache", (key, device, lowered))
        return lowered

    def _lower(self, B: int, Hq: int, Lq: int, Lk: int) -> LoweredMask:
        rule = self._rule()
        if rule is not None:
            return NO_MASK._replace(band=rule.band(Lq, Lk))
        return self._lower_to_table(B, Hq, Lq, Lk)

    def _lower_to_table(self, B: int, Hq: int, Lq: int, Lk: int) -> LoweredMask:
        tensors = self._tensors()
        keepable = tensors and not torch.compiler.is_compiling() and not transforms_active()
        if not keepable or None in self._versions() or any(type(t) is not Tensor for t in tensors):
            return NO_MASK._replace(block_table=self._new_table(B, Hq, Lq, Lk))
        key = self._key(), Lq, Lk
        table = _tables.get(key)
        if table is not None:
            check_heads(table, B, Hq)
        else:
            table = self._new_table(B, Hq, Lq, Lk)
            if is_built(table):
                _tables.keep(key, tensors, table)
        return NO_MASK._replace(block_table=table)

    def _new_table(self, B: int, Hq: int, Lq: int, Lk: int) -> list[Tensor]:
        program = Program()
        self._emit(program)
        return lower_program(program, Lq, Lk, B, Hq)

    def _rule(self) -> Rule | None:
        """The mask as a band, if it is one for all sizes."""
        return None

    def _emit(self, program: Program) -> None:
        """Writes the mask to a program."""
        raise NotImplementedError


class _Compound(Mask):
    """Several masks, joined."""

    _opcode: int
    _sign: str
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

    def _own_sizes(self) -> tuple[int, int] | None:
        return next(filter(None, (part._own_sizes() for part in self.parts)), None)

    def __repr__(self) -> str:
        return self._sign.join(_repr_inside(part, type(self)) for part in self.parts)

    def _emit(self, program: Program) -> None:
        for n, part in enumerate(self.parts):
            part._emit(program)
            if n:
                program.add(self._opcode)

    def _dense_parts(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> list[Tensor]:
        parts = [part._allowed(i, j, Lq, Lk) for part in self.parts]
        try:
            torch.broadcast_shapes(*(part.shape for part in parts))
        except RuntimeError:
            raise ValueError(f"mask: expected parts of one batch size and head count, got {self!r}") from None
        return parts


class Intersection(_Compound):
    """What all of the parts allow; written a & b."""

    _opcode, _sign = _lowering.AND, " & "

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        return reduce(and_, self._dense_parts(i, j, Lq, Lk))

    @property
    def _plain(self) -> bool:
        return not self._split()[1]

    def _rule(self) -> Rule | None:
        rules = [part._rule() for part in self.parts]
        if any(rule is None or rule.dilated or rule.at_end != rules[0].at_end for rule in rules):
            return rules[0] if len(rules) == 1 else None
        return Rule(max(r.lower for r in rules), min(r.upper for r in rules), 1, 0, rules[0].at_end)

    def _split(self) -> tuple[list[Mask], list[Mask]]:
        """The parts that reach the kernels as they are, and those that go into one block table."""
        apart, rest, dilated = [], [], None
        for part in self.parts:
            rule = part._rule()
            if rule is not None and rule.dilated:
                dilated = dilated or rule[2:]
                (apart if rule[2:] == dilated else rest).append(part)
            else:
                (apart if rule is not None or part._plain else rest).append(part)
        return apart, rest

    def _lower(self, B: int, Hq: int, Lq: int, Lk: int) -> LoweredMask:
        apart, rest = self._split()
        lowered = [part._lower(B, Hq, Lq, Lk) for part in apart]
        if len(rest) == 1 and rest[0]._rule() is None:
            device = rest[0]._device() or torch.device("cpu")  # where a table without tensors is built
            lowered.append(rest[0].lower(B, Hq, Lq, Lk, device))  # which keeps it
        elif rest:
            lowered.append(Intersection(rest)._lower_to_table(B, Hq, Lq, Lk))
        return reduce(meet, lowered)


class Union(_Compound):
    """What any of the parts allows; written a | b."""

    _opcode, _sign = _lowering.OR, " | "

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        return reduce(or_, self._dense_parts(i, j, Lq, Lk))

    @property
    def _plain(self) -> bool:
        return self._rule() is not None

    def _rule(self) -> Rule | None:
        """One band where the parts are bands that touch each other."""
        rules = [part._rule() for part in self.parts]
        if any(rule is None or rule.dilated or rule.at_end != rules[0].at_end for rule in rules):
            return rules[0] if len(rules) == 1 else None
        rules.sort()
        lower, upper = rules[0][:2]
        for rule in rules[1:]:
            if rule.lower > upper + 1:
                return None
            upper = max(upper, rule.upper)
        return Rule(lower, upper, 1, 0, rules[0].at_end)


class Complement(_Compound):
    """What the mask does not allow; written ~a."""

    def __init__(self, mask: Mask) -> None:
        super().__init__((mask,))

    @property
    def mask(self) -> Mask:
        return self.parts[0]

    def __invert__(self) -> Mask:
        return self.mask

    def __repr__(self) -> str:
        return "~" + _repr_inside(self.mask, type(self))

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        return ~self.mask._allowed(i, j, Lq, Lk)

    @property
    def _plain(self) -> bool:
        return self._rule() is not None

    def _rule(self) -> Rule | None:
        """A half-plane's other half, or what De Morgan makes of a union or intersection of such."""
        rule = self.mask._rule()
        if rule is None and isinstance(self.mask, (Union, Intersection)):
            other = Intersection if isinstance(self.mask, Union) else Union
            return other([~part for part in self.mask.parts])._rule()
        if rule is None or rule.dilated:
            return None
        if unbounded(rule.lower) and not unbounded(rule.upper):
            return rule._replace(lower=rule.upper + 1, upper=UNBOUNDED)
        if unbounded(rule.upper) and not unbounded(rule.lower):
            return rule._replace(lower=-UNBOUNDED, upper=rule.lower - 1)
        return None

    def _emit(self, program: Program) -> None:
        self.mask._emit(program)
        program.add(_lowering.NOT)


def _parts(mask: Mask, kind: type[_Compound]) -> tuple[Mask, ...]:
    return mask.parts if isinstance(mask, kind) else (mask,)


def _repr_inside(part: Mask, kind: type[_Compound]) -> str:
    needs = isinstance(part, Union) or (kind is Complement and isinstance(part, Intersection))
    return f"({part!r})" if needs and kind is not Union else repr(part)


def _version(tensor: Any) -> int | None:
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else None


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"<{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}>"
    return repr(value)
