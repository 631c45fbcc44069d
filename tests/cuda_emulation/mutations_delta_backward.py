"""Faults to plant into the delta rule's backward pass, and which check must notice each."""

from __future__ import annotations

from mutations import Mutations
from mutations_delta import BARRIER, CHANNEL, GROUPED, LENGTHS, LONG, WIDE

BACKWARD, GRADIENTS = "delta_backward.cuh", "delta_gradients.cuh"
NONFINITE = "delta and not_finite and None and float32"

delta = Mutations("delta backward", rebuilt=("delta_float",), tests=LONG)
fault, wrong = delta.fault, delta.wrong

MUTATIONS = [
    fault("no barrier after the weights of beta", GRADIENTS, BARRIER, "{}", "race", occurrence=2),
    fault("R beyond the last row", BACKWARD, "before.has(d0 + d, column + c)", "true", "race"),
    fault("reads beyond the last row", BACKWARD, "read.has(d0 + d, column + c)", "true", "race"),
    fault(
        "gradients of U beyond the last column", BACKWARD, "to.has(s, column + c)", "true", "global bounds"
    ),
    fault(
        "dquery beyond the last token",
        GRADIENTS,
        "return t < block_.chunk.live && column_ + d < p.D;",
        "return column_ + d < p.D;",
        "global bounds",
    ),
    fault("dbeta beyond the last token", GRADIENTS, "if (s >= chunk.rows) return;", "", "global bounds"),
    fault(
        "two blocks on one chunk",
        GRADIENTS,
        "DeltaChunk::at(p, item.rest));\n  }\n}\n\n// dbeta",
        "DeltaChunk::at(p, item.rest / 2));\n  }\n}\n\n// dbeta",
        "race",
    ),
    wrong("one head of a group", BACKWARD, "g < p.group()", "g < 1"),
    wrong("one head reads", BACKWARD, "g < p.group()", "g < 1", occurrence=2),
    wrong("R that does not fade", BACKWARD, "block.total(d0 + d) * ", ""),
    wrong("keys read nothing", BACKWARD, "after.at(d0 + d, column + c) - x", "after.at(d0 + d, column + c)"),
    wrong("U without R", BACKWARD, "corrected.at(s, column + c) += x;", ";"),
    wrong(
        "keys fade from the other end",
        BACKWARD,
        "block.tail(t, d) * block.key(t, d)",
        "block.head(t, d) * block.key(t, d)",
    ),
    wrong("the system without beta", BACKWARD, "block.memory.betas[t] * corrected", "corrected"),
    wrong("the scale of grad_out", GRADIENTS, "static_cast<T>(block.p.scale) * ", ""),
    wrong("keys with the other sign", GRADIENTS, "return -block.tokens", "return block.tokens"),
    wrong("a state that does not fade", GRADIENTS, "x * block_.head(t, column_ + d)", "x"),
    wrong("writing keys do not fade", GRADIENTS, "x * block_.tail(s, column_ + d)", "x"),
    wrong("no decay between tokens", GRADIENTS, "x * block_.between(t, s) : T(0)", "x : T(0)"),
    wrong("no decay of channels", GRADIENTS, " * block_.between(t, s, column_ + d);", ";", CHANNEL),
    wrong(
        "no decay of channels of keys", GRADIENTS, " * block_.between(t, s, column_ + d);", ";", CHANNEL, 2
    ),
    wrong("keys see themselves", GRADIENTS, "reader.is_key ? T(0) : x", "x"),
    wrong(
        "queries do not see their own token",
        GRADIENTS,
        "x + block_.memory.diagonal[t] * block_.key(t, column)",
        "x",
    ),
    wrong("keys without their own token", GRADIENTS, "keys_.add(diagonal_, 1);", ""),
    wrong("keys that only write", GRADIENTS, "keys_.add(sum_, 1);", ""),
    wrong(
        "one slice of dquery",
        GRADIENTS,
        "* Block::kEdge;\n    const int64_t head",
        "* 0;\n    const int64_t head",
        WIDE,
    ),
    wrong("another head's queries", GRADIENTS, "block.query_head(h)", "0", GROUPED),
    wrong("dbeta without later tokens", GRADIENTS, "total -= block.weight(t, s)", "total -= 0"),
    wrong("dbeta without its own token", GRADIENTS, "block.memory.diagonal[s] : T(0)", "T(0) : T(0)"),
    wrong("decay terms of one head", GRADIENTS, "(first ? T(0) : terms.at(t, column)) + ", ""),
    wrong(
        "decay terms without keys",
        GRADIENTS,
        "terms.at(t, column_ + d) -= ",
        "terms.at(t, column_ + d) -= 0 * ",
    ),
    wrong("padding of gradients", GRADIENTS, "    clear_padding();\n    if", "    if", LENGTHS),
    wrong(
        "later tokens are multiplied by 0",
        "delta_products.cuh",
        "__syncthreads_or(!finite)",
        "__syncthreads_or(0)",
        NONFINITE,
    ),
]
