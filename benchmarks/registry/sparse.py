"""The cases of sparse patterns and of the layers that have one."""

from __future__ import annotations

from ..cases import Band, Case, Holes, Requirement, plain
from ..patterns import BigBird, Documents, Grid, Longformer, Table
from .bounds import D64, N4096, at_most, faster

__all__ = ["GROUPS", "LAYERS"]

WINDOW_256 = Band(255, 0)
BIGBIRD, GRID, DOCUMENTS = BigBird(64, 3), Grid(64, 13), Documents(512)
N8192, N16384 = plain(1, 8, 8192, 64), plain(1, 8, 16384, 64)


def window(name: str, *requirements: Requirement, **options: object) -> list[Case]:
    """Two lengths of a causal window."""
    peers = tuple(r.peer for r in requirements)
    return [
        Case(f"{name}-{shape.Lq}", shape, requirements, peers, mask=WINDOW_256, **options)
        for shape in (N4096, N16384)
    ]


PATTERNS = [
    *window("forward-window", faster(1.3, "flex"), headline=True),
    *window("both-window", faster(2.3, "sdpa_blocks"), passes="both", headline=True),
    Case("forward-bigbird", N4096, (faster(1.2, "flex"),), ("flex", "gather"), mask=BIGBIRD, headline=True),
    Case(
        "both-bigbird",
        N4096,
        (faster(1.7, "gather"),),
        ("gather",),
        passes="both",
        mask=BIGBIRD,
        headline=True,
    ),
    Case(
        "both-neighborhood",
        N4096,
        (faster(5, "sdpa_bool_mask"),),
        ("sdpa_bool_mask",),
        passes="both",
        mask=GRID,
        headline=True,
    ),
    Case(
        "both-documents",
        N8192,
        (faster(8, "sdpa_bool_mask"),),
        ("sdpa_bool_mask",),
        passes="both",
        mask=DOCUMENTS,
        headline=True,
    ),
]

TABLES = [
    *(
        Case(
            f"{passes}-window-table",
            N4096,
            (at_most(1.15, "band"),),
            ("band",),
            passes=passes,
            mask=Table(WINDOW_256),
        )
        for passes in ("forward", "both")
    ),
    *(
        Case(
            f"{passes}-holes-table",
            D64,
            (at_most(1.3, "unmasked"),),
            ("sdpa_bool_mask", "unmasked"),
            passes=passes,
            mask=Table(Holes(61)),
        )
        for passes in ("forward", "both")
    ),
]

GROWTH = [
    Case(
        "growth-window",
        plain(1, 8, 65536, 64),
        (Requirement("growth", 1.15, needs="generic"), Requirement("memory_growth", 1.1, needs="generic")),
        (),
        kind="growth",
        passes="both",
        mask=WINDOW_256,
        lengths=(4096, 8192, 16384, 32768, 65536),
        note="N from 4096 on",
        headline=True,
    ),
]

GROUPS = {"Sparse patterns": PATTERNS, "Tables": TABLES, "Growth": GROWTH}

LAYERS = [
    Case(
        "layer-longformer",
        N4096,
        (faster(5, "transformers"),),
        ("transformers",),
        passes="both",
        mask=Longformer(256, 16),
        headline=True,
    ),
    Case(
        "layer-bigbird",
        N4096,
        (faster(3, "transformers"),),
        ("transformers",),
        passes="both",
        mask=BIGBIRD,
        headline=True,
    ),
]
