"""Argument checks of linear attention and the delta rule; the rules of `_checks`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._checks import _FLOATS, _check_number, _finite, _shape, _type, check_device, check_tensor


class Sizes(NamedTuple):
    """Numbers of a call: batch rows, heads of out, of states, lengths, head dimensions."""

    B: int
    H: int
    Hs: int
    Lq: int
    Lk: int
    D: int
    Dv: int


def check_heads(query: Tensor, key: Tensor, value: Tensor, same_length: bool) -> Sizes:
    """Dtypes and sizes of query (B, Hq, Lq, D), key (B, Hk, Lk, D) and value (B, Hv, Lk, Dv); all three may
    lack B, or B and H."""
    dtype = query.dtype
    if dtype not in _FLOATS:
        raise TypeError(f"query: expected dtype float32, float64, bfloat16 or float16, got {dtype}")
    rank = query.dim()
    if not 2 <= rank <= 4:
        raise ValueError(f"query: expected shape (B, H, L, D), (H, L, D) or (L, D), got {_shape(query)}")
    for name, t in (("key", key), ("value", value)):
        if t.dtype != dtype:
            raise TypeError(f"{name}: expected the dtype of query, {dtype}, got {t.dtype}")
        if t.dim() != rank:
            raise ValueError(f"{name}: expected {rank} dimensions as in query, got shape {_shape(t)}")
    missing = (1,) * (4 - rank)
    B, Hq, Lq, D = (*missing, *query.shape)
    Bk, Hk, Lk, Dk = (*missing, *key.shape)
    Bv, Hv, Lv, Dv = (*missing, *value.shape)
    if D == 0:
        raise ValueError(f"query: expected a head dimension of at least 1, got shape {_shape(query)}")
    if Bk != B:
        raise ValueError(f"key: expected the batch size of query, {B}, got shape {_shape(key)}")
    if Dk != D:
        raise ValueError(f"key: expected the head dimension of query, {D}, got shape {_shape(key)}")
    if same_length and Lk != Lq:
        raise ValueError(f"key: expected the length of query, {Lq}, got shape {_shape(key)}")
    if Bv != B:
        raise ValueError(f"value: expected the batch size of query, {B}, got shape {_shape(value)}")
    if Lv != Lk:
        raise ValueError(f"value: expected the length of key, {Lk}, got shape {_shape(value)}")
    H, Hs = max(Hq, Hk, Hv), max(Hk, Hv)
    for name, own in (("query", Hq), ("key", Hk), ("value", Hv)):
        if own == 0 or H % own != 0:
            raise ValueError(
                f"{name}: expected a number of heads that divides the largest of query's, key's and value's,"
                f" {H}, got {own}"
            )
    if Hs % Hk != 0 or Hs % Hv != 0:
        raise ValueError(
            f"value: expected a number of heads that divides key's {Hk}, or is a multiple of it, got {Hv}"
        )
    return Sizes(B, H, Hs, Lq, Lk, D, Dv)


def check_number(name: str, x: Any, *, least: float | None = None) -> None:
    expected = "a finite number" + (f" >= {least:g}" if least is not None else "")
    _check_number(name, expected, x)
    if not _finite(x) or (least is not None and x < least):
        raise ValueError(f"{name}: expected {expected}, got {x}")


def check_decay(decay: Any, query: Tensor, s: Sizes, *, per_head: bool) -> None:
    """(Hs,), (B, Hs, L) or (B, Hs, L, D), the last two without what query lacks."""
    check_floating("decay", decay, query)
    rank = query.dim()
    token = (s.B, s.Hs, s.Lk)[4 - rank :]
    shapes = {"(Hs,)": (s.Hs,)} if per_head and rank > 2 else {}
    if per_head and rank == 2:
        shapes["()"] = ()
    names = ("(B, Hs, L{})", "(Hs, L{})", "(L{})")[4 - rank]
    shapes[names.format("," if rank == 2 else "")] = token
    shapes[names.format(", D")] = (*token, s.D)
    if tuple(decay.shape) not in shapes.values():
        expected = " or ".join(f"{name} = {shape}" for name, shape in shapes.items())
        raise ValueError(f"decay: expected shape {expected}, got {_shape(decay)}")


def check_beta(beta: Any, query: Tensor, s: Sizes) -> None:
    """(B, Hs, L), without what query lacks."""
    check_floating("beta", beta, query)
    shape = (s.B, s.Hs, s.Lk)[4 - query.dim() :]
    if tuple(beta.shape) != shape:
        raise ValueError(f"beta: expected shape {shape}, one for each state and token, got {_shape(beta)}")


def check_running_state(state: Any, query: Tensor) -> None:
    """A state, or its S and z, that a step can write to."""
    if state is None:
        raise TypeError("state: expected the state to bring up to date, got None")
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    for t in state if isinstance(state, (tuple, list)) else (state,):
        check_tensor("state", t)
        if t.dtype != dtype or not t.is_contiguous():
            kind = "" if t.is_contiguous() else ", not contiguous"
            raise ValueError(f"state: expected contiguous {dtype}, as was returned, got {t.dtype}{kind}")


def check_state(name: str, t: Any, query: Tensor, sizes: tuple[int, ...], what: str) -> None:
    check_floating(name, t, query)
    sizes = sizes[4 - query.dim() :]
    if tuple(t.shape) != sizes:
        raise ValueError(f"{name}: expected {what} of shape {sizes}, got {_shape(t)}")


def check_floating(name: str, t: Any, query: Tensor) -> None:
    check_tensor(name, t)
    check_device(name, t, query)
    if t.dtype not in _FLOATS:
        raise TypeError(f"{name}: expected dtype float32, float64, bfloat16 or float16, got {t.dtype}")


def sequence_tensors(
    key_lengths: Any, cu_seqlens: Any, query: Tensor, s: Sizes
) -> tuple[Tensor | None, Tensor | None, int]:
    """key_lengths and cu_seqlens, of which one is None, as the ops take them, and the number of sequences."""
    if cu_seqlens is None:
        if key_lengths is not None:
            key_lengths = key_lengths_tensor(key_lengths, query, s.B, s.Lk)
        return key_lengths, None, s.B
    if key_lengths is not None:
        raise ValueError("key_lengths: expected None with cu_seqlens")
    cu_seqlens = cu_seqlens_tensor(cu_seqlens, query, s)
    return None, cu_seqlens, cu_seqlens.shape[0] - 1


def key_lengths_tensor(lengths: Any, query: Tensor, B: int, Lk: int) -> Tensor:
    """int64 (B,), clamped to Lk."""
    lengths = _integers("key_lengths", lengths, query)
    if lengths.dim() != 1 or lengths.shape[0] != B:
        raise ValueError(f"key_lengths: expected shape (B,) = ({B},), got {_shape(lengths)}")
    if _has_values(lengths) and B > 0 and bool((lengths < 0).any()):
        raise ValueError(f"key_lengths: expected lengths >= 0, got {int(lengths.min())}")
    return lengths.clamp(max=Lk)


def cu_seqlens_tensor(cu_seqlens: Any, query: Tensor, s: Sizes) -> Tensor:
    """int64 (sequences + 1,), from 0 up to the length."""
    cu_seqlens = _integers("cu_seqlens", cu_seqlens, query)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens: expected shape (sequences + 1,), got {_shape(cu_seqlens)}")
    if query.dim() != 4:
        raise ValueError(f"cu_seqlens: expected with query of shape (1, H, L, D), got {_shape(query)}")
    if s.B != 1:
        raise ValueError(f"cu_seqlens: expected with batch size 1, got {s.B}")
    if s.Lq != s.Lk:
        raise ValueError(f"cu_seqlens: expected with one length, got {s.Lq} queries and {s.Lk} keys")
    if _has_values(cu_seqlens):
        values = cu_seqlens.tolist()
        if values[0] != 0 or values[-1] != s.Lk or values != sorted(values):
            raise ValueError(f"cu_seqlens: expected ascending from 0 to the length {s.Lk}, got {values}")
    return cu_seqlens


def _integers(name: str, t: Any, query: Tensor) -> Tensor:
    if isinstance(t, (list, tuple)):
        t = torch.tensor(t, device=query.device)
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected an integer tensor or a list of int, got {_type(t)}")
    check_device(name, t, query)
    if t.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: expected dtype int64 or int32, got {t.dtype}")
    return t.to(torch.int64).contiguous()


def _has_values(t: Tensor) -> bool:
    """Can the values be looked at? Not those of fake and batched tensors, whose op checks them again, and not
    those on a device, which one would have to wait for."""
    if torch.compiler.is_compiling() or t.device.type != "cpu":
        return False
    try:
        t.tolist()
    except RuntimeError:
        return False
    return True
