"""Faults to plant into the kernels without tensor cores, and which check must notice each."""

from __future__ import annotations

from mutations import Mutation, Mutations

SHAPES = "test_shapes and float32 and (square or odd)"
MASKS = "test_masks and float32 and odd and (causal or everything)"
TILE, SCORES, FORWARD = "tile.cuh", "attention_scores.cuh", "attention_forward.cuh"
GRADIENTS, BACKWARD = "attention_gradients.cuh", "attention_backward.cuh"
TERMS = "attention_backward_terms.cuh"
BARRIER = "__syncthreads();"

plain = Mutations("plain", rebuilt=("attention_float", "attention_plan"), tests=SHAPES)
fault, wrong = plain.fault, plain.wrong


def without_barrier(name: str, file: str, occurrence: int, tests: str = SHAPES) -> Mutation:
    return fault(f"no barrier {name}", file, BARRIER, "{}", "race", tests, occurrence)


MUTATIONS = [
    without_barrier("after rows are loaded", TILE, 1),
    without_barrier("after a product", TILE, 2),
    without_barrier("before the maps are read", TILE, 3, "test_terms and float32 and bias"),
    without_barrier("after values are loaded", TILE, 4),
    without_barrier("after a weighted sum", TILE, 5),
    without_barrier("between maps of the statistics", FORWARD, 1, "test_scores_as_large"),
    without_barrier("after split rows", BACKWARD, 1, "test_scores_as_large"),
    without_barrier("in the sum of sinks", BACKWARD, 2, "test_terms and float32 and sinks"),
    without_barrier("in the sum of slopes", BACKWARD, 3, "test_terms and float32 and alibi"),
    without_barrier("before a bias tile is summed", TERMS, 1, "test_biases_broadcast"),
    without_barrier("between maps of a bias", TERMS, 2, "test_a_block_sums"),
    fault("a warp's barrier for the block's", TILE, BARRIER, "__syncwarp();", "race", SHAPES),
    fault(
        "half the block at a barrier",
        SCORES,
        "return __syncthreads_or(map != 0)",
        "return threadIdx.x >= 128 ? TileKind::kPartial : __syncthreads_or(map != 0)",
        "divergence",
        SHAPES,
    ),
    fault(
        "shared memory too short",
        FORWARD,
        "kThreads, sizeof(TileMemory<T, N>)",
        "kThreads, sizeof(TileMemory<T, N>) - 1024",
        "shared bounds",
        SHAPES,
    ),
    fault("rows beyond the end are read", "storage.cuh", "row >= end || ", "", "global bounds", SHAPES),
    fault(
        "columns beyond the end are read", "storage.cuh", " || column >= columns", "", "global bounds", SHAPES
    ),
    fault("output beyond the end", FORWARD, "if (i >= p.Lq) continue;", "", "global bounds", SHAPES),
    fault(
        "statistics beyond the end",
        GRADIENTS,
        "const bool inside = i < this->p.Lq;",
        "const bool inside = true;",
        "global bounds",
        SHAPES,
    ),
    fault(
        "two blocks on the same rows",
        FORWARD,
        "(tiles - 1 - item % tiles)",
        "(item % tiles / 2)",
        "race",
        SHAPES,
    ),
    fault(
        "weights not stored",
        FORWARD,
        "if constexpr (N > 0)\n          memory.weights",
        "if (N > 0 && thread_column() < 8)\n          memory.weights",
        "uninitialised",
        SHAPES,
    ),
    wrong("maximum over half the columns", TILE, "by < kSide; by *= 2", "by < kSide / 2; by *= 2"),
    wrong(
        "output not rescaled",
        FORWARD,
        "out[r][c] *= shrink",
        "out[r][c] *= 1",
        "test_shapes and float32 and odd",
    ),
    wrong(
        "sum not rescaled",
        FORWARD,
        "sum[r] * shrink + added",
        "sum[r] + added",
        "test_shapes and float32 and odd",
    ),
    wrong(
        "sinks left out of the sum",
        FORWARD,
        "sum[r] = sink == -infinity<T>() ? 0 : 1;",
        "sum[r] = 0;",
        "test_terms and float32 and sinks",
    ),
    wrong(
        "softcap without its derivative",
        SCORES,
        "softcap_derivative(t, T(1))",
        "T(1)",
        "test_terms and float32 and softcap",
    ),
    wrong(
        "distances from the top",
        SCORES,
        "query_of(row) + p.score.alibi_offset - j",
        "query_of(row) - j",
        "test_terms and float32 and alibi",
    ),
    wrong(
        "a neighbour's draw",
        SCORES,
        "j0 / 4 + thread_column()",
        "j0 / 4 + thread_column() / 2",
        "test_terms and float32 and dropout",
    ),
    wrong(
        "dropout not scaled back",
        GRADIENTS,
        "? keep_scale : 0",
        "? 1 : 0",
        "test_terms and float32 and dropout",
    ),
    wrong(
        "a masked bias still counts",
        SCORES,
        "counts ? value + added : -infinity<T>()",
        "value + (counts ? added : T(0))",
        "test_terms and float32 and bias_masks",
    ),
    wrong(
        "the band ends a key late",
        SCORES,
        "head_of(row), query_of(row), j0)",
        "head_of(row), query_of(row) + 1, j0)",
        MASKS,
    ),
    wrong("masked NaN reaches the sum", TILE, "if (maps && !seen) continue;", "", "test_masked_nan"),
    wrong("maps of the wrong side", TILE, "SumOver::kKeys ? row_maps", "SumOver::kQueries ? row_maps", MASKS),
    wrong("gradient of lse added", BACKWARD, "p.grad_lse ? sum - load", "p.grad_lse ? sum + load"),
    wrong("lse in one part", GRADIENTS, "s - high - low", "s - high", "test_scores_as_large"),
    wrong("delta left out", GRADIENTS, "ds[r][c] - mean", "ds[r][c]"),
    wrong("dk without the scale", GRADIENTS, "* dx[r][c] * this->scale", "* dx[r][c]"),
    wrong(
        "one head of a group",
        BACKWARD,
        "for (int64_t g = 0; g < p.group(); ++g)",
        "for (int64_t g = 0; g < 1; ++g)",
        "test_shapes and float32 and grouped",
    ),
    wrong(
        "only the first slot of a bias",
        TERMS,
        "slot < p.plan.bias_slots; ++slot",
        "slot < 1; ++slot",
        "test_biases_broadcast",
    ),
    wrong(
        "a bias gradient of the last row alone",
        TERMS,
        "rows_vary ? first + 1 : kTile",
        "first + 1",
        "test_biases_broadcast",
    ),
]
