"""Faults of the kernels that select blocks."""

from mutations import Mutation, Mutations

SELECT = "select_blocks.cuh"
EXACT, COMPRESSED, TIES = "test_exact_scores", "test_probabilities", "test_ties and float32"
BLOCKS = Mutations("select_blocks", ("select_float",), EXACT)


def fault(name: str, old: str, new: str, tests: str = EXACT, noticed: str = "values") -> Mutation:
    return BLOCKS.fault(name, SELECT, old, new, noticed, tests)


def in_double(name: str, old: str, new: str, tests: str = COMPRESSED) -> Mutation:
    return BLOCKS.fault(name, SELECT, old, new, "values", tests, rebuilt=("select_double",))


MUTATIONS = [
    fault(
        "keys that don't count in a mean",
        "if (p.keep && !p.keep[b * p.keys + j]) continue;",
        "",
        "test_keys_that",
    ),
    fault(
        "a mean over the whole block",
        "static_cast<T>(max64(count, 1))",
        "static_cast<T>(p.block)",
        "test_means",
    ),
    fault(
        "one head of those that choose together",
        "h < heads.end; ++h)\n    for",
        "h < heads.begin + 1; ++h)\n    for",
        EXACT,
    ),
    fault("one query of those that choose together", "i < end; ++i)", "i < first + 1; ++i)", EXACT),
    fault(
        "queries beyond the end are added up",
        "end = min64(first + p.query_block, p.Lq)",
        "end = first + p.query_block",
        EXACT,
        "global bounds",
    ),
    fault(
        "keys beyond the end are averaged",
        "end = min64(first + p.block, p.keys)",
        "end = first + p.block",
        "test_nan",
        "global bounds",
    ),
    fault("blocks of another key head", "head_ * p_.Hkv / p_.heads()", "head_", EXACT, "global bounds"),
    fault("keys of another head", "h * p.Hkv / p.score_heads()", "0", EXACT),
    fault(
        "scores as far as the first row sees",
        "p.seen_columns(min64(i0 + kTile, end) - 1)",
        "p.seen_columns(i0)",
        EXACT,
    ),
    fault(
        "scores of columns that are none", "if (i < end && column < p.columns)", "if (i < end)", EXACT, "race"
    ),
    fault(
        "scores of rows that are none",
        "if (i < end && column < p.columns)",
        "if (column < p.columns)",
        EXACT,
        "global bounds",
    ),
    fault(
        "shared memory too short",
        "sizeof(TileMemory<T, 0>)",
        "sizeof(TileMemory<T, 0>) - 4096",
        EXACT,
        "shared bounds",
    ),
    in_double(
        "only the first rows",
        "p.first_row < p.rows(); p.first_row",
        "p.first_row < 1; p.first_row",
        "test_rows_beyond",
    ),
    fault("no warp barrier after the probabilities", "__syncwarp();", "", "test_decoding and True", "race"),
    in_double("probabilities without their sum", "s[c] *= scale;", "s[c] *= 1;"),
    in_double("probabilities that don't count", "keeps(c) ? s[c] * factor : kMinusInfinity", "s[c] * factor"),
    in_double("one stride of those a key covers", "shift < covered; ++shift", "shift < 1; ++shift"),
    in_double("one head's probabilities", "h < heads.end; ++h) {", "h < heads.begin + 1; ++h) {"),
    in_double("a lane's maximum", "warp_maximum(top)", "top"),
    fault(
        "NaN as the best score", "score != score ? kMinusInfinity : score + T(0)", "score + T(0)", "test_nan"
    ),
    fault("negative scores in the wrong order", "bits < 0 ? bits ^ kHighest : bits", "bits", EXACT),
    fault("one local block more", "own_ - p_.local < n &&", "own_ - p_.local <= n &&", EXACT),
    fault("no initial blocks", "n < p_.initial ||", "", EXACT),
    fault("blocks without a key that counts", "if (!p_.compression && !keeps(n)) return kLowest;", "", EXACT),
    fault(
        "the last of equal blocks", "__popc(ties & before) < equal", "__popc(ties & ~before) <= equal", TIES
    ),
    fault("equal blocks of each 32", "equal = max64(equal - __popc(ties), 0);", "", TIES, "global bounds"),
    fault("the first block behind the last", "out[n] = -1;", "out[n] = 0;", TIES),
    fault(
        "blocks out of order",
        "out[count + __popc(chosen & before)]",
        "out[count + __popc(chosen & ~before) - 1]",
        EXACT,
    ),
    fault(
        "every second block is counted",
        "count += rank(n) >= lowest;",
        "count += n % 2 && rank(n) >= lowest;",
        EXACT,
    ),
    fault(
        "half a warp counts",
        "return warp_sum(count);",
        "return lane_ < 16 ? warp_sum(count) : count;",
        EXACT,
        "divergence",
    ),
]
