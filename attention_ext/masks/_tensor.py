"""Masks given as tensors: lengths, padding, anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._base import Mask
from ._lowering import BITS, LENGTHS, NO_MASK, LoweredMask, Program

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class KeyLengths(Mask):
    """Right padding: row b of the batch sees its first lengths[b] keys.

    lengths: integer tensor (B,) or a sequence of ints, none negative (looked at once, when the mask is made);
    a length beyond Lk means all keys. Raises TypeError for another dtype, ValueError for another shape
    or a negative length.
    """

    _tensor_fields = ("lengths",)
    _plain = True
    lengths: Tensor

    def __init__(self, lengths: Tensor | Sequence[int]) -> None:
        lengths = check_integers("lengths", lengths)
        if lengths.ndim != 1:
            raise ValueError(f"lengths: expected shape (B,), got {tuple(lengths.shape)}")
        smallest = smallest_of(lengths)
        if smallest is not None and smallest < 0:
            raise ValueError(f"lengths: expected no negative length, got {smallest}")
        self._set(lengths=lengths)

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        return (j < self.lengths[:, None])[:, None, None, :]

    def _lower(self, B: int, Hq: int, Lq: int, Lk: int) -> LoweredMask:
        if self.lengths.shape[0] != B:
            raise ValueError(f"mask: expected KeyLengths of shape ({B},), got {tuple(self.lengths.shape)}")
        return NO_MASK._replace(key_lengths=self.lengths.to(torch.int64).clamp(0, Lk))

    def _emit(self, program: Program) -> None:
        program.add(LENGTHS, self.lengths.to(torch.int64))


class KeyPadding(Mask):
    """Padding anywhere: row b of the batch sees key j iff keep[b, j].

    keep: bool tensor (B, Lk), True = attend (the opposite of torch's key_padding_mask).
    Raises TypeError for another dtype, ValueError for another shape.
    """

    _tensor_fields = ("keep",)
    _plain = True
    keep: Tensor

    def __init__(self, keep: Tensor) -> None:
        check_tensor("keep", keep, "a bool tensor (True = attend)", (torch.bool,))
        if keep.ndim != 2:
            raise ValueError(f"keep: expected shape (B, Lk), got {tuple(keep.shape)}")
        self._set(keep=keep)

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        if self.keep.shape[1] != Lk:
            raise ValueError(f"mask: expected KeyPadding of shape (B, {Lk}), got {tuple(self.keep.shape)}")
        return self.keep[:, None, None, :]

    def _lower(self, B: int, Hq: int, Lq: int, Lk: int) -> LoweredMask:
        if self.keep.shape[0] != B or self.keep.shape[1] != Lk:
            raise ValueError(f"mask: expected KeyPadding of shape ({B}, {Lk}), got {tuple(self.keep.shape)}")
        return NO_MASK._replace(mask_bits=self._bits())

    def _bits(self) -> Tensor:
        return _pack(self.keep)[:, None, None, :]

    def _emit(self, program: Program) -> None:
        program.add(BITS, self._bits(), self.keep.shape[1])


class Dense(Mask):
    """Any mask, as a tensor: query i of head h in row b sees key j iff tensor[b, h, i, j].

    tensor: bool, True = attend, broadcastable to (B, Hq, Lq, Lk), and kept broadcast: the kernels read a bit
    for each of its own elements. Raises TypeError for another dtype, ValueError for more than 4 dimensions.
    """

    _tensor_fields = ("tensor",)
    _plain = True
    tensor: Tensor

    def __init__(self, tensor: Tensor) -> None:
        check_tensor("tensor", tensor, "a bool tensor (True = attend)", (torch.bool,))
        if tensor.ndim > 4:
            raise ValueError(f"tensor: expected at most 4 dimensions, got shape {tuple(tensor.shape)}")
        self._set(tensor=tensor)

    def _four(self) -> Tensor:
        return self.tensor[(None,) * (4 - self.tensor.ndim)]

    def _misfit(self, *sizes: int | str) -> ValueError:
        expected = f"Dense broadcastable to ({', '.join(map(str, sizes))})"
        return ValueError(f"mask: expected {expected}, got shape {tuple(self.tensor.shape)}")

    def _allowed(self, i: Tensor, j: Tensor, Lq: int, Lk: int) -> Tensor:
        tensor = self._four()
        if tensor.shape[2] not in (1, Lq) or tensor.shape[3] not in (1, Lk):
            raise self._misfit("B", "Hq", Lq, Lk)
        rows = tensor if tensor.shape[2] == 1 else tensor[:, :, i[:, 0]]
        return rows.expand(*rows.shape[:3], Lk)

    def _lower(self, B: int, Hq: int, Lq: int, Lk: int) -> LoweredMask:
        tensor = self._four()
        if any(own != 1 and own != size for own, size in zip(tensor.shape, (B, Hq, Lq, Lk), strict=True)):
            raise self._misfit(B, Hq, Lq, Lk)
        return NO_MASK._replace(mask_bits=_pack(tensor.expand(-1, -1, -1, Lk)))

    def _emit(self, program: Program) -> None:
        program.add(BITS, _pack(self._four()), self._four().shape[3])


def _pack(keep: Tensor) -> Tensor:
    return torch.ops.attention_ext._pack_mask_bits.default(keep)


def check_integers(name: str, values: Tensor | Sequence[int]) -> Tensor:
    """Integers, as a tensor; its dtype is one of INTEGERS."""
    if isinstance(values, (list, tuple)) and all(type(n) is int for n in values):
        values = torch.tensor(values, dtype=torch.int64)
    check_tensor(name, values, "an integer tensor", INTEGERS)
    return values


def smallest_of(lengths: Tensor) -> int | None:
    if lengths.numel() == 0 or torch.compiler.is_compiling():
        return None
    try:
        return int(lengths.min())
    except RuntimeError:  # a fake, meta or vmapped tensor has no value to look at; lowering clamps
        return None


def check_tensor(name: str, tensor: Tensor, expected: str, dtypes: tuple[torch.dtype, ...]) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected {expected}, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name}: expected {expected}, got {tensor.dtype}")
