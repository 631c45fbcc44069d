"""Faults of the kernels of attention maps."""

from mutations import Mutation, Mutations

MAP = "attention_map.cuh"
BARRIER = "__syncthreads();"
SHAPES, BINS = "test_map_kernels and test_shapes and float32", "test_map_kernels and test_bins and float32"
ROWS, SINKS = "test_rows_in_any_order", "test_map_kernels and test_terms and float32 and sinks"
MAPS = Mutations("attention_map", ("attention_map_float",), SHAPES)


def without_barrier(name: str, occurrence: int, tests: str = SHAPES) -> Mutation:
    return MAPS.fault(f"no barrier {name}", MAP, BARRIER, "", "race", tests, occurrence)


def fault(name: str, old: str, new: str, tests: str = SHAPES, noticed: str = "values") -> Mutation:
    return MAPS.fault(name, MAP, old, new, noticed, tests)


MUTATIONS = [
    without_barrier("between maps of the statistics", 1),
    without_barrier("after weights are stored", 2),
    without_barrier("after rows are written", 3),
    without_barrier("after rows are summed", 4, BINS),
    without_barrier("before the next weights", 5, "test_no_columns"),
    fault("a warp's barrier for the block's", BARRIER, "__syncwarp();", noticed="race"),
    fault(
        "shared memory too short",
        "kThreads,\n         sizeof(MapMemory<T>)",
        "kThreads,\n         sizeof(MapMemory<T>) - 2048",
        noticed="shared bounds",
    ),
    fault(
        "half a warp looks for rows",
        "for (int64_t first = threadIdx.x - lane;",
        "for (int64_t first = lane < 16 ? 0 : threadIdx.x - lane;",
        "test_rows_in_any_order",
        "divergence",
    ),
    fault(
        "rows beyond those asked for",
        "first + lane < p.row_count ? p.rows[first + lane] : -1",
        "p.rows[first + lane]",
        ROWS,
        "global bounds",
    ),
    fault(
        "statistics beyond the end",
        "const bool inside = i0 + row < p.Lq;",
        "const bool inside = true;",
        noticed="global bounds",
    ),
    fault(
        "column sums beyond the end",
        "threadIdx.x < kTile && j < p.Lk",
        "threadIdx.x < kTile",
        noticed="race",
    ),
    fault(
        "two blocks own the same bins",
        "k + chunk) * p.query_bins + q] += sum",
        "k) * p.query_bins + q] += sum",
        BINS,
        "race",
    ),
    fault("weights of keys that are none", "key < kTile && j0 + key < p.Lk", "key < kTile", ROWS, "race"),
    fault(
        "statistics of another tile",
        "(tiles - 1 - blockIdx.x % tiles)",
        "(blockIdx.x % tiles / 2)",
        noticed="race",
    ),
    fault(
        "the maximum of one column",
        "top = across_columns(top, [](T x, T y) { return std::fmax(x, y); });",
        "",
    ),
    fault("the denominator not rescaled", "denominator[r] * shrink + added", "denominator[r] + added"),
    fault("the spread not raised", "spread[r] + risen * keys[r]", "spread[r]"),
    fault("the spread not rescaled", "shrink * (spread[r]", "(spread[r]"),
    fault(
        "entropy without the denominator's logarithm",
        "rows.spread[r] + log_l * rows.keys[r]",
        "rows.spread[r]",
    ),
    fault(
        "entropy of the sink", "keys[r] = spread[r] = 0;", "spread[r] = 0, keys[r] = denominator[r];", SINKS
    ),
    fault("no sink", "denominator[r] = sink == -infinity<T>() ? 0 : 1;", "denominator[r] = 0;", SINKS),
    fault(
        "lse in one part", "s[r][c] - high - low", "s[r][c] - (high + low)", "test_map_kernels and test_large"
    ),
    fault(
        "keys of the first tile alone",
        "tile < range.end; ++tile",
        "tile < range.begin + 1; ++tile",
        "test_chunks",
    ),
    fault("an entropy of an empty row", "empty ? 0.0 : (rows", "(rows", "test_map_kernels and test_masked"),
    fault("rows at another row's place", "first + source) * p.Lk + j0", "source) * p.Lk + j0", ROWS),
    fault("a row of another lane", "__shfl_sync(kWholeWarp, row, source)", "row", ROWS),
    fault(
        "bins begin a row late",
        "max64(range.begin, bins.begin(bin))",
        "max64(range.begin, bins.begin(bin) + 1)",
        BINS,
    ),
    fault(
        "bins of the first rows of a tile alone",
        "const int64_t items = (row_bins.end - row_bins.begin) * columns;",
        "const int64_t items = columns;",
        BINS,
    ),
    fault("only the first chunk's bins", "chunk < p.chunks; ++chunk", "chunk < 1; ++chunk", BINS),
    fault("sums over bins for their means", "sum / static_cast<double>(pairs)", "sum", BINS),
    fault(
        "columns of the first query bin", "bin < of_rows.end; ++bin", "bin < of_rows.begin + 1; ++bin", BINS
    ),
]
