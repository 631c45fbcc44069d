"""Linear attention and the delta rule: ours, and the chunked forms of plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import attention_ext as ax

from .attention_peers import on_tensors
from .cases import CAUSAL, Case
from .contender import Contender

__all__ = ["DELTA_RULE", "EPS", "LINEAR_ATTENTION", "check_causal"]

Forward = Callable[..., Tensor]
EPS = 1e-6


def check_causal(case: Case, *variants: str) -> None:
    s = case.shape
    if case.mask != CAUSAL or s.Lq != s.Lk or s.Hkv != s.H:
        raise ValueError(f"{case.name}: causal and without grouped heads only")
    if case.variant not in variants:
        raise ValueError(f"{case.name}: variants {variants} only")


def linear_attention(case: Case) -> Forward:
    check_causal(case, "", "plain", "decay")
    if not case.variant:
        return lambda q, k, v: ax.linear_attention(q, k, v, causal=True, eps=EPS)
    options = {"feature_map": "identity", "normalize": False, "scale": case.shape.D**-0.5}

    def forward(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None = None) -> Tensor:
        return ax.linear_attention(q, k, v, causal=True, decay=decay, **options)

    return forward


def softmax(case: Case) -> Forward:
    return lambda q, k, v: ax.attention(q, k, v, mask=ax.masks.Causal())


def linear_attention_in_chunks(chunk: int) -> Callable[[Case], Forward]:
    """Products inside a chunk, and cumulative sums of the states at the borders of all chunks."""

    def make(case: Case) -> Forward:
        check_causal(case, "")

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k = F.elu(q) + 1, F.elu(k) + 1
            queries, keys, values = (x.unflatten(2, (-1, chunk)) for x in (q, k, v))
            states = keys.transpose(-1, -2) @ values
            before = states.cumsum(2) - states
            inside = (queries @ keys.transpose(-1, -2)).tril()
            out = (inside @ values + queries @ before).flatten(2, 3)
            return out / ((q * k.cumsum(2)).sum(-1, keepdim=True) + EPS)

        return forward

    return make


def delta_rule(case: Case) -> Forward:
    check_causal(case, "", "decay")

    def forward(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor | None = None) -> Tensor:
        return ax.delta_rule(q, F.normalize(k, dim=-1), v, beta, decay=decay)

    return forward


def delta_rule_in_chunks(chunk: int) -> Callable[[Case], Forward]:
    """The WY form (Yang et al. 2024): a triangular solve per chunk, then a loop over the chunks' states."""

    def make(case: Case) -> Forward:
        check_causal(case, "")
        s = case.shape

        def forward(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
            rows = (q * s.D**-0.5, F.normalize(k, dim=-1), v, beta[..., None])
            queries, keys, values, betas = (x.unflatten(2, (-1, chunk)) for x in rows)
            keys_across = keys.transpose(-1, -2)
            inside = (queries @ keys_across).tril()
            overlaps = torch.eye(chunk, dtype=q.dtype) + (betas * keys @ keys_across).tril(-1)
            sides = torch.cat((betas * values, betas * keys), dim=-1)
            solved = torch.linalg.solve_triangular(overlaps, sides, upper=False, unitriangular=True)
            u, w = solved.split((s.Dv, s.D), dim=-1)
            state, outs = q.new_zeros(s.B, s.H, s.D, s.Dv), []
            for c in range(s.Lq // chunk):
                corrected = u[:, :, c] - w[:, :, c] @ state
                outs.append(queries[:, :, c] @ state + inside[:, :, c] @ corrected)
                state = state + keys_across[:, :, c] @ corrected
            return torch.cat(outs, dim=2)

        return forward

    return make


LINEAR_ATTENTION = {
    "ours": Contender("attention_ext", on_tensors(linear_attention)),
    "softmax": Contender("ours, causal softmax", on_tensors(softmax)),
    "chunks_64": Contender("torch, chunks of 64", on_tensors(linear_attention_in_chunks(64))),
    "chunks_128": Contender("torch, chunks of 128", on_tensors(linear_attention_in_chunks(128))),
}
DELTA_RULE = {
    "ours": Contender("attention_ext", on_tensors(delta_rule)),
    "chunks_32": Contender("torch, WY chunks of 32", on_tensors(delta_rule_in_chunks(32))),
    "chunks_64": Contender("torch, WY chunks of 64", on_tensors(delta_rule_in_chunks(64))),
}
