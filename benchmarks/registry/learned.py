"""The cases of learned sparsity."""

from __future__ import annotations

from ..cases import Case, Requirement
from ..learned_patterns import Chosen, Native
from .bounds import N4096, faster

__all__ = ["NATIVE_SPARSE", "SELECT_BLOCKS"]

CHOSEN = Chosen(64, 16)
NATIVE = Native(CHOSEN, 32, 16, 512)
PEERS = ("sdpa", "sdpa_bool_mask")
# The peer takes 0.7 GiB: with less than that ours is below the 1 GiB that is asked for.
MEMORY = Requirement("memory_ratio", 4.0, "sdpa_bool_mask", needs="generic")

SELECT_BLOCKS = [
    Case("select_blocks-forward", N4096, (faster(1.0),), PEERS, mask=CHOSEN, headline=True),
    Case("select_blocks-both", N4096, (faster(1.0),), PEERS, passes="both", mask=CHOSEN, headline=True),
]
NATIVE_SPARSE = [
    Case("native_sparse-forward", N4096, (faster(1.0),), PEERS, mask=NATIVE, headline=True),
    Case(
        "native_sparse-both",
        N4096,
        (faster(1.0), MEMORY),
        PEERS,
        passes="both",
        mask=NATIVE,
        memory=True,
        headline=True,
    ),
]
