"""Linear attention and the delta rule as plain recurrences, one token after the other.

Part of `attention_ext.reference`. Everything is a differentiable torch op without in-place writes. States,
and what is added to them, are kept in float32 (float64 for float64), as the operators keep them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from .features import FeatureMap, apply_map

State = tuple[Tensor, ...]

FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "elu": lambda x: F.elu(x) + 1,
    "relu": F.relu,
    "softmax": lambda x: F.softmax(x, dim=-1),
}


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
    key_lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    initial_state: Tensor | State | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor | State]:
    """`attention_ext.linear_attention` as a recurrence: the same arguments and results."""
    rank, dtype = query.dim(), query.dtype
    if isinstance(feature_map, FeatureMap):
        query, key, value = apply_map(feature_map, query, key, value, normalize, causal, key_lengths)
        feature_map, eps = "identity", eps * feature_map.eps_factor
    q, k, v = (_accumulate(_four(t)) for t in (query, key, value))
    H, Hs = max(q.shape[1], k.shape[1], v.shape[1]), max(k.shape[1], v.shape[1])
    k, v = _heads(k, Hs), _heads(v, Hs)
    phi = FEATURE_MAPS[feature_map]
    if decay is not None:
        decay = _spread_decay(_accumulate(decay), k, rank)

    def run(rows: slice, tokens: slice, length: Tensor | None, state: State) -> tuple[Tensor, State]:
        parts = [t[rows, :, tokens] for t in (q, k, v)]
        g = None if decay is None else decay[rows, :, tokens]
        return _sequence(*parts, phi, causal, g, H, length, state, eps if normalize else None)

    states = _initial_states(initial_state, k, v, normalize, cu_seqlens)
    if cu_seqlens is None:
        out, state = run(slice(None), slice(None), key_lengths, states)
        if not causal and initial_state is None:
            out = _clear_blind_rows(out, k, key_lengths)
    else:
        borders = cu_seqlens.tolist()
        found = [
            run(slice(None), slice(a, b), None, tuple(t[n : n + 1] for t in states))
            for n, (a, b) in enumerate(pairwise(borders))
        ]
        out = torch.cat([o for o, _ in found], dim=2)
        state = tuple(torch.cat(parts) for parts in zip(*(s for _, s in found), strict=True))
    if not normalize:
        out = out * (1 if scale is None else scale)
    out = out.to(dtype)[(0,) * (4 - rank)]
    state = tuple(t[(0,) * (4 - rank)] for t in state)
    return (out, state if normalize else state[0]) if return_state else out


def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    *,
    decay: Tensor | None = None,
    scale: float | None = None,
    key_lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`attention_ext.delta_rule` as a recurrence: the same arguments and results."""
    rank = query.dim()
    q, k, v = (_accumulate(_four(t)) for t in (query, key, value))
    H, Hs = max(q.shape[1], k.shape[1], v.shape[1]), max(k.shape[1], v.shape[1])
    k, v = _heads(k, Hs), _heads(v, Hs)
    beta = _accumulate(beta)[(None,) * (4 - rank)]
    if decay is not None:
        decay = _spread_decay(_accumulate(decay), k, rank)
    (S,) = _initial_states(initial_state, k, v, False, cu_seqlens)

    def run(tokens: slice, lengths: Tensor | None, S: Tensor) -> tuple[Tensor, Tensor]:
        parts = [t[:, :, tokens] for t in (q, k, v, beta)]
        g = None if decay is None else decay[:, :, tokens]
        return _delta_sequence(*parts, g, H, lengths, S)

    if cu_seqlens is None:
        out, S = run(slice(None), key_lengths, S)
    else:
        borders = pairwise(cu_seqlens.tolist())
        found = [run(slice(a, b), None, S[n : n + 1]) for n, (a, b) in enumerate(borders)]
        out = torch.cat([o for o, _ in found], dim=2)
        S = torch.cat([last for _, last in found])
    out = (out * (query.shape[-1] ** -0.5 if scale is None else scale)).to(query.dtype)
    first = (0,) * (4 - rank)
    return (out[first], S[first]) if return_state else out[first]


def _delta_sequence(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None, H: int, lengths: Tensor | None, S: Tensor
) -> tuple[Tensor, Tensor]:
    """out (B, H, L, Dv) without scale, and the last state."""
    if lengths is not None:
        live = torch.arange(k.shape[2], device=k.device) < lengths[:, None, None]
        q, k, v = (torch.where(live[..., None], t, 0.0) for t in (q, k, v))
        beta = torch.where(live, beta, 0.0)
    outs = []
    for t in range(k.shape[2]):
        k_t, v_t = k[:, :, t], v[:, :, t]
        faded = S if g is None else g[:, :, t].exp()[..., None] * S
        error = v_t - (k_t[..., None, :] @ faded)[..., 0, :]
        new = faded + (beta[:, :, t, None] * k_t)[..., None] * error[..., None, :]
        S = new if lengths is None else torch.where(live[..., t][..., None, None], new, S)
        out = _heads(q[:, :, t : t + 1], H) @ _heads(S, H)
        outs.append(out if lengths is None else torch.where(live[..., t][..., None, None], out, 0.0))
    if not outs:
        return v.new_zeros(v.shape[0], H, 0, v.shape[3]), S
    return torch.cat(outs, dim=2), S


def _sequence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    phi: Callable[[Tensor], Tensor],
    causal: bool,
    g: Tensor | None,
    H: int,
    lengths: Tensor | None,
    state: State,
    eps: float | None,
) -> tuple[Tensor, State]:
    """out (B, H, Lq, Dv) without scale, and the last state, S and z (without eps S alone)."""
    if lengths is not None:
        live = torch.arange(k.shape[2], device=k.device) < lengths[:, None, None]
        k, v = (torch.where(live[..., None], t, 0.0) for t in (k, v))
    k = phi(k)
    if not causal:
        if lengths is not None:
            k = torch.where(live[..., None], k, 0.0)
        state = tuple(s + n for s, n in zip(state, (k.mT @ v, k.sum(2)), strict=False))
        return _read(_heads(phi(q), H), state, eps), state
    outs = []
    for t in range(k.shape[2]):
        k_t, v_t = k[:, :, t], v[:, :, t]
        new = [k_t[..., None] * v_t[..., None, :], k_t]
        if g is not None:
            a = g[:, :, t].exp()
            new = [n + f * s for n, f, s in zip(new, (a[..., None], a), state, strict=False)]
        else:
            new = [n + s for n, s in zip(new, state, strict=False)]
        if lengths is not None:
            on = live[..., t]
            new = [
                torch.where(on[(...,) + (None,) * (s.dim() - 2)], n, s)
                for n, s in zip(new, state, strict=True)
            ]
        state = tuple(new)
        q_t = q[:, :, t : t + 1]
        if lengths is not None:
            q_t = torch.where(on[..., None, None], q_t, 0.0)
        out = _read(_heads(phi(q_t), H), state, eps)
        outs.append(out if lengths is None else torch.where(on[..., None, None], out, 0.0))
    if not outs:
        return v.new_zeros(v.shape[0], H, 0, v.shape[3]), state
    return torch.cat(outs, dim=2), state


def _read(q: Tensor, state: State, eps: float | None) -> Tensor:
    H = q.shape[1]
    out = q @ _heads(state[0], H)
    if eps is None:
        return out
    return out / (q @ _heads(state[1][..., None], H) + eps)


def _initial_states(
    given: Tensor | State | None, k: Tensor, v: Tensor, normalize: bool, cu_seqlens: Tensor | None
) -> State:
    """S, and with normalize z: (sequences, Hs, D, Dv) and (sequences, Hs, D)."""
    if given is None:
        n = k.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        sizes = (n, k.shape[1], k.shape[3])
        zeros = (k.new_zeros(*sizes, v.shape[3]), k.new_zeros(sizes))
        return zeros if normalize else zeros[:1]
    given = (given,) if isinstance(given, Tensor) else given
    return tuple(t.to(k.dtype)[(None,) * (rank - t.dim())] for t, rank in zip(given, (4, 3), strict=False))


def _clear_blind_rows(out: Tensor, k: Tensor, lengths: Tensor | None) -> Tensor:
    """out, 0 where there is no key at all: not the NaN of 0 / 0, nor that of a query."""
    if k.shape[2] == 0:
        return torch.where(torch.zeros((), dtype=torch.bool, device=out.device), out, 0.0)
    return out if lengths is None else torch.where((lengths > 0)[:, None, None, None], out, 0.0)


def _spread_decay(decay: Tensor, k: Tensor, rank: int) -> Tensor:
    """(B, Hs, L, D or 1) of a decay per head, per token or per channel of inputs with `rank` dimensions."""
    if decay.dim() < rank - 1:
        return decay.reshape(1, -1, 1, 1).expand(*k.shape[:3], 1)
    return (decay[..., None] if decay.dim() == rank - 1 else decay)[(None,) * (4 - rank)]


def _accumulate(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


def _four(t: Tensor) -> Tensor:
    return t[(None,) * (4 - t.dim())]


def _heads(t: Tensor, H: int) -> Tensor:
    """Own heads, one for each of H: h reads h // (H / own)."""
    return t if t.shape[1] == H else t.repeat_interleave(H // t.shape[1], dim=1)
