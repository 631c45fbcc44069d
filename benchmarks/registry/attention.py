"""The cases of dense attention, windows and biases."""

from __future__ import annotations

from dataclasses import replace

from ..cases import CAUSAL, Band, Case, Holes, Requirement, Shape, plain
from .bounds import D64, at_most, faster, faster_bf16, share

__all__ = ["GROUPS"]

WINDOW_256 = Band(255, 0)
HOLES, PADDING = Holes(61), Holes(61, keys_only=True)  # tiles are 64 keys wide
D128 = plain(1, 8, 2048, 128)
N512, N8192 = plain(4, 8, 512, 64), plain(1, 8, 8192, 64)
N128, PAIR = plain(32, 8, 128, 64), plain(128, 4, 512, 32)
PREFILL, ONE_HEAD = plain(1, 8, 1024, 64), plain(1, 1, 4096, 64)
TINY, DECODE = plain(1, 1, 8, 16), Shape(1, 32, 8, 1, 16384, 128, 128)
VIEWS = "views of (B, L, H, D)"

FLOAT32 = [
    Case("forward-dense", D64, (faster(1.2), share(0.85)), memory=True, headline=True),
    Case("forward-causal", D64, (faster(1.5), share(0.78)), mask=CAUSAL, headline=True),
    Case("forward-dense-d128", D128, (share(0.85),)),
    Case("forward-causal-d128", D128, mask=CAUSAL),
    Case("both-dense", D64, (faster(1.3),), passes="both", memory=True, headline=True),
    Case("both-causal", D64, (faster(1.55),), passes="both", mask=CAUSAL, headline=True),
    Case("both-dense-d128", D128, (faster(1.2),), passes="both"),
    Case("both-causal-d128", D128, (faster(1.45),), passes="both", mask=CAUSAL),
]

SHORT = [
    Case("forward-dense-512", N512, (faster(1.15),)),
    Case(
        "forward-causal-512",
        N512,
        (faster(2.0), at_most(0.65, "unmasked")),
        ("sdpa", "unmasked"),
        mask=CAUSAL,
        headline=True,
    ),
    Case("both-dense-512", N512, (faster(1.3),), passes="both"),
    Case("both-causal-512", N512, (faster(2.1),), passes="both", mask=CAUSAL),
    Case("forward-dense-128", N128, (faster(1.3),), headline=True),
    Case("both-dense-128", N128, (faster(1.3),), passes="both"),
]

WINDOWS = [
    Case(
        "forward-window",
        N8192,
        (faster(35, "sdpa_bool_mask"),),
        ("sdpa_bool_mask", "sdpa_blocks", "flex"),
        mask=WINDOW_256,
        memory=True,
        headline=True,
    ),
    Case(
        "both-window",
        N8192,
        (faster(25, "sdpa_bool_mask"), faster(2.5, "sdpa_blocks")),
        ("sdpa_bool_mask", "sdpa_blocks"),
        passes="both",
        mask=WINDOW_256,
        memory=True,
        headline=True,
    ),
    Case(
        "memory-window",
        plain(1, 8, 100_000, 64),
        (Requirement("memory", 3.0, needs="generic"),),
        ("sdpa_bool_mask",),
        kind="memory",
        passes="both",
        mask=WINDOW_256,
        tail=512,
        headline=True,
    ),
]

MASKS_AND_VIEWS = [
    Case("forward-holes", D64, (at_most(1.3, "unmasked"),), ("sdpa_bool_mask", "unmasked"), mask=HOLES),
    Case("forward-padding", D64, (at_most(1.3, "unmasked"),), ("sdpa_bool_mask", "unmasked"), mask=PADDING),
    Case(
        "both-holes",
        D64,
        (at_most(1.3, "unmasked"),),
        ("sdpa_bool_mask", "unmasked"),
        passes="both",
        mask=HOLES,
    ),
    Case(
        "both-padding",
        D64,
        (at_most(1.3, "unmasked"),),
        ("sdpa_bool_mask", "unmasked"),
        passes="both",
        mask=PADDING,
    ),
    Case(
        "forward-views",
        D64,
        (at_most(1.05, "contiguous"),),
        ("sdpa", "contiguous"),
        layout="BLHD",
        note=VIEWS,
    ),
    Case(
        "both-views",
        D64,
        (at_most(1.05, "contiguous"),),
        ("sdpa", "contiguous"),
        passes="both",
        layout="BLHD",
        note=VIEWS,
    ),
    Case(
        "both-pair-bias",
        PAIR,
        (faster(2.0), Requirement("memory_ratio", 10.0, "sdpa", needs="generic")),
        passes="both",
        pair_bias=True,
        memory=True,
        note="bias with a gradient",
        headline=True,
    ),
]

NARROW = [
    Case("forward-dense-bfloat16", D64, (faster_bf16(2.2),), dtype="bfloat16", headline=True),
    Case("forward-causal-bfloat16", D64, (faster_bf16(2.7),), dtype="bfloat16", mask=CAUSAL, headline=True),
    Case("forward-dense-d128-bfloat16", D128, (faster_bf16(2.0),), dtype="bfloat16"),
    Case("forward-causal-d128-bfloat16", D128, (faster_bf16(2.5),), dtype="bfloat16", mask=CAUSAL),
    Case("both-dense-bfloat16", D64, (faster_bf16(2.0),), dtype="bfloat16", passes="both", headline=True),
    Case(
        "both-causal-bfloat16",
        D64,
        (faster_bf16(2.4),),
        dtype="bfloat16",
        passes="both",
        mask=CAUSAL,
        headline=True,
    ),
    Case(
        "forward-window-bfloat16",
        N8192,
        (faster_bf16(50, "sdpa_bool_mask"),),
        ("sdpa_bool_mask",),
        dtype="bfloat16",
        mask=WINDOW_256,
    ),
    Case(
        "both-window-bfloat16",
        D64,
        (faster_bf16(12, "sdpa_bool_mask"),),
        ("sdpa_bool_mask",),
        dtype="bfloat16",
        passes="both",
        mask=WINDOW_256,
    ),
    Case("forward-dense-float16", D64, dtype="float16"),
    Case("forward-causal-float16", D64, dtype="float16", mask=CAUSAL),
    Case("both-dense-float16", D64, dtype="float16", passes="both"),
    Case("both-causal-float16", D64, dtype="float16", passes="both", mask=CAUSAL),
]

OTHERS = [
    Case("forward-prefill", PREFILL, (faster(1.15, "onnxruntime"),), ("onnxruntime",), layout="BLHD"),
    Case(
        "forward-prefill-causal",
        PREFILL,
        (faster(1.5, "onnxruntime_grouped"),),
        ("onnxruntime_grouped",),
        layout="BLHD",
        mask=CAUSAL,
        headline=True,
    ),
    Case("both-dense-float64", D64, dtype="float64", passes="both"),
    Case("forward-dense-avx2", D64, (share(0.75, needs="avx2"),), capability="avx2", note="on AVX2"),
    Case("forward-decode", DECODE, peers=("sdpa", "matmul"), bound="bandwidth", note="one query"),
    Case("overhead-forward", TINY, (at_most(3.0, "sdpa", needs="generic"),), note="call overhead"),
    Case(
        "overhead-both",
        TINY,
        (at_most(2.5, "sdpa", needs="generic"),),
        passes="both",
        note="call overhead",
    ),
]


def on_two_threads(case: Case, *requirements: Requirement) -> Case:
    return replace(
        case,
        name=f"threads-{case.name}",
        kind="scaling",
        threads=2,
        requirements=tuple(replace(r, control=1.95) for r in requirements),
        memory=False,
        headline=False,
    )


SCALING = Requirement("scaling", 1.85, needs="generic")
TWO_THREADS = [
    *(on_two_threads(case, SCALING) for case in FLOAT32 if case.shape == D64),
    on_two_threads(Case("both-one-head", ONE_HEAD, passes="both")),
    on_two_threads(Case("backward-one-head", ONE_HEAD, passes="backward"), faster(1.9)),
    on_two_threads(Case("backward-causal-one-head", ONE_HEAD, passes="backward", mask=CAUSAL), faster(2.3)),
]

GROUPS = {
    "float32": FLOAT32,
    "Short sequences": SHORT,
    "Windows": WINDOWS,
    "Masks, bias and views": MASKS_AND_VIEWS,
    "bfloat16 and float16": NARROW,
    "Others": OTHERS,
    "Two threads": TWO_THREADS,
}
