"""Faults to plant into the passes of linear attention that go row by row."""

from __future__ import annotations

from mutations import Mutations

ROWS = "linear_rows.cuh"
OUTSIDE = "if (b >= p.B) return;"


def maps(name: str) -> str:
    """Of test_linear_kernels.py: two query heads, one key head, 20 tokens, 40 columns."""
    return f"linear and test_feature_maps and {name} and float32"


TOKEN = "linear and test_chunk_borders and token-130-float32"
ONE_HEAD = "linear and test_causal and grouped and head and float32"

# What forward maps, and what backward does row by row.
forward = Mutations("linear rows", rebuilt=("linear_float",), tests=maps("softmax"))
backward = Mutations("linear rows", rebuilt=("linear_float_backward",), tests=maps("softmax"))
# Of a float kernel that several files have, the linker takes the first one's.
terms = Mutations("linear rows", rebuilt=("linear_bfloat16_backward",), tests=maps("softmax"))

MUTATIONS = [
    forward.fault("features beyond the last row", ROWS, OUTSIDE, "", "race"),
    forward.fault(
        "as many key heads as queries have", ROWS, "call.heads = p.Hk", "call.heads = p.Hq", "race"
    ),
    forward.wrong("keys stay as they are", ROWS, "call.from = p.map_key, call.to = p.key;", ""),
    forward.wrong("softmax without its maximum", ROWS, "std::exp(x - largest) / sum", "std::exp(x) / sum"),
    forward.wrong("softmax with a lane's maximum", ROWS, "largest = warp_maximum(largest);", ""),
    forward.wrong("softmax with a lane's sum", ROWS, "sum = warp_sum(sum);", ""),
    forward.wrong("relu of negative numbers", ROWS, ": x == x ? T(0) : x;", ": x;", maps("relu")),
    forward.wrong("elu without 1", ROWS, "phi = x > 0 ? x + 1", "phi = x > 0 ? x", maps("elu")),
    terms.fault("factors beyond the last row", ROWS, OUTSIDE, "", "global bounds", TOKEN, occurrence=2),
    backward.fault("gradients beyond the last row", ROWS, OUTSIDE, "", "race", occurrence=3),
    terms.wrong("a lane's delta", ROWS, "delta = warp_sum(delta);", ""),
    terms.wrong("denominators for factors", ROWS, "factor = 1 / load", "factor = load"),
    terms.wrong("no scale", ROWS, "static_cast<T>(p.scale), delta", "T(1), delta"),
    backward.wrong("one head of a group", ROWS, "g < p.group; ++g", "g < 1; ++g"),
    backward.wrong("relu's derivative", ROWS, "phi(d) > 0 ? x : T(0)", "x", maps("relu")),
    backward.wrong("elu's derivative", ROWS, "phi(d) < 1 ? phi(d) : T(1)", "T(1)", maps("elu")),
    backward.wrong("softmax's derivative", ROWS, "(x - mean)", "x"),
    backward.wrong("softmax's derivative with a lane's mean", ROWS, "mean = warp_sum(mean);", ""),
    backward.fault("no barrier in the sum of a head", ROWS, "__syncthreads();", "", "race", ONE_HEAD),
    backward.fault(
        "all threads write a head's sum", ROWS, "if (threadIdx.x != 0) return;", "", "race", ONE_HEAD
    ),
    backward.wrong(
        "one warp's sum of a head",
        ROWS,
        "warp < kThreads / 32; ++warp) sum",
        "warp < 1; ++warp) sum",
        ONE_HEAD,
    ),
    backward.wrong(
        "one token in two of a head",
        ROWS,
        "e += kThreads",
        "e += 2 * kThreads",
        "linear and test_parts and head",
    ),
]
