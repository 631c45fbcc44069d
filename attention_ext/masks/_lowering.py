"""The lowered form of masks, its intersection, and tables of tiles made of mask programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._ops.transforms import transforms_active
from ._kept import KeptTables

UNBOUNDED = 2**62  # in a band: no limit on this side
_on_devices = KeptTables(most=64)  # of equal masks, which share a program, one copy

# Of a mask program; the numbers of csrc/cpu/mask_expression.h.
AND, OR, NOT, PACKED, BAND, LENGTHS, BITS, DOCUMENTS, GLOBAL, BLOCKS, NEIGHBORHOOD, TABLE = range(12)
SELECTED, COMPRESSED = 12, 13
TILE = 64


class LoweredMask(NamedTuple):
    """What the operators take: a band, and what restricts it further. Schema: csrc/README.md.

    band is [] or [lower, upper, dilation, phase, global_tokens, global_shift]: lower <= j - i <= upper, and
    j - i is phase modulo dilation.
    """

    band: list[int]
    band_offset: Tensor | None  # int64 (B,), added to i
    key_lengths: Tensor | None  # int64 (B,), 0..Lk
    mask_bits: Tensor | None  # int64 (B or 1, Hq or 1, Lq or 1, ceil(Lk / 64))
    row_bounds: Tensor | None
    block_table: list[Tensor]  # [] or a mask program and its arrays

    def on(self, device: torch.device) -> LoweredMask:
        """The same with the arrays of a table, which the CPU built, on this device; its program stays."""
        if not self.block_table or device.type == "cpu":
            return self
        program, *arrays = self.block_table
        key = id(program), device
        moved = _on_devices.get(key)
        if moved is None:
            moved = [t.to(device) for t in arrays]
            if all(type(t) is Tensor for t in (program, *moved)):  # no fake one of a trace
                _on_devices.keep(key, [program], moved)
        return self._replace(block_table=[program, *moved])


NO_MASK = LoweredMask([], None, None, None, None, [])


class Program:
    """A mask program as it is written: postfix numbers, and the arrays they refer to."""

    def __init__(self) -> None:
        self.code: list[int] = []
        self.arrays: list[Tensor] = []

    def add(self, opcode: int, *numbers: int | bool | Tensor | None) -> None:
        """An instruction; a tensor becomes an array and its number, None is -1."""
        self.code.append(opcode)
        for n in numbers:
            if isinstance(n, Tensor):
                self.code.append(len(self.arrays))
                self.arrays.append(n.contiguous())
            else:
                self.code.append(-1 if n is None else int(n))

    def block_table(self) -> list[Tensor]:
        """The argument of the operators that makes them build the table themselves."""
        return [host_integers(self.code), *self.arrays]


def host_integers(values: Sequence[int]) -> Tensor:
    """A mask program as the operators read it: on the CPU, whatever torch's default device is."""
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def lower_program(
    program: Program, Lq: int, Lk: int, B: int | None = None, Hq: int | None = None
) -> list[Tensor]:
    """The block_table of a program: with the table built where sizes and tensors have values.

    Raises ValueError if what the program holds does not fit the sizes; B or Hq None = any.
    """
    if (
        torch.compiler.is_compiling()
        or transforms_active()
        or not all(type(x) is int for x in (Lq, Lk))
        or not all(type(t) is Tensor for t in program.arrays)
    ):
        return program.block_table()
    code = host_integers(program.code)
    if type(code) is not Tensor:  # a fake one, which must not outlive the tracing it belongs to
        return program.block_table()
    if program.arrays:
        table = _build([code, *program.arrays], Lq, Lk)
    else:
        table = _table_without_arrays(tuple(program.code), Lq, Lk)
    check_heads(table, B, Hq)
    return table


@lru_cache(maxsize=64)
def _table_without_arrays(code: tuple[int, ...], Lq: int, Lk: int) -> list[Tensor]:
    return _build([host_integers(code)], Lq, Lk)


def _build(block_table: list[Tensor], Lq: int, Lk: int) -> list[Tensor]:
    with torch.inference_mode(False):  # what is made in inference mode cannot serve in training later
        try:
            parts = torch.ops.attention_ext._build_block_table.default(_where_built(block_table), Lq, Lk)
        except NotImplementedError:  # a build without CUDA
            raise
        except RuntimeError as error:  # what the mask holds does not fit the sizes
            raise ValueError(str(error).partition("\n")[0].removeprefix("attention_ext: ")) from None
        return stored_table(parts, Lq, Lk)


def _where_built(block_table: list[Tensor]) -> list[Tensor]:
    """The program, with arrays on the CPU, which builds all tables but a GPU's of the blocks chosen there."""
    code, *arrays = block_table
    if code[0] == SELECTED and len(arrays) == 1 and arrays[0].is_cuda:
        return block_table
    return [code, *(t.cpu() for t in arrays)]


def is_built(block_table: list[Tensor]) -> bool:
    """Whether it is a built table, and no program yet to be built, nor one of a trace."""
    code = block_table[0]
    return type(code) is Tensor and code.device.type == "cpu" and code[0] == TABLE and len(code) == 8


def check_heads(table: list[Tensor], B: int | None, Hq: int | None) -> None:
    """Raises ValueError if a built table has another batch size or number of heads."""
    own = table[1].shape[:2]
    if B is not None and Hq is not None and (own[0] not in (1, B) or own[1] not in (1, Hq)):
        raise ValueError(f"mask: expected batch size {B} or 1 and {Hq} heads or 1, got {own[0]} and {own[1]}")


def stored_table(parts: list[Tensor], Lq: int, Lk: int) -> list[Tensor]:
    """The block_table argument of a table that is built."""
    return [host_integers([TABLE, 0, 1, 2, 3, 4, Lq, Lk]), *parts]


def dense_table(block_table: list[Tensor], sizes: tuple[int, int, int, int], device: torch.device) -> Tensor:
    """What a table or program allows, bool (B, Hq, Lq, Lk): made on the CPU, moved to the device."""
    op = torch.ops.attention_ext._dense_block_table.default
    return op([t.cpu() for t in block_table], *sizes).to(device)


def meet(a: LoweredMask, b: LoweredMask) -> LoweredMask:
    """What both allow. At most one has a dilation or a block table, unless the bands are alike in it."""
    band = a.band or b.band
    if a.band and b.band:
        lower = _bound(max, torch.sym_max, a.band[0], b.band[0])
        upper = _bound(min, torch.sym_min, a.band[1], b.band[1])
        dilated = a.band if isinstance(b.band[2], int) and b.band[2] == 1 else b.band
        band = [lower, upper, *dilated[2:]]
    return NO_MASK._replace(
        band=band,
        key_lengths=_either(torch.minimum, a.key_lengths, b.key_lengths),
        mask_bits=_either(torch.bitwise_and, a.mask_bits, b.mask_bits),
        block_table=a.block_table or b.block_table,
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
