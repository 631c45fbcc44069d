"""Recording the attention of a model while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._map_arguments import AttentionMap, chosen_rows, number_of_bins
from .._ops import library
from .._ops.attention_schema import Call, accumulator, default_scale
from .._ops.transforms import watch_ops
from ._rollout import mix


@dataclass
class Recording(Sequence[AttentionMap]):
    """What :func:`record` found: `recording[n]` is the map of the n-th call of attention.

    names: of the innermost module that made each call, as in `model.named_modules()`; "" outside of it.
    maps: the maps, each with its batch, (B, H, ...).
    rollout: with rollout_bins, for each call (B, L, bins): what share of each position comes from the tokens
        of each bin, by the attention rollout up to this call; see :func:`rollout`.
    """

    names: list[str] = field(default_factory=list)
    maps: list[AttentionMap] = field(default_factory=list)
    rollout: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, n: int) -> AttentionMap:
        return self.maps[n]

    def weights(self, b: int = 0) -> list[Tensor]:
        """(H, Lq, Lk) of each call, of row b of the batch; recorded with rows="all".

        Raises ValueError if they were not.
        """
        found = []
        for name, map_ in zip(self.names, self.maps, strict=True):
            if map_.weights is None or map_.weights.shape[2] != map_.entropy.shape[2]:
                raise ValueError(f'weights: expected a recording with rows="all", got other rows at {name!r}')
            found.append(map_.weights[b])
        return found


@contextmanager
def record(
    model: torch.nn.Module | None = None,
    *,
    rows: Tensor | Sequence[int] | str | None = None,
    bins: int | tuple[int, int] | None = None,
    rollout_bins: int | None = None,
) -> Iterator[Recording]:
    """Within it, every call of `attention_ext.attention` leaves its :func:`attention_ext.attention_map`.

    Also those inside `attention_ext.nn`, and inside Hugging Face models that run on
    `attn_implementation="attention_ext"`. Outputs and gradients stay as they are; a call takes about twice
    as long, and what is kept is linear in the sequence lengths but for rows="all". Dropout is no part of a
    map. Calls inside `torch.compile`, and those of other threads, are not seen.

    Args:
        model: gives the calls their names; None gives none.
        rows, bins: of :func:`attention_ext.attention_map`, for every call.
        rollout_bins: also follow how the tokens of each of so many bins spread over the layers, by attention
            with the shares as values: in memory linear in the length. For models of self-attention alone.

    Yields:
        A :class:`Recording`, which fills up.

    Raises:
        RuntimeError: at the end, if there was no call to be recorded.
        TypeError, ValueError: rows or bins that don't fit a call, from that call.
    """
    recording, inside = Recording(), [""]

    def seen(op: Any, args: tuple[Any, ...]) -> None:
        if op is library.forward or op is library.attention:
            recording.names.append(inside[-1])
            call = Call(*args)
            with torch.no_grad():
                recording.maps.append(_map(call, rows, bins))
                if rollout_bins is not None:
                    recording.rollout.append(_rolled(call, recording.rollout, rollout_bins))

    with ExitStack() as stack:
        for name, module in () if model is None else model.named_modules():
            _follow(module, name, inside, stack)
        stack.enter_context(watch_ops(seen))
        yield recording
    if not recording.maps:
        raise RuntimeError(
            "record: no attention of attention_ext ran. ax.replace_attention(model) puts it into a model of "
            "torch's layers, and ax.integrations.transformers.register() with "
            'model.set_attn_implementation("attention_ext") into one of Hugging Face'
        )


def _follow(module: torch.nn.Module, name: str, inside: list[str], stack: ExitStack) -> None:
    """Keeps `name` on top of `inside` while the module runs."""

    def enter(*_: Any) -> None:
        inside.append(name)

    def leave(*_: Any) -> None:
        inside.pop()

    for handle in (
        module.register_forward_pre_hook(enter, prepend=True),
        module.register_forward_hook(leave, always_call=True),
    ):
        stack.callback(handle.remove)


def _map(call: Call, rows: Any, bins: Any) -> AttentionMap:
    Lq, Lk = call.query.shape[2], call.key.shape[2]
    chosen = None if rows is None else chosen_rows(rows, Lq, call.query.device)
    tiles = [] if bins is None else number_of_bins(bins, Lq, Lk)
    mask_and_terms = call[3:14]  # from band to softcap
    found = library.attention_map(call.query, call.key, *mask_and_terms, chosen, tiles)
    return AttentionMap(None if rows is None else found[0], found[1] if tiles else None, *found[2:])


def _rolled(call: Call, before: list[Tensor], bins: int) -> Tensor:
    """The shares (B, L, bins) after this call: A @ shares, A as in `rollout`, by fused attention."""
    (B, _, L, _), Lk, Hkv = call.query.shape, call.key.shape[2], call.key.shape[1]
    if Lk != L or (before and before[-1].shape[:2] != (B, L)):
        raise ValueError(f"rollout_bins: expected self-attention of one length, got {L} queries, {Lk} keys")
    n = number_of_bins(bins, L, L)[0]
    if before:
        shares = before[-1]
    else:
        bin_of = ((torch.arange(L, device=call.query.device) + 1) * n - 1) // L
        shares = torch.nn.functional.one_hot(bin_of, n).to(accumulator(call.query.dtype)).expand(B, L, n)
    attended = call._replace(
        query=call.query.to(shares.dtype),
        key=call.key.to(shares.dtype),
        value=shares[:, None].expand(B, Hkv, L, n),
        scale=default_scale(call.query) if call.scale is None else call.scale,
        dropout_p=0.0,
        dropout_seed=None,
    )
    return mix(library.forward(*attended)[0].mean(1), shares, 0.5)
