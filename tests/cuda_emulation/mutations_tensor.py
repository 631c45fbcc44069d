"""Faults to plant into the kernels on tensor cores, and which check must notice each."""

from __future__ import annotations

from mutations import Mutations

TILE, SCORES, FORWARD = "tensor_tile.cuh", "attention_tensor_scores.cuh", "attention_tensor_forward.cuh"

# Of test_tensor_core_kernels.py.
LENGTHS = "tensor and test_lengths and float16 and 63"
MASKS = "tensor and test_masks and float16 and odd and (causal or everything)"
NONFINITE = "tensor and nonfinite and float16"

tensor = Mutations("tensor", rebuilt=("attention_half",), tests=LENGTHS)
fault, wrong = tensor.fault, tensor.wrong


def terms(name: str) -> str:
    return f"test_terms and float16 and {name}"


MUTATIONS = [
    fault("a tile is not waited for", FORWARD, "wait_for_copies<0>", "wait_for_copies<1>", "race"),
    fault("copies without a group", FORWARD, "end_copy_group();", "", "async copy"),
    fault("no barrier after a tile arrives", FORWARD, "__syncthreads_or(", "(", "race"),
    fault(
        "a warp's vote for the barrier",
        FORWARD,
        "__syncthreads_or(",
        "__ballot_sync(kWholeWarp, ",
        "race",
    ),
    fault("one stage for two", FORWARD, "copy(stage ^ 1, next)", "copy(stage, next)", "race"),
    fault("shared memory a tile short", FORWARD, "4 * kTileBytes", "3 * kTileBytes", "shared bounds"),
    fault("no swizzle", TILE, "(chunk ^ (row & 7))", "chunk", "bank conflict"),
    fault("rows beyond the end", TILE, "row < rows && columns > 0", "columns > 0", "global bounds"),
    fault(
        "chunks that are not aligned",
        TILE,
        "rows.row_stride % 16 == 0 &&",
        "",
        "misaligned",
        "tensor and test_head_dims and float16 and 65",
    ),
    fault("output beyond the end", FORWARD, "if (row >= head.row_count()) continue;", "", "global bounds"),
    fault(
        "two blocks on the same rows",
        FORWARD,
        "tiles - 1 - blockIdx.x % tiles",
        "blockIdx.x % tiles / 2",
        "race",
        LENGTHS.replace("63", "129"),
    ),
    fault(
        "a part of a warp goes on",
        SCORES,
        "if (__ballot_sync(kWholeWarp, map != 0) == 0)",
        "if (map == 0)",
        "divergence",
        MASKS,
    ),
    wrong(
        "whole chunks for the last columns", TILE, "? columns * 2 : 0", "? 16 : 0", "test_a_part_of_a_chunk"
    ),
    wrong("values not transposed", TILE, "load_matrices_transposed(right", "load_matrices(right"),
    wrong("operands mixed up", TILE, "{right[0], right[1]}", "{right[0], right[2]}"),
    wrong("the maximum of two lanes", TILE, "combine(value, __shfl_xor_sync(kWholeWarp, value, 2))", "value"),
    wrong("output not rescaled", FORWARD, "out[m][n][2 * r] *= shrink;", ""),
    wrong("sum not rescaled", FORWARD, "sum[m][r] * shrink + added", "sum[m][r] + added"),
    wrong("a tile left out", FORWARD, "next_keys(rows, j0 + kKeys)", "next_keys(rows, j0 + 2 * kKeys)"),
    wrong("lse in the wrong unit", FORWARD, "? top / kLog2E : top", "? top : top"),
    wrong(
        "weights of a tile's first rows twice",
        SCORES,
        "pack<kDtype>(weights[m][n][2 * r],",
        "pack<kDtype>(weights[m][n][0],",
    ),
    wrong("sinks counted four times", FORWARD, " || fragment_column() != 0", "", terms("sinks")),
    wrong("maps of other rows", SCORES, "map, row(m, x))", "map, row(m, 0))", MASKS),
    wrong("maps of other columns", SCORES, "of_row >> column(n, 0)", "of_row >> 8 * n", MASKS),
    wrong(
        "the band ends a key late",
        SCORES,
        "head.row_map(i, j0)",
        "head.row_map(i + 1, j0)",
        MASKS,
    ),
    wrong("a neighbour's draw", SCORES, "(j0 + 8 * n) / 4 + pair", "(j0 + 8 * n) / 4", terms("dropout")),
    wrong(
        "draws of the other row",
        SCORES,
        "own_row ? others : drawn",
        "own_row ? drawn : others",
        terms("dropout"),
    ),
    wrong("a weaker softcap", SCORES, "2 * kLog2E * x", "kLog2E * x", terms("softcap")),
    wrong("distances from the top", SCORES, "i0 + p.score.alibi_offset - j0", "i0 - j0", terms("alibi")),
    wrong(
        "a masked bias still counts",
        SCORES,
        "seen[m][r] &= ~(1u << (2 * n + c))",
        "(void)n",
        NONFINITE,
    ),
    wrong(
        "nonfinite values not noticed",
        TILE,
        "found |= is_nonfinite<kDtype>(pairs[e])",
        "(void)pairs",
        NONFINITE,
    ),
    wrong("masked values are summed", SCORES, "if (weight[m][e / 2] >> 16)", "", NONFINITE),
]
