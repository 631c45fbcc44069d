"""Faults to plant into the delta rule's sums of decays and their gradient."""

from __future__ import annotations

from mutations import Mutations
from mutations_delta import BARRIER, CHANNEL, LENGTHS, LONG, WIDE

DECAYS = "delta_decays.cu"
BOUNDS = "global bounds"
WIDE_CHANNEL = WIDE.replace("token", "channel")
TWO_ROWS = "delta and test_shapes and not tensor and square and token and float32"

decays = Mutations("delta decays", rebuilt=("delta_decays",), tests=LONG)
fault, wrong = decays.fault, decays.wrong

MUTATIONS = [
    fault("no barrier in the sums of columns", DECAYS, BARRIER, "{}", "race", CHANNEL),
    fault("no barrier in the sums of tokens", DECAYS, BARRIER, "{}", "race", occurrence=2),
    fault("ddecay beyond the last token", DECAYS, "if (t >= chunk_.rows) return;", "", BOUNDS),
    fault("ddecay beyond the last column", DECAYS, "if (d >= columns) return;", "", "shared bounds", CHANNEL),
    fault(
        "shared memory of the sums",
        DECAYS,
        "totals[kColumns], terms[kRows]",
        "totals[8], terms[8]",
        "shared bounds",
    ),
    wrong("natural logarithms", DECAYS, "kLog2e * load_element", "load_element"),
    wrong("each token's own decay", DECAYS, "to[t * columns] = sum;", "to[t * columns] = x;"),
    wrong("sums that overflow", DECAYS, "x < kNothing ? kNothing : x", "x", "delta and minus_infinity"),
    wrong("the first channel's decays", DECAYS, "chunk.first + t, d)", "chunk.first + t, 0)", CHANNEL),
    wrong("the first batch row's decays", DECAYS, "p.decay.at(chunk.b, h", "p.decay.at(0, h", TWO_ROWS),
    wrong("ddecay without states", DECAYS, "sum += memory_.totals[part];", ";"),
    wrong("ddecay without terms", DECAYS, "sum -= memory_.terms[before];", ";"),
    wrong(
        "ddecay of channels without terms",
        DECAYS,
        "if (t < chunk_.live) sum -= ",
        "if (false) sum -= ",
        CHANNEL,
    ),
    wrong("terms of the token itself", DECAYS, "min64(t, chunk_.live)", "min64(t + 1, chunk_.live)"),
    wrong("every second element of a state", DECAYS, "e += 32", "e += 64", WIDE),
    wrong("a lane's sum of a state", DECAYS, "return warp_sum(sum);", "return sum;"),
    wrong(
        "a lane's sum of terms",
        DECAYS,
        "      sum = warp_sum(sum);\n",
        "",
        CHANNEL.replace("channel", "token"),
    ),
    wrong(
        "rows of the first columns",
        DECAYS,
        "state_sum((column + d) * p.Dv",
        "state_sum(d * p.Dv",
        WIDE_CHANNEL,
    ),
    wrong("the first chunk's states", DECAYS, "p.slots + chunk_.slot) * p.D", "p.slots) * p.D"),
    wrong("one warp's rows of a state", DECAYS, "first = warp() * share", "first = 0 * share"),
    wrong("padding", DECAYS, "store(t, 0, t < chunk_.live ? sum : 0)", "store(t, 0, sum)", LENGTHS),
]
