"""Linear attention as a function of whole sequences and of single tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks, _checks_linear
from ._ops import library
from ._ops import linear_attention as _op
from .features import FeatureMap, apply_map

State = Tensor | tuple[Tensor, Tensor]


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    feature_map: str | FeatureMap = "elu",
    causal: bool = False,
    decay: Tensor | None = None,
    scale: float | None = None,
    normalize: bool = True,
    eps: float = 1e-6,
    key_lengths: Tensor | Sequence[int] | None = None,
    cu_seqlens: Tensor | Sequence[int] | None = None,
    initial_state: State | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, State]:
    r"""Linear attention, fused: time and memory linear in the sequence length.

    With phi the feature map, of each row and head::

        S_t = exp(g_t) * S_{t-1} + phi(key_t) value_t^T
        z_t = exp(g_t) * z_{t-1} + phi(key_t)
        out_t = phi(query_t)^T S_t / (phi(query_t)^T z_t + eps)      with normalize
        out_t = scale * phi(query_t)^T S_t                           without

    Not causal, S and z are the sums over all keys, for every query.

    Args:
        query: (B, Hq, Lq, D), float32, float64, bfloat16 or float16, any strides. The tensors may come
            without B, or without B and H; the results are then without them too.
        key: (B, Hk, Lk, D). Lk = Lq where causal.
        value: (B, Hv, Lk, Dv). Hq, Hk, Hv each divide the largest, H; head h reads head h // (H / own).
            States, and decay, are those of Hs = max(Hk, Hv) heads.
        feature_map: "identity", "elu" (elu + 1), "relu" or "softmax" (over D), which are fused; or one of
            :mod:`attention_ext.features`, which makes D its number of features in `decay` and states.
        causal: query t sees keys up to t.
        decay: g, the logarithm of what a state keeps, at most 0, any of the four dtypes; causal only. (Hs,)
            as in RetNet (Sun et al. 2023, arXiv:2307.08621), (B, Hs, L) as in Mamba-2 (Dao and Gu 2024,
            arXiv:2405.21060), or (B, Hs, L, D) as in gated linear attention (Yang et al. 2023,
            arXiv:2312.06635).
        scale: of out, without normalize only; None is 1.
        normalize: divide by the sum of the weights.
        eps: at least 0, added to that sum.
        key_lengths: (B,), right padding. Causal, the state stays as it is at a padded token, whose output is
            0; not causal, it masks keys only.
        cu_seqlens: (sequences + 1,), ascending from 0 to L: with B = 1, sequences packed side by side, each
            with a state of its own.
        initial_state: (S (B, Hs, D, Dv), z (B, Hs, D)), S alone without normalize; of any of the four dtypes.
            B is the number of sequences with cu_seqlens. None is 0.
        return_state: also return the last state.

    Returns:
        out (B, H, Lq, Dv) in query's dtype, or (out, state) with a state in float32 (float64 for float64).
        Both are differentiable, in query, key, value, decay and initial_state. A query without any key has
        output 0.

    First-order reverse mode and torch.func.vmap are fused. Forward mode and higher orders go through a plain
    recurrence, with one `attention_ext.UnfusedWarning`. Under autocast query, key and value are cast.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: sizes, devices or numbers that don't fit.

    Sources: Katharopoulos et al. 2020 (arXiv:2006.16236), and in chunks Yang et al. 2023 (arXiv:2312.06635).
    """
    _checks.check_tensors(query, key, value)
    query, key, value = autocast(query, key, value)
    s = _checks_linear.check_heads(query, key, value, causal)
    number, s = _check_feature_map(feature_map, query, s)
    factor = _check_numbers(scale, normalize, eps)
    if decay is not None:
        if not causal:
            raise ValueError("decay: expected None where not causal")
        _checks_linear.check_decay(decay, query, s, per_head=True)
    key_lengths, cu_seqlens, sequences = _checks_linear.sequence_tensors(key_lengths, cu_seqlens, query, s)
    states = check_initial_state(initial_state, query, s, sequences, normalize)

    rank, dtype = query.dim(), query.dtype
    if isinstance(feature_map, FeatureMap):
        query, key, value = apply_map(feature_map, query, key, value, normalize, causal, key_lengths)
        eps *= feature_map.eps_factor
    out, _, *state = _op.operator(
        _op.Call(
            *(four(t, rank) for t in (query, key, value)),
            number,
            causal,
            four_decay(decay, rank),
            factor,
            normalize,
            float(eps),
            key_lengths,
            cu_seqlens,
            four(states[0], rank),
            four(states[1], rank),
        )
    )
    first = (0,) * (4 - rank)
    out = out[first].to(dtype)
    if not return_state:
        return out
    state = tuple(t[first] for t in state[: 1 + normalize])
    return out, state if normalize else state[0]


def linear_attention_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: State,
    *,
    feature_map: str | FeatureMap = "elu",
    decay: Tensor | None = None,
    scale: float | None = None,
    normalize: bool = True,
    eps: float = 1e-6,
) -> Tensor:
    """One more token of a causal `linear_attention`: its output, the state brought up to date in place.

    Args:
        query: (B, Hq, D), float32, float64, bfloat16 or float16.
        key: (B, Hk, D).
        value: (B, Hv, Dv).
        state: as `linear_attention` returns it, (S (B, Hs, D, Dv), z (B, Hs, D)), or S without normalize;
            contiguous, float32 (float64 for float64). Written to.
        decay: (Hs,), (B, Hs) or (B, Hs, D).

    The rest is as in `linear_attention`. Returns out (B, H, Dv) in query's dtype. No derivatives: an input
    that requires one raises.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: sizes, devices or numbers that don't fit.
    """
    query, key, value, s = one_token(query, key, value)
    number, s = _check_feature_map(feature_map, query, s)
    factor = _check_numbers(scale, normalize, eps)
    decay = one_token_decay(decay, query, s, per_head=True)
    _checks_linear.check_running_state(state, query)
    S, z = check_initial_state(state, query, s, s.B, normalize, name="state")
    dtype = query.dtype
    if isinstance(feature_map, FeatureMap):
        query, key, value = apply_map(feature_map, query, key, value, normalize)
        eps *= feature_map.eps_factor
    out = library.linear_step(query, key, value, S, z, number, decay, factor, normalize, float(eps))
    return out[:, :, 0].to(dtype)


def one_token(
    query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor, _checks_linear.Sizes]:
    """query, key and value of one token, (B, H, D), as sequences of that length, and their sizes."""
    _checks.check_tensors(query, key, value)
    for name, t in (("query", query), ("key", key), ("value", value)):
        if t.dim() != 3:
            raise ValueError(f"{name}: expected shape (B, H, D) of one token, got {tuple(t.shape)}")
    query, key, value = (t[:, :, None] for t in autocast(query, key, value))
    return query, key, value, _checks_linear.check_heads(query, key, value, True)


def one_token_decay(
    decay: Tensor | None, query: Tensor, s: _checks_linear.Sizes, *, per_head: bool
) -> Tensor | None:
    if decay is None:
        return None
    _checks_linear.check_floating("decay", decay, query)
    if decay.dim() > 1:
        decay = decay[:, :, None]
    _checks_linear.check_decay(decay, query, s, per_head=per_head)
    return decay


def _check_feature_map(
    feature_map: str | FeatureMap, query: Tensor, s: _checks_linear.Sizes
) -> tuple[int, _checks_linear.Sizes]:
    """The number of the map that the op applies, and the sizes with the D that it gets."""
    if isinstance(feature_map, FeatureMap):
        if feature_map.dim != s.D:
            raise ValueError(
                f"query: expected the head dimension of feature_map, {feature_map.dim}, got shape"
                f" {tuple(query.shape)}"
            )
        return _op.FEATURE_MAPS.index("identity"), s._replace(D=feature_map.num_features)
    if not isinstance(feature_map, str):
        raise TypeError(
            f"feature_map: expected a name or an attention_ext.features.FeatureMap,"
            f" got {type(feature_map).__name__}"
        )
    if feature_map not in _op.FEATURE_MAPS:
        raise ValueError(f"feature_map: expected one of {', '.join(_op.FEATURE_MAPS)}, got {feature_map!r}")
    return _op.FEATURE_MAPS.index(feature_map), s


def _check_numbers(scale: float | None, normalize: bool, eps: float) -> float:
    _checks_linear.check_number("eps", eps, least=0)
    if scale is None:
        return 1.0
    _checks.check_scale(scale)
    if normalize:
        raise ValueError("scale: expected None with normalize=True")
    return float(scale)


def check_initial_state(
    state: State | None,
    query: Tensor,
    s: _checks_linear.Sizes,
    sequences: int,
    normalize: bool,
    name: str = "initial_state",
) -> tuple[Tensor | None, Tensor | None]:
    """S and z, either None where there is none."""
    if state is None:
        return None, None
    if normalize:
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(f"{name}: expected a pair (S, z) with normalize=True, got {type(state).__name__}")
        S, z = state
    else:
        S, z = state, None
    _checks_linear.check_state(name, S, query, (sequences, s.Hs, s.D, s.Dv), "S")
    if z is not None:
        _checks_linear.check_state(name, z, query, (sequences, s.Hs, s.D), "z")
    return S, z


def autocast(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """What torch's autocast would cast: floating point but for float64."""
    device = query.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return [query, key, value]
    dtype = torch.get_autocast_dtype(device)
    return [
        t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in (query, key, value)
    ]


def four(t: Tensor | None, rank: int) -> Tensor | None:
    """With the leading dimensions that inputs of `rank` dimensions lack."""
    return None if t is None else t[(None,) * (4 - rank)]


def four_decay(decay: Tensor | None, rank: int) -> Tensor | None:
    if decay is None or decay.dim() >= rank - 1:
        return four(decay, rank)
    return decay.reshape(-1)  # one number per head
