"""Faults to plant into the kernels of linear attention, and which check must notice each."""

from __future__ import annotations

from mutations import Mutation, Mutations

PRODUCTS, CHUNKS, DECAY = "chunk_products.cuh", "linear_chunks.cuh", "linear_decay.cuh"
SCORES, STATES, FORWARD = "linear_scores.cuh", "linear_states.cuh", "linear_forward.cuh"
QUERIES, KEYS, BACKWARD = "linear_queries.cuh", "linear_keys.cuh", "linear_backward.cuh"
ROWS, STEP = "linear_rows.cuh", "linear_step.cuh"
BARRIER = "__syncthreads();"

# Of test_linear_kernels.py.
CAUSAL = "linear and test_causal and grouped and True-float32"
TOKEN = "linear and test_chunk_borders and token-130-float32"
CHANNEL = "linear and test_chunk_borders and channel-130-float32"
PADDED = "linear and (test_key_lengths or test_packed) and float32"
FUTURE = "linear and test_the_future and float32"

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
    forward.wrong(
        "softmax without its maximum",
        ROWS,
        "std::exp(x - largest) / sum",
        "std::exp(x) / sum",
        "linear and test_feature_maps and softmax and float32",
    ),
    forward.wrong(
        "a step that forgets its decay",
        STEP,
        "s = s * step_decay<T>(p, b, hs, d)",
        "s = s",
        "linear and test_step and float32",
    ),
    forward.fault("no barrier in a step", STEP, BARRIER, "", "race", "linear and test_step and float32"),
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
        "dq without its own pair", QUERIES, "x += memory_.diagonal[t] * memory_.second.get(t, d);", ""
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
    backward.wrong(
        "elu's derivative",
        ROWS,
        "phi(d) < 1 ? phi(d) : T(1)",
        "T(1)",
        "linear and test_feature_maps and elu and float32",
    ),
    backward.wrong(
        "softmax's derivative",
        ROWS,
        "(x - mean)",
        "x",
        "linear and test_feature_maps and softmax and float32",
    ),
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
        "linear and test_head_dims and token and bfloat16",
    ),
    tensor.fault("no barrier between maxima", PRODUCTS, BARRIER, "", "race"),
]
