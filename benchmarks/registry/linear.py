"""The cases of linear attention and the delta rule."""

from __future__ import annotations

from dataclasses import replace

from ..cases import CAUSAL, Case, Requirement, Shape, plain
from .bounds import N4096, faster, share

__all__ = ["DELTA_RULE", "LINEAR_ATTENTION", "LINEAR_ATTENTION_STEP"]

CHUNKS = ("chunks_64", "chunks_128")
WY_CHUNKS = ("chunks_32", "chunks_64")
FT, FLA = "fast_transformers", "fla"
ONE_HEAD = plain(1, 1, 16384, 64)
STATES = Shape(64, 16, 16, 1, 1, 128, 128)  # 64 MiB
PLAIN = "no feature map, not normalised"


def case(name: str, requirements: tuple[Requirement, ...], peers: tuple[str, ...], **options: object) -> Case:
    passes = "both" if name.endswith("-both") else "forward"
    return Case(name, N4096, requirements, peers, passes=passes, mask=CAUSAL, **options)


def on_two_threads(name: str, passes: str, *requirements: Requirement, **options: object) -> Case:
    judged = tuple(replace(r, control=1.95) for r in requirements)
    return Case(name, ONE_HEAD, judged, (), passes=passes, mask=CAUSAL, kind="scaling", threads=2, **options)


TWICE = Requirement("scaling", 1.6, needs="generic")

LINEAR_ATTENTION = [
    case(
        "linear_attention-forward",
        (*(faster(3, c) for c in CHUNKS), faster(1.2, FT)),
        (*CHUNKS, FT),
        headline=True,
    ),
    case(
        "linear_attention-both",
        (*(faster(2.7, c) for c in CHUNKS), faster(2, FT)),
        (*CHUNKS, FT),
        headline=True,
    ),
    case("linear_attention-plain-forward", (), (FT,), variant="plain", note=PLAIN),
    case("linear_attention-plain-both", (), (FT,), variant="plain", note=PLAIN),
    case(
        "linear_attention-decay-forward",
        (faster(4, FLA),),
        (FLA,),
        variant="decay",
        note="decay per token",
        headline=True,
    ),
    case(
        "linear_attention-decay-both",
        (faster(4, FLA),),
        (FLA,),
        variant="decay",
        note="decay per token",
        headline=True,
    ),
    on_two_threads("threads-linear_attention-one-head", "forward", TWICE),
    on_two_threads("threads-linear_attention-one-head-both", "both"),
    replace(
        case("linear_attention-crossover", (), ("softmax",), note="to causal softmax attention"),
        kind="crossover",
        shape=plain(1, 8, 2048, 64),
    ),
]
LINEAR_ATTENTION_STEP = [
    Case(
        "linear_attention_step-forward",
        STATES,
        (share(0.5, needs="generic"),),
        ("torch",),
        mask=CAUSAL,
        variant="decay",
        bound="update",
        note="one token, in place on states beyond L3",
        headline=True,
    ),
]
DELTA_RULE = [
    case("delta_rule-forward", (faster(4, FLA),), (*WY_CHUNKS, FLA), headline=True),
    case("delta_rule-both", (faster(4, FLA),), (*WY_CHUNKS, FLA), headline=True),
    case("delta_rule-decay-forward", (faster(4, FLA),), (FLA,), variant="decay", note="gated", headline=True),
    case("delta_rule-decay-both", (faster(4, FLA),), (FLA,), variant="decay", note="gated", headline=True),
    on_two_threads("threads-delta_rule-one-head", "forward"),
    on_two_threads("threads-delta_rule-one-head-both", "both"),
]
