"""What is measured: cases as data, with the requirement each has to meet; a file per family of operators."""

from __future__ import annotations

from dataclasses import replace

from ..cases import Case
from . import attention, features, layers, learned, linear, maps, sparse

__all__ = ["CASES", "operators"]


def _grouped(heading: str, cases: list[Case], op: str = "attention") -> list[Case]:
    return [replace(case, group=heading, op=op) for case in cases]


CASES: tuple[Case, ...] = (
    *(case for heading, cases in attention.GROUPS.items() for case in _grouped(heading, cases)),
    *(case for heading, cases in sparse.GROUPS.items() for case in _grouped(heading, cases)),
    *_grouped("Linear attention", linear.LINEAR_ATTENTION, "linear_attention"),
    *_grouped("One token of linear attention", linear.LINEAR_ATTENTION_STEP, "linear_attention_step"),
    *_grouped("The delta rule", linear.DELTA_RULE, "delta_rule"),
    *_grouped("Performer", features.PERFORMER, "performer"),
    *_grouped("Attention maps", maps.MAPS, "attention_map"),
    *_grouped("Blocks chosen by the queries", learned.SELECT_BLOCKS, "select_blocks"),
    *_grouped("Native sparse attention", learned.NATIVE_SPARSE, "native_sparse"),
    *_grouped("The layer, of width E = H x D", layers.LAYER, "multihead_attention"),
    *_grouped("Sparse layers, of width E = H x D", sparse.LAYERS, "multihead_attention"),
)


def operators() -> list[str]:
    """The operators that have cases."""
    return sorted({case.op for case in CASES})
