"""Argument checks: each message names the argument, what was expected and what came.

TypeError: not a tensor, mask or number, or a wrong dtype. ValueError: everything else.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_STRIDED = torch.strided


def check_tensors(query: Any, key: Any, value: Any) -> None:
    """query, key and value are strided tensors on one device."""
    check_tensor("query", query)
    check_tensor("key", key)
    check_tensor("value", value)
    device = query.device
    if key.device != device or value.device != device:
        check_device("key", key, query)
        check_device("value", value, query)


def check_qkv(query: Tensor, key: Tensor, value: Tensor) -> tuple[int, int, int, int]:
    """Dtypes and sizes of query (B, Hq, Lq, D), key (B, Hkv, Lk, D) and value (B, Hkv, Lk, Dv); all three may
    lack B, or B and H. Returns (B, Hq, Lq, Lk)."""
    dtype = query.dtype
    if dtype not in _FLOATS:
        raise TypeError(f"query: expected dtype float32, float64, bfloat16 or float16, got {dtype}")
    if key.dtype != dtype:
        raise TypeError(f"key: expected the dtype of query, {dtype}, got {key.dtype}")
    if value.dtype != dtype:
        raise TypeError(f"value: expected the dtype of query, {dtype}, got {value.dtype}")

    q, k, v = query.shape, key.shape, value.shape
    rank = len(q)
    if not 2 <= rank <= 4:
        raise ValueError(f"query: expected shape (B, H, L, D), (H, L, D) or (L, D), got {_shape(query)}")
    if len(k) != rank:
        raise ValueError(f"key: expected {rank} dimensions as in query, got shape {_shape(key)}")
    if len(v) != rank:
        raise ValueError(f"value: expected {rank} dimensions as in query, got shape {_shape(value)}")
    if rank < 4:
        missing = (1,) * (4 - rank)
        q, k, v = (*missing, *q), (*missing, *k), (*missing, *v)
    B, Hq, Lq, D = q
    Bk, Hkv, Lk, Dk = k
    Bv, Hv, Lv, _ = v
    if D == 0:
        raise ValueError(f"query: expected a head dimension of at least 1, got shape {_shape(query)}")
    if Bk != B:
        raise ValueError(f"key: expected the batch size of query, {B}, got shape {_shape(key)}")
    if Hq % Hkv != 0 if Hkv != 0 else Hq != 0:
        raise ValueError(
            f"key: expected a number of heads that divides query's {Hq}, got shape {_shape(key)}"
        )
    if Dk != D:
        raise ValueError(f"key: expected the head dimension of query, {D}, got shape {_shape(key)}")
    if Bv != B:
        raise ValueError(f"value: expected the batch size of query, {B}, got shape {_shape(value)}")
    if Hv != Hkv:
        raise ValueError(f"value: expected the number of heads of key, {Hkv}, got shape {_shape(value)}")
    if Lv != Lk:
        raise ValueError(f"value: expected the length of key, {Lk}, got shape {_shape(value)}")
    return B, Hq, Lq, Lk


def check_bias(bias: Any, query: Tensor, B: int, Hq: int, Lq: int, Lk: int) -> None:
    check_tensor("bias", bias)
    check_device("bias", bias, query)
    if bias.dtype not in (query.dtype, torch.float32):
        hint = "; a bool mask is mask=attention_ext.masks.Dense(tensor)" if bias.dtype == torch.bool else ""
        raise TypeError(
            f"bias: expected the dtype of query, {query.dtype}, or float32, got {bias.dtype}{hint}"
        )
    full = (B, Hq, Lq, Lk)[4 - bias.dim() :] if bias.dim() <= 4 else ()
    if len(full) != bias.dim() or any(
        got != 1 and got != size for got, size in zip(bias.shape, full, strict=True)
    ):
        expected = f"(B, Hq, Lq, Lk) = ({B}, {Hq}, {Lq}, {Lk})"
        raise ValueError(f"bias: expected a shape that broadcasts to {expected}, got {_shape(bias)}")


def check_sinks(sinks: Any, query: Tensor, Hq: int) -> None:
    _check_per_head("sinks", sinks, query)
    if sinks.dim() != 1 or sinks.shape[0] != Hq:
        raise ValueError(f"sinks: expected shape (Hq,) = ({Hq},), got {_shape(sinks)}")


def check_alibi_slopes(slopes: Any, query: Tensor, B: int, Hq: int) -> None:
    _check_per_head("alibi_slopes", slopes, query)
    per_head = slopes.dim() == 1 and slopes.shape[0] == Hq
    per_row = slopes.dim() == 2 and slopes.shape[0] == B and slopes.shape[1] == Hq
    if not per_head and not per_row:
        expected = f"(Hq,) = ({Hq},) or (B, Hq) = ({B}, {Hq})"
        raise ValueError(f"alibi_slopes: expected shape {expected}, got {_shape(slopes)}")


def check_mask(mask: Any, mask_type: type) -> None:
    if not isinstance(mask, mask_type):
        hint = "; a bool tensor, True = attend, is mask=attention_ext.masks.Dense(tensor)"
        hint = hint if isinstance(mask, Tensor) else ""
        raise TypeError(f"mask: expected one of attention_ext.masks or None, got {_type(mask)}{hint}")


def check_scale(scale: Any) -> None:
    _check_number("scale", "a finite number or None", scale)
    if not _finite(scale):
        raise ValueError(f"scale: expected a finite number or None, got {scale}")


def check_softcap(softcap: Any) -> None:
    _check_number("softcap", "a finite number >= 0 or None", softcap)
    if not _finite(softcap) or softcap < 0:
        raise ValueError(f"softcap: expected a finite number >= 0 or None, got {softcap}")


def check_dropout_p(dropout_p: Any) -> None:
    if dropout_p == 0.0 and type(dropout_p) is float:  # nearly always
        return
    _check_number("dropout_p", "a number from 0 to 1", dropout_p)
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"dropout_p: expected a number from 0 to 1, got {dropout_p}")


def check_dropout_seed(seed: Any, query: Tensor) -> None:
    if isinstance(seed, Tensor):
        check_device("dropout_seed", seed, query)
        if seed.dtype != torch.int64:
            raise TypeError(f"dropout_seed: expected an int or an int64 tensor, got {seed.dtype}")
        if seed.dim() != 0:
            raise ValueError(f"dropout_seed: expected a tensor of shape (), got {_shape(seed)}")
    elif not isinstance(seed, (int, torch.SymInt)) or isinstance(seed, bool):
        raise TypeError(f"dropout_seed: expected an int or an int64 tensor, got {_type(seed)}")
    elif not -(2**63) <= seed < 2**63:
        raise ValueError(f"dropout_seed: expected a 64-bit integer, got {seed}")


def check_tensor(name: str, t: Any) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {_type(t)}")
    if t.layout is not _STRIDED or t.is_nested:
        kind = "a nested one" if t.is_nested else f"layout {t.layout}"
        raise ValueError(f"{name}: expected a strided tensor, got {kind}")


def check_device(name: str, t: Tensor, query: Tensor) -> None:
    if t.device != query.device:
        raise ValueError(f"{name}: expected the device of query, {query.device}, got {t.device}")


def _check_per_head(name: str, t: Any, query: Tensor) -> None:
    check_tensor(name, t)
    check_device(name, t, query)
    if t.dtype not in _FLOATS:
        raise TypeError(f"{name}: expected dtype float32, float64, bfloat16 or float16, got {t.dtype}")


def _check_number(name: str, expected: str, x: Any) -> None:
    if isinstance(x, (bool, Tensor, complex, str)) or not hasattr(x, "__float__"):
        raise TypeError(f"{name}: expected {expected}, got {_type(x)}")


def _finite(x: float) -> bool:
    return -math.inf < x < math.inf


def _shape(t: Tensor) -> tuple[int, ...]:
    return tuple(t.shape)


def _type(x: Any) -> str:
    return type(x).__name__
