"""The cases of attention maps: 64 x 64 tiles, column sums and entropies."""

from __future__ import annotations

from ..cases import CAUSAL, Case
from .bounds import D64, N4096

__all__ = ["MAPS"]

PEERS = ("softmax", "rows_128")
MAPS = [
    Case("attention_map-dense", D64, peers=PEERS, memory=True, headline=True),
    Case("attention_map-causal", N4096, peers=PEERS, mask=CAUSAL, memory=True, headline=True),
]
