"""Faults to plant into the kernels of linear attention, and which check must notice each."""

from __future__ import annotations

from mutations import Mutation, Mutations

PRODUCTS, CHUNKS, DECAY = "chunk_products.cuh", "linear_chunks.cuh", "linear_decay.cuh"
SCORES, STATES, FORWARD = "linear_scores.cuh", "linear_states.cuh", "linear_forward.cuh"
QUERIES, KEYS, BACKWARD = "linear_queries.cuh", "linear_keys.cuh", "linear_backward.cuh"
BARRIER = "__syncthreads();"

# Of test_linear_kernels.py.
CAUSAL = "linear and test_causal and grouped and True-float32"
TOKEN = "linear and test_chunk_borders and token-130-float32"
CHANNEL = "linear and test_chunk_borders and channel-130-float32"
PADDED = "linear and (test_key_lengths or test_packed) and float32"
FUTURE = "linear and test_the_future and float32"
FUTURE_16 = "linear and test_the_future and bfloat16"
WIDE_16 = "linear and test_head_dims and token and bfloat16"

forward = Mutations("linear forward", rebuilt=("linear_float",), tests=TOKEN)
backward = Mutations("linear backward", rebuilt=("linear_float_backward",), tests=TOKEN)
# Of a float kernel that several files have, the linker takes the first one's.
shared = Mutations("linear backward", rebuilt=("linear_bfloat16_backward",), tests=TOKEN)
tensor = Mutations("linear tensor", rebuilt=("linear_bfloat16",), tests=TOKEN.replace("float32", "bfloat16"))


def without_barrier(kind: Mutations, name: str, file: str, occurrence: int, tests: str = TOKEN) -> Mutation:
    return kind.fault(f"no barrier {name}", file, BARRIER, "", "race", tests, occurrence)


MUTATIONS = [
    # forward
    without_barrier(forward, "before totals of channels", DECAY, 4, CHANNEL),
    without_barrier(forward, "after keys and values arrive", STATES, 1, CHANNEL),
    without_barrier(forward, "after keys are faded", STATES, 2),
    without_barrier(forward, "between two chunks of a state", STATES, 3, TOKEN.replace("token", "None")),
    without_barrier(forward, "after queries and keys arrive", SCORES, 3),
    without_barrier(forward, "after keys are faded to groups", SCORES, 4, CHANNEL),
    without_barrier(forward, "before denominators are added up", FORWARD, 5),
    forward.fault("outputs behind the end", CHUNKS, "chunk.begin + r < chunk.stop && ", "", "global bounds"),
    forward.fault(
        "a tile less of shared memory", SCORES, "kBytes = kRows + 3", "kBytes = kRows - 3", "shared bounds"
    ),
    forward.wrong("pairs of the future", SCORES, "s > t ? T(0) : p.decay", "p.decay"),
    forward.wrong("no decay between pairs", SCORES, "x * memory.decays.weight(t, s)", "x"),
    forward.wrong("a state that does not decay", STATES, "x *= decays_.total(r)", "x *= T(1)"),
    forward.wrong("z that does not decay", STATES, "z_ *= decays_.total(own());", ""),
    forward.wrong(
        "decays one token late", DECAY, "weight(kEdge - 1, s)", "weight(kEdge - 1, s) * weight(s, 0)"
    ),
    forward.wrong(
        "sums of decays without their low part", DECAY, "(low_[t] - low_[s])", "0", "strong and float32"
    ),
    forward.wrong("a group that keeps its own decay", DECAY, "if (t > s) faded[n]", "faded[n]", CHANNEL),
    forward.wrong("keys faded to the wrong group", DECAY, "x *= total_[later][d];", "", CHANNEL),
    forward.wrong(
        "decays before a group left out",
        DECAY,
        "fade_up(tile, group, d, before(group, d))",
        "fade_up(tile, group, d, 1)",
        CHANNEL,
    ),
    forward.wrong(
        "no eps", FORWARD, " + static_cast<T>(p_.eps)", "", "linear and test_feature_maps and float32"
    ),
    forward.wrong("masked rows are multiplied", SCORES, "!memory.second.is_finite()", "false", FUTURE),
    forward.wrong("padding counts", CHUNKS, "if (!p.key_lengths) return keys;", "return keys;", PADDED),
    forward.wrong("slots of packed sequences meet", CHUNKS, "/ p.edge + sequence;", "/ p.edge;", PADDED),
    forward.fault(
        "a scan without decay",
        STATES,
        "state.decay()[d] * running",
        "running",
        "values",
        "linear and test_parts",
        rebuilt=("linear_bfloat16",),
    ),
    # backward
    without_barrier(backward, "after decays are loaded", DECAY, 2),
    without_barrier(backward, "after totals of channels", DECAY, 5, CHANNEL),
    without_barrier(backward, "after grad_out is scaled", STATES, 5),
    without_barrier(backward, "between two heads of R", STATES, 6, CAUSAL),
    without_barrier(backward, "after grad_out and S arrive", QUERIES, 2),
    without_barrier(backward, "after keys of channels", QUERIES, 4, CHANNEL),
    without_barrier(backward, "after keys are faded to groups", QUERIES, 5, CHANNEL),
    without_barrier(backward, "after values and R arrive", KEYS, 2),
    without_barrier(backward, "after the products of channels", KEYS, 3, CHANNEL),
    without_barrier(backward, "after queries of channels", KEYS, 4, CHANNEL),
    without_barrier(shared, "before terms of decays are added up", BACKWARD, 1),
    backward.wrong("no delta", QUERIES, "x -= memory_.delta[t];", ""),
    backward.wrong("no share of z in dq", QUERIES, "x -= memory_.delta[t] * z[d];", ""),
    backward.wrong("no share of z in dk", KEYS, "x += z[d];", ""),
    backward.wrong(
        "dq without its own pair", QUERIES, "gradient.add_rows(memory_.diagonal, memory_.second);", ""
    ),
    backward.wrong("dk without its own pair", KEYS, "gradient_.add(own_, 1);", ""),
    backward.wrong("dv without decay to the end", KEYS, "x *= memory_.decays.to_end(s); });", "});"),
    backward.wrong("R without decay", STATES, "if (p.decay) this->decays_.fade_from_start(queries);", ""),
    backward.wrong(
        "keys of a group without decay to its end",
        KEYS,
        "x *= memory_.decays.to_group_end(s, d);",
        "",
        CHANNEL,
    ),
    backward.wrong("queries faded to the wrong group", DECAY, "x *= total_[earlier][d];", "", CHANNEL),
    backward.wrong(
        "the heads of a group but one",
        KEYS,
        "g < p_.group(); ++g) add_head(this->head(g))",
        "g < 1; ++g) add_head(this->head(g))",
        CAUSAL,
    ),
    shared.wrong("<S, R> left out", BACKWARD, "sum += dots[block * p_.D + d];", ""),
    shared.wrong("terms of the token itself", BACKWARD, "earlier < t", "earlier <= t"),
    backward.wrong("masked queries are multiplied", SCORES, "!memory.second.is_finite()", "false", FUTURE),
    # tensor cores
    tensor.wrong(
        "a transposed operand as it stands",
        PRODUCTS,
        "load_matrices_transposed(left, a_chunks.away(k, row))",
        "load_matrices(left, a_chunks.away(k, row))",
    ),
    tensor.wrong("a scale that is not given back", PRODUCTS, "    return scale;\n", "    return 1;\n"),
    tensor.fault(
        "copies that are not waited for",
        PRODUCTS,
        "wait_for_copies<0>();",
        "",
        "race",
        WIDE_16,
    ),
    tensor.fault("no barrier between maxima", PRODUCTS, BARRIER, "", "race"),
    tensor.fault("no barrier after maxima", PRODUCTS, BARRIER, "", "race", occurrence=2),
    tensor.fault("copies without a group", PRODUCTS, "end_copy_group();", "", "async copy", WIDE_16),
    tensor.fault(
        "columns beyond the last",
        PRODUCTS,
        "rows.columns - column}",
        "rows.columns}",
        "global bounds",
        WIDE_16,
    ),
    tensor.fault(
        "rows of states beyond the last", PRODUCTS, "row < rows && column + e", "column + e", "global bounds"
    ),
    tensor.wrong(
        "a right operand as it stands",
        PRODUCTS,
        "load_matrices_transposed(right, b_chunks.away(k, 8 * n))",
        "load_matrices(right, b_chunks.away(k, 8 * n))",
    ),
    tensor.wrong(
        "a right operand turned",
        PRODUCTS,
        "load_matrices(right, b_chunks.away(8 * n, part.b_first + k))",
        "load_matrices_transposed(right, b_chunks.away(8 * n, part.b_first + k))",
    ),
    tensor.wrong("16 columns of a product", PRODUCTS, "if (k >= part.depth) break;", "if (k >= 16) break;"),
    tensor.wrong("one warp's rows", PRODUCTS, "const int row = Sum::row_group() * 16;", "const int row = 0;"),
    tensor.wrong("sums of a pair in one column", PRODUCTS, "fragment_column() + e % 2", "fragment_column()"),
    tensor.wrong("sums in the upper rows", PRODUCTS, "fragment_row() + e / 2 * 8", "fragment_row()"),
    tensor.wrong(
        "a lane's sum of a row",
        PRODUCTS,
        "sum = across_quad(sum, [](float x, float y) { return x + y; });",
        "",
    ),
    tensor.wrong("every second column of a row's sum", PRODUCTS, " + value[0][n][half + 1];", ";"),
    tensor.wrong(
        "the first columns again", PRODUCTS, "rows.data + column * rows.column_stride", "rows.data", WIDE_16
    ),
    tensor.wrong(
        "all numbers are finite",
        PRODUCTS,
        "!copied_nonfinite<kDtype, kThreads, kEdge, kEdge>(tile_)",
        "true",
        FUTURE_16,
    ),
]
