"""The delta rule as a function of whole sequences and of single tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import _checks, _checks_linear
from ._ops import delta_rule as _op
from ._ops import library
from .linear import autocast, check_initial_state, four, four_decay, one_token, one_token_decay


def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    *,
    decay: Tensor | None = None,
    scale: float | None = None,
    key_lengths: Tensor | Sequence[int] | None = None,
    cu_seqlens: Tensor | Sequence[int] | None = None,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""The (gated) delta rule, fused: a state that forgets what it held under a key before it takes the new
    value.

    Of each row and head::

        S_t = (I - beta_t key_t key_t^T) (exp(g_t) * S_{t-1}) + beta_t key_t value_t^T
        out_t = scale * query_t^T S_t

    Keys are not normalised here; of length at most 1, with beta from 0 to 2, they keep the state bounded.

    Args:
        query: (B, Hq, L, D), float32, float64, bfloat16 or float16, any strides. The tensors may come without
            B, or without B and H; the results are then without them too.
        key: (B, Hk, L, D).
        value: (B, Hv, L, Dv). Hq, Hk, Hv each divide the largest, H; head h reads head h // (H / own).
            States, beta and decay are those of Hs = max(Hk, Hv) heads.
        beta: (B, Hs, L), any of the four dtypes: how much of the old value goes.
        decay: g, the logarithm of what a state keeps, at most 0, any of the four dtypes: (B, Hs, L) (Yang et
            al. 2024, arXiv:2412.06464) or (B, Hs, L, D).
        scale: None is D**-0.5.
        key_lengths: (B,), right padding: the state stays as it is at a padded token, whose output is 0.
        cu_seqlens: (sequences + 1,), ascending from 0 to L: with B = 1, sequences packed side by side, each
            with a state of its own.
        initial_state: (B, Hs, D, Dv), of any of the four dtypes. B is the number of sequences with
            cu_seqlens. None is 0.
        return_state: also return the last state.

    Returns:
        out (B, H, L, Dv) in query's dtype, or (out, state) with a state in float32 (float64 for float64).
        Both are differentiable, in query, key, value, beta, decay and initial_state.

    First-order reverse mode and torch.func.vmap are fused. Forward mode and higher orders go through a plain
    recurrence, with one `attention_ext.UnfusedWarning`. Under autocast query, key and value are cast.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: sizes, devices or numbers that don't fit.

    Sources: Schlag et al. 2021 (arXiv:2102.11174), in chunks Yang et al. 2024 (arXiv:2406.06484).
    """
    _checks.check_tensors(query, key, value)
    query, key, value = autocast(query, key, value)
    s = _checks_linear.check_heads(query, key, value, True)
    factor = _scale(scale, s.D)
    _checks_linear.check_beta(beta, query, s)
    if decay is not None:
        _checks_linear.check_decay(decay, query, s, per_head=False)
    key_lengths, cu_seqlens, sequences = _checks_linear.sequence_tensors(key_lengths, cu_seqlens, query, s)
    state, _ = check_initial_state(initial_state, query, s, sequences, False)

    rank = query.dim()
    out, state = _op.operator(
        _op.Call(
            *(four(t, rank) for t in (query, key, value, beta)),
            four_decay(decay, rank),
            factor,
            key_lengths,
            cu_seqlens,
            four(state, rank),
        )
    )
    first = (0,) * (4 - rank)
    return (out[first], state[first]) if return_state else out[first]


def delta_rule_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    state: Tensor,
    *,
    decay: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """One more token of `delta_rule`: its output, the state brought up to date in place.

    Args:
        query: (B, Hq, D), float32, float64, bfloat16 or float16.
        key: (B, Hk, D).
        value: (B, Hv, Dv).
        beta: (B, Hs).
        state: (B, Hs, D, Dv) as `delta_rule` returns it, contiguous, float32 (float64 for float64). Written
            to.
        decay: (B, Hs) or (B, Hs, D).
        scale: None is D**-0.5.

    Returns out (B, H, Dv) in query's dtype. No derivatives: an input that requires one raises.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: sizes, devices or numbers that don't fit.
    """
    query, key, value, s = one_token(query, key, value)
    _checks_linear.check_floating("beta", beta, query)
    beta = beta[..., None]
    _checks_linear.check_beta(beta, query, s)
    decay = one_token_decay(decay, query, s, per_head=False)
    _checks_linear.check_running_state(state, query)
    S, _ = check_initial_state(state, query, s, s.B, False, name="state")
    return library.delta_step(query, key, value, beta, S, decay, _scale(scale, s.D))[:, :, 0]


def _scale(scale: float | None, D: int) -> float:
    if scale is None:
        return D**-0.5
    _checks.check_scale(scale)
    return float(scale)
