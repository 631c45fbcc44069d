"""Faults to plant into the kernels that cut the keys of few queries, and which check must notice each."""

from __future__ import annotations

from mutations import Mutations

SPLITS, TENSOR, SCORES = "attention_splits.cuh", "attention_tensor_splits.cuh", "attention_scores.cuh"
STORAGE, TILE = "storage.cuh", "tensor_tile.cuh"
BARRIER = "__syncthreads();"


# Of test_split_kernels.py.
def shape(name: str) -> str:
    return f"split and test_shapes and {name}"


def terms(name: str) -> str:
    return f"split and test_terms and none and {name} and float64"


SMALL = shape("three_queries and float32")
GROUP = shape("group_of_4 and float32")
TENSOR_GROUP = shape("group_of_4 and float16")
TWO_WARPS = shape("two_warps and float16")

plain = Mutations("splits", rebuilt=("attention_splits",), tests=SMALL)
tensor = Mutations("tensor splits", rebuilt=("attention_tensor_splits",), tests=TENSOR_GROUP)
fault, wrong = plain.fault, plain.wrong

MUTATIONS = [
    fault("no barrier before weights are read", SPLITS, BARRIER, "{}", "race"),
    fault(
        "the merge's shared memory too short",
        SPLITS,
        "p.splits.count * sizeof(T)",
        "(p.splits.count - 1) * sizeof(T)",
        "shared bounds",
    ),
    fault(
        "rows beyond the end", SPLITS, "if (row >= head.row_count()) continue;", "", "global bounds", SMALL
    ),
    fault("columns beyond the end", SPLITS, "if (column < p.Dv) out", "out", "race", GROUP),
    fault(
        "two blocks on the same split",
        SPLITS,
        "split = item % p.splits.count;",
        "split = item % p.splits.count / 2;",
        "race",
    ),
    wrong("keys counted twice", SCORES, "max64(tiles.begin, within.begin)", "tiles.begin"),
    wrong(
        "a tile left out of each split",
        SPLITS,
        "(split + 1) * p.splits.keys",
        "(split + 1) * p.splits.keys - 64",
    ),
    wrong("each split has the sink", SCORES, "if (kGroup || !p.sinks)", "if (!p.sinks)", terms("sinks")),
    wrong("no sink in the merge", SPLITS, "T whole = weight(sink);", "T whole = 0;", terms("sinks")),
    wrong("a split weighs as another", SPLITS, "weights[s] * out", "weights[0] * out"),
    wrong(
        "weights without a base",
        SPLITS,
        "std::exp(x - base)",
        "std::exp(x)",
        "split and outweigh and float32",
    ),
    wrong("lse of a split", SPLITS, "top + std::log(whole)", "top"),
    wrong(
        "an empty row is 0 / 0", SPLITS, "whole == 0 ? T(0) : sum", "sum", "split and nobody_sees and float32"
    ),
    wrong("queries of one head", STORAGE, "n % group * head_stride", "n % group * 0", GROUP),
    wrong("the last query's keys", SCORES, "row_count()) - 1) + 1}", "row_count()) - 1)}"),
    wrong("positions of rows", SCORES, "head_of(row), query_of(row), j0", "head_of(row), row, j0", GROUP),
    wrong(
        "the table of one head",
        SCORES,
        "{h, h + (kGroup ? group : 1)}",
        "{h, h + 1}",
        "split and test_masks and float32 and group_of_4 and (table or chosen)",
    ),
    wrong(
        "the slope of one head",
        SCORES,
        "if constexpr (!kGroup) return slope;",
        "return slope;",
        terms("alibi"),
    ),
    wrong("draws of one head", SCORES, "keep4(b, head_of(row),", "keep4(b, h,", terms("dropout")),
    wrong("the bias of one head", SCORES, "at(b, head_of(row), query", "at(b, h, query", terms("bias")),
    tensor.fault("no barrier after the last tile", TENSOR, BARRIER, "{}", "race"),
    tensor.fault("no barrier before sums are read", TENSOR, BARRIER, "{}", "race", occurrence=2),
    tensor.fault("warps in one place", TENSOR, "warp * kCount * 32", "kCount * 32", "race"),
    tensor.fault("rows that are not there", TILE, "first + row < from.end &&", "", "global bounds"),
    tensor.fault(
        "chunks of heads that are not aligned",
        TILE,
        "rows.head_stride % 16 == 0 &&",
        "",
        "misaligned",
        "split and not_aligned and float16",
    ),
    tensor.wrong("sums of other rows", TENSOR, "(Shape::kWarps / share.parts)", "1", TWO_WARPS),
    tensor.wrong("a warp's sums not rescaled", TENSOR, "sum = sum * keep +", "sum = sum +"),
    tensor.wrong(
        "sums in the wrong unit",
        TENSOR,
        ".is_plain() ? 1 : kLog2E",
        ".is_plain() ? 1 : 1",
        "split and test_terms and bfloat16 and none and softcap",
    ),
    tensor.wrong("each warp has all keys", TENSOR, "k = share.part * Shape::kWarpKeys", "k = 0"),
    tensor.wrong("the same keys again", TENSOR, "key.from_row(k)", "key.from_row(0)"),
    tensor.wrong("places of a tile's first keys", TENSOR, "j0 + k, nonfinite", "j0, nonfinite"),
    tensor.wrong("a warp's rows shifted", TENSOR, "item.row + share.row", "item.row", TWO_WARPS),
    tensor.fault(
        "shared memory a tile short",
        TENSOR,
        "kQueryBytes + 4 * kTileBytes",
        "kQueryBytes + 3 * kTileBytes",
        "shared bounds",
    ),
    tensor.fault("columns beyond the last", TENSOR, "if (column < p.Dv) out", "out", "race"),
    tensor.fault("an lse of each lane", TENSOR, "if (fragment_column() == 0) static", "static", "race"),
    tensor.wrong("a warp's own maximum", TENSOR, "softmax.maximum[0][r] = top;", ""),
    tensor.wrong("sums of the other row", TENSOR, "e % 4 / 2 != r", "e % 4 / 2 == r"),
    tensor.wrong("two warps' keys", TENSOR, "part < share.parts; ++part", "part < 2; ++part"),
    tensor.wrong("sums of each lane's first row", TENSOR, "at_[32 * (2 + r)] * add", "at_[32 * 2] * add"),
]
