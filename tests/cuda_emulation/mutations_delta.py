"""Faults to plant into the delta rule's forward pass, and which check must notice each."""

from __future__ import annotations

from mutations import Mutations

PRODUCTS, BLOCK, CALL = "delta_products.cuh", "delta_block.cuh", "delta_call.cuh"
INVERSE, FORWARD = "delta_inverse.cuh", "delta_forward.cuh"
BARRIER = "__syncthreads();"

# Three chunks, two heads of one state; of test_delta_kernels.py.
LONG = "delta and test_shapes and not tensor and long and token and float32"
GROUPED = "delta and test_shapes and not tensor and grouped and token and float32"
CHANNEL = "delta and test_shapes and not tensor and long and channel and float32"
HALF = "delta and test_shapes_on_tensor_cores and grouped and float16"
LENGTHS = "delta and test_key_lengths and token and float32"
PACKED = "delta and test_packed and token and float32"
NONFINITE = "delta and future and nan and None and float32"
WIDE = "delta and test_shapes and not tensor and wide and token and float32"

delta = Mutations("delta", rebuilt=("delta_float",), tests=LONG)
fault, wrong = delta.fault, delta.wrong


def without_barrier(name: str, file: str, occurrence: int = 1, tests: str = LONG):
    return fault(f"no barrier {name}", file, BARRIER, "{}", "race", tests, occurrence)


MUTATIONS = [
    without_barrier("after operands are made", PRODUCTS),
    without_barrier("after a product", PRODUCTS, 2),
    without_barrier("after a triangle's product", PRODUCTS, 3),
    without_barrier("after sums are taken back", PRODUCTS, 4),
    without_barrier("before sums are spread", PRODUCTS, 5),
    without_barrier("after sums are spread", PRODUCTS, 6),
    fault("no barrier before a triangle", PRODUCTS, "__syncthreads_or(!finite)", "(!finite)", "race"),
    without_barrier("after a chunk's decays", BLOCK),
    without_barrier("before the inverse is stored", INVERSE),
    fault("no barrier between rows of the inverse", INVERSE, "__syncwarp();", "{}", "race"),
    fault(
        "half the block at a barrier",
        BLOCK,
        "    if (t < kEdge) {\n",
        "    if (t < 32) __syncthreads();\n    if (t < kEdge) {\n",
        "divergence",
    ),
    fault(
        "shared memory too short", "delta_run.cuh", "sizeof(T) * kEdge * (kEdge + 1)", "1024", "shared bounds"
    ),
    fault("errors beyond the last column", FORWARD, "errors.has(t, column + c)", "true", "global bounds"),
    fault("out beyond the last token", FORWARD, "t < chunk.live && column", "column", "global bounds"),
    fault("states beyond the last row", FORWARD, "next.has(d0 + d, column + c)", "true", "race"),
    fault("two sequences in one slot", CALL, "2 * sequence", "sequence / 2", "race", PACKED),
    wrong("the inverse without its sums", INVERSE, ": T(0)) - sum;", ": T(0));"),
    wrong("the inverse without beta", INVERSE, "x * block.memory.betas[s]", "x"),
    wrong("decays from the other end", FORWARD, "block.tail(t, d0 + d)", "block.head(t, d0 + d)"),
    wrong("a state that does not fade", FORWARD, "block.total(d0 + d) * ", ""),
    wrong("queries that do not fade", FORWARD, "block.head(t, d) * block.load", "block.load"),
    wrong(
        "errors without the state", FORWARD, "block.value(t, column + c) - x", "block.value(t, column + c)"
    ),
    wrong("errors that nobody weighs", FORWARD, "block.memory.betas[s] * ", ""),
    wrong("out without the scale", FORWARD, "static_cast<T>(p.scale) * x", "x"),
    wrong("no decay between tokens", BLOCK, "x * between(t, s) : T(0)", "x : T(0)"),
    wrong("no decay of channels", BLOCK, " * between(t, s, d);", ";", CHANNEL),
    wrong("another head's keys", BLOCK, "state_head / (p.Hs / p.Hk)", "0", GROUPED),
    wrong("another head's queries", FORWARD, "block.query_head(h)", "0", GROUPED),
    wrong("padding is left as it was", FORWARD, "block.clear_padding(p.out, h, column, p.Dv);", "", LENGTHS),
    wrong(
        "the future is multiplied by 0",
        PRODUCTS,
        "__syncthreads_or(!finite)",
        "__syncthreads_or(0)",
        NONFINITE,
    ),
    wrong("one slice of the columns", PRODUCTS, "k < depth; k += kEdge", "k < kEdge; k += kEdge", WIDE),
    *(
        Mutations("delta", rebuilt=("delta_half",), tests=HALF).wrong(name, PRODUCTS, old, "")
        for name, old in (
            ("left operands rounded", "    add(a.tile(1), b.tile(0));\n"),
            ("right operands rounded", "    add(a.tile(0), b.tile(1));\n"),
        )
    ),
]
