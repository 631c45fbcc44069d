"""Faults to plant into the backward pass on tensor cores, and which check must notice each."""

from __future__ import annotations

from mutations import Mutations

SCORES, BACKWARD = "attention_tensor_scores.cuh", "attention_tensor_backward.cuh"

# Of test_tensor_core_kernels.py.
LENGTHS = "tensor and test_lengths and float16 and 63"
# Two stages, three tiles of keys.
NARROW = "tensor and test_head_dims and float16 and 64"
# One stage.
WIDE = "tensor and test_head_dims and float16 and 250"
MASKS = "tensor and test_masks and float16 and odd and (causal or everything)"
# A batch row without keys.
EMPTY = "tensor and test_masks and float16 and square and lengths"
NONFINITE = "tensor and nonfinite_rows and float16"
BFLOAT16 = ("attention_bfloat16_backward",)

backward = Mutations("tensor backward", rebuilt=("attention_half_backward",), tests=LENGTHS)
fault, wrong = backward.fault, backward.wrong


def terms(name: str) -> str:
    return f"test_terms and float16 and {name}"


WAIT, VOTE = "wait_for_copies<0>", "__syncthreads_or("
MUTATIONS = [
    fault("keys are not waited for", BACKWARD, WAIT, "wait_for_copies<1>", "race"),
    fault("queries are not waited for", BACKWARD, WAIT, "wait_for_copies<1>", "race", occurrence=2),
    fault(
        "copies in flight at the end",
        BACKWARD,
        "  wait_for_copies<0>();\n  const KeyBlock",
        "  const KeyBlock",
        "async copy",
        EMPTY,
    ),
    fault("no barrier after keys arrive", BACKWARD, VOTE, "(", "race"),
    fault("no barrier after queries arrive", BACKWARD, VOTE, "(", "race", occurrence=2),
    fault("one stage of keys overwritten", BACKWARD, "stage ^ 1", "stage", "race", NARROW),
    fault("one stage of queries overwritten", BACKWARD, "stage ^ 1", "stage", "race", NARROW, occurrence=2),
    fault(
        "no barrier before one stage is refilled",
        BACKWARD,
        "if (Shape::kStages == 1) __syncthreads();",
        "",
        "race",
        WIDE,
    ),
    fault(
        "no barrier before a head's sum",
        BACKWARD,
        "  __syncthreads();\n  if (threadIdx",
        "  if (threadIdx",
        "race",
        "test_terms and bfloat16 and alibi",
        rebuilt=BFLOAT16,
    ),
    fault(
        "no barrier in a head's sum",
        BACKWARD,
        "  __syncthreads();\n  double",
        "  double",
        "race",
        "test_terms and bfloat16 and alibi",
        rebuilt=BFLOAT16,
    ),
    fault(
        "shared memory a tile short",
        BACKWARD,
        "2 * kStages * kPassingBytes",
        "kStages * kPassingBytes",
        "shared bounds",
    ),
    fault("dq beyond the end", BACKWARD, "if (p.dq && i < p.Lq)", "if (p.dq)", "global bounds"),
    fault("dk beyond the end", BACKWARD, "if (j >= p.Lk) continue;", "", "global bounds", MASKS),
    fault("statistics beyond the end", BACKWARD, "inside = i < p.Lq", "inside = true", "global bounds"),
    fault(
        "two blocks on the same keys",
        BACKWARD,
        "index % blocks * rows",
        "index % blocks / 2 * rows",
        "race",
        MASKS,
    ),
    wrong("one head of a group", BACKWARD, "g < p.group()", "g < 1"),
    wrong("delta left out", BACKWARD, "z * x - mean", "z * x"),
    wrong("lse in one part", BACKWARD, "weight - high - low", "weight - low"),
    wrong("dropout not scaled back", BACKWARD, "? head.keep_scale : 0", "? 1 : 0", terms("dropout")),
    wrong(
        "weights dropped once",
        BACKWARD,
        "weight = counts ? z * probability",
        "weight = counts ? probability",
        terms("dropout"),
    ),
    wrong("draws of other keys", SCORES, "keys >> own & 1", "keys >> (own ^ 1) & 1", terms("dropout")),
    wrong("draws of other queries", SCORES, "(2 * n + from % 2)", "(2 * n + from / 2)", terms("dropout")),
    wrong(
        "softcap without its derivative",
        SCORES,
        "softcap_derivative(x * inverse, 1.0f)",
        "1.0f",
        terms("softcap"),
    ),
    wrong("dx without the scale", BACKWARD, "* head.scale : 0", ": 0"),
    wrong("slopes of the last tile", BACKWARD, "slope += warp.slope", "slope = warp.slope", terms("alibi")),
    wrong("maps of a neighbour's query", SCORES, "map, column(n, x))", "map, column(n, 0))", MASKS),
    wrong("maps of other keys", SCORES, "of_column >> row(m, r)", "of_column >> row(m, 0)", MASKS),
    wrong("masked rows are summed", BACKWARD, "if (pair_by_pair)", "if (false)", NONFINITE),
    wrong(
        "rows are not looked at",
        BACKWARD,
        "if (Shape::kScores)\n      found |=",
        "if (false)\n      found |=",
        NONFINITE,
    ),
    wrong(
        "grad_out is not looked at",
        BACKWARD,
        "if (Shape::kValues)\n      found |=",
        "if (false)\n      found |=",
        NONFINITE,
    ),
    wrong(
        "tiles of queries left out",
        BACKWARD,
        "next_queries(j0, i0 + Shape::kPassing,",
        "next_queries(j0, i0 + 64,",
    ),
]
