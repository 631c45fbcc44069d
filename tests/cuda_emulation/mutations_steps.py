"""Faults to plant into the steps of linear attention and the delta rule."""

from __future__ import annotations

from mutations import Mutations

LINEAR, DELTA = "linear_step.cuh", "delta_step.cuh"
BARRIER = "__syncthreads();"
RACE, BOUNDS = "race", "global bounds"

# Six heads read two states, of one key head and 40 columns; the delta rule's have 70.
linear = Mutations("linear step", rebuilt=("linear_float",), tests="linear and test_step and float32")
delta = Mutations("delta step", rebuilt=("delta_float",), tests="delta and test_step and token and float32")

MUTATIONS = [
    linear.fault("no barrier before sums are read", LINEAR, BARRIER, "", RACE),
    linear.fault("no barrier between heads", LINEAR, BARRIER, "", RACE, occurrence=2),
    linear.fault("shared memory too short", LINEAR, "kThreads * sizeof(T)", "kThreads", "shared bounds"),
    linear.fault("columns beyond the end", LINEAR, "inside = c < p.Dv;", "inside = true;", BOUNDS),
    linear.fault("states beyond the last", LINEAR, "if (b >= p.B) return;", "", BOUNDS),
    linear.fault("all blocks on the first columns", LINEAR, "blockIdx.x % blocks * 32 + lane", "lane", RACE),
    linear.fault("all warps on all rows", LINEAR, "d = warp; inside", "d = 0; inside", RACE),
    linear.fault("batch rows on one state", LINEAR, "b = head / p.Hs;", "b = 0;", RACE),
    linear.wrong("a state that keeps all", LINEAR, "s = s * step_decay<T>(p, b, hs, d)", "s = s"),
    linear.wrong("z that keeps all", LINEAR, "z = z * step_decay<T>(p, b, hs, d)", "z = z"),
    linear.wrong("a state without the token", LINEAR, "keys.load<T>(0, d) * value;", "0;"),
    linear.wrong("z without the token", LINEAR, "hs, d) + keys.load<T>(0, d);", "hs, d);"),
    linear.wrong("one decay for all channels", LINEAR, "p.channel_decay() ? d : 0", "0"),
    linear.wrong("a denominator of some channels", LINEAR, "sum = warp_sum(sum);", ""),
    linear.wrong("sums of half the warps", LINEAR, "other < kThreads / 32", "other < kThreads / 64"),
    linear.wrong("out without the scale", LINEAR, "static_cast<T>(p.scale)", "1"),
    linear.wrong("one value head", LINEAR, "value_rows(p, b, hs, 1)", "value_rows(p, b, 0, 1)"),
    linear.wrong("one head's denominators", LINEAR, "query_rows(p, b, h, 1)", "query_rows(p, b, hs, 1)"),
    linear.wrong(
        "one head's sums", LINEAR, "query_rows(p, b, h, 1)", "query_rows(p, b, hs, 1)", occurrence=2
    ),
    linear.wrong("factors of the first batch row", LINEAR, "[b * p.H + h]", "[h]", occurrence=2),
    delta.fault("no barrier before sums are read", DELTA, BARRIER, "{}", RACE),
    delta.fault("no barrier after a sum", DELTA, BARRIER, "{}", RACE, occurrence=2),
    delta.fault(
        "shared memory too short", "delta_plain.cuh", "kThreads * sizeof(T)", "kThreads", "shared bounds"
    ),
    delta.fault("columns beyond the end", DELTA, "return column_ < p.Dv;", "return true;", BOUNDS),
    delta.fault("all blocks on the first columns", DELTA, "item % tiles * kColumns", "0", RACE),
    delta.fault("all warps write out", DELTA, "inside() && first_row() == 0", "inside()", RACE),
    delta.fault("state heads on one state", DELTA, "item / tiles % p.Hs", "item / tiles / p.Hs", RACE),
    delta.fault("batch rows on one state", DELTA, "b_ = item / tiles / p.Hs", "b_ = 0", RACE),
    delta.wrong(
        "reads before the decay", DELTA, "key_head, d) * decay(d) * state(d)", "key_head, d) * state(d)"
    ),
    delta.wrong("a state that keeps all", DELTA, "decay(d) * state(d) + ", "state(d) + "),
    delta.wrong(
        "decays not exponentiated", DELTA, "std::exp(input(p.decay, head_, d))", "input(p.decay, head_, d)"
    ),
    delta.wrong("values as they are", DELTA, "column_) - read)", "column_))"),
    delta.wrong("values without beta", DELTA, "input(p.beta, head_, 0) * ", ""),
    delta.wrong("one value head", DELTA, "value_head = head_ / (p.Hs / p.Hv)", "value_head = 0"),
    delta.wrong("one query head", DELTA, "h / (p.H / p.Hq)", "0"),
    delta.wrong("one head of a group", DELTA, "h < (head_ + 1) * group", "h < head_ * group + 1"),
    delta.wrong("sums of half the warps", DELTA, "warp < kWarps", "warp < kWarps / 2"),
    delta.wrong("half the rows are read", DELTA, "d += kWarps", "d += 2 * kWarps"),
    delta.wrong("out without the scale", DELTA, "static_cast<T>(p.scale) * sum", "sum"),
]
