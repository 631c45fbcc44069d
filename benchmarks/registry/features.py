"""The cases of linear attention on random features."""

from __future__ import annotations

from ..cases import CAUSAL, FEATURES, Case, Requirement
from .bounds import N4096, faster

__all__ = ["PERFORMER"]

NOTE = f"{FEATURES} features"
PEERS = ("performer_pytorch",)

PERFORMER = [
    Case(
        "performer-both",
        N4096,
        (faster(30, *PEERS), Requirement("memory_ratio", 30, *PEERS)),
        PEERS,
        passes="both",
        mask=CAUSAL,
        memory=True,
        note=NOTE,
        headline=True,
    ),
    Case("performer-forward", N4096, (), PEERS, mask=CAUSAL, note=NOTE, headline=True),
]
