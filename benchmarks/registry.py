"""What is measured: cases as data, with the requirement each has to meet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["CASES", "Band", "Case", "Requirement", "Shape", "operators"]

Figure = Literal["ratio", "share", "overhead", "scaling", "memory"]


@dataclass(frozen=True)
class Band:
    """A mask by positions: query i sees key j iff i - left <= j <= i + right; None = unbounded."""

    left: int | None
    right: int | None

    def pairs(self, Lq: int, Lk: int) -> int:
        """The number of pairs allowed."""
        total = 0
        for i in range(Lq):
            first = 0 if self.left is None else max(0, i - self.left)
            end = Lk if self.right is None else min(Lk, i + self.right + 1)
            total += max(0, end - first)
        return total


CAUSAL = Band(None, 0)
WINDOW_256 = Band(255, 0)


@dataclass(frozen=True)
class Shape:
    """query (B, H, Lq, D), key (B, Hkv, Lk, D), value (B, Hkv, Lk, Dv)."""

    B: int
    H: int
    Hkv: int
    Lq: int
    Lk: int
    D: int
    Dv: int

    def __str__(self) -> str:
        heads = f"H{self.H}" if self.Hkv == self.H else f"H{self.H}/{self.Hkv}"
        lengths = f"N{self.Lq}" if self.Lq == self.Lk else f"Lq{self.Lq} Lk{self.Lk}"
        dims = f"D{self.D}" if self.Dv == self.D else f"D{self.D} Dv{self.Dv}"
        return f"B{self.B} {heads} {lengths} {dims}"


def plain(B: int, H: int, N: int, D: int) -> Shape:
    """Self-attention without grouped heads."""
    return Shape(B, H, H, N, N, D, D)


@dataclass(frozen=True)
class Requirement:
    """A bound on one figure of a case.

    figure: what is bounded
      ratio     the peer's time over ours, at least
      share     our rate over the machine's peak rate, at least
      overhead  our time over the peer's, at most
      scaling   time on one thread over time on `threads` threads, at least
      memory    peak memory over the bytes of the inputs, the output and their gradients, at most
    peer: of ratio and overhead, the one compared with
    needs: the instruction set below which the bound does not apply
    control: scaling is judged only where the same measure of an FMA loop reaches this
    """

    figure: Figure
    bound: float
    peer: str | None = None
    needs: str = "avx512"
    control: float | None = None

    @property
    def at_most(self) -> bool:
        return self.figure in ("overhead", "memory")


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    kind: time      thread CPU time of ours and of the peers, interleaved
          scaling   wall time on 1 and on `threads` threads, interleaved with an FMA loop doing the same
          memory    peak memory of a process that does nothing else
    backward: gradients of query, key and value as well
    bound: the machine's limit that `share` is taken of
    capability: the instruction set forced on us, None = the best; runs in a process of its own
    tail: of memory, how many of the last queries are compared with a peer, which could not do all of them
    """

    name: str
    title: str
    op: str
    shape: Shape
    peers: tuple[str, ...]
    kind: Literal["time", "scaling", "memory"] = "time"
    dtype: str = "float32"
    backward: bool = False
    mask: Band | None = None
    requirements: tuple[Requirement, ...] = ()
    threads: int = 1
    bound: Literal["fma", "bandwidth"] = "fma"
    capability: str | None = None
    tail: int = 0

    @property
    def pairs(self) -> int:
        """Pairs (query, key) allowed, of one head."""
        s = self.shape
        return s.Lq * s.Lk if self.mask is None else self.mask.pairs(s.Lq, s.Lk)

    @property
    def flops(self) -> float:
        """Two products forward, five backward; what is masked does not count."""
        s = self.shape
        return 2.0 * s.B * s.H * self.pairs * (s.D + s.Dv) * (3.5 if self.backward else 1.0)

    @property
    def element_bytes(self) -> int:
        return {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}[self.dtype]

    @property
    def tensor_bytes(self) -> int:
        """Bytes of query, key, value and out, and of their gradients with `backward`."""
        s = self.shape
        queries, keys = s.B * s.H * s.Lq, s.B * s.Hkv * s.Lk
        elements = (queries + keys) * (s.D + s.Dv)
        return elements * self.element_bytes * (2 if self.backward else 1)


LONG, SHORT, WINDOWED = plain(1, 8, 2048, 64), plain(4, 8, 512, 64), plain(1, 8, 8192, 64)
TINY = plain(1, 1, 8, 16)
SCALING = Requirement("scaling", 1.8, needs="generic", control=1.95)

_ATTENTION = [
    Case(
        "forward-dense",
        "forward, dense",
        "attention",
        LONG,
        ("sdpa",),
        requirements=(Requirement("ratio", 1.2, "sdpa"), Requirement("share", 0.85)),
    ),
    Case(
        "forward-causal",
        "forward, causal",
        "attention",
        LONG,
        ("sdpa",),
        mask=CAUSAL,
        requirements=(Requirement("ratio", 1.4, "sdpa"), Requirement("share", 0.78)),
    ),
    Case(
        "forward-window",
        "forward, window 256",
        "attention",
        WINDOWED,
        ("sdpa_bool_mask", "sdpa_blocks", "flex"),
        mask=WINDOW_256,
        requirements=(Requirement("ratio", 35, "sdpa_bool_mask"),),
    ),
    Case(
        "both-dense",
        "forward + backward, dense",
        "attention",
        LONG,
        ("sdpa",),
        backward=True,
        requirements=(Requirement("ratio", 1.0, "sdpa"),),
    ),
    Case(
        "both-causal",
        "forward + backward, causal",
        "attention",
        LONG,
        ("sdpa",),
        backward=True,
        mask=CAUSAL,
        requirements=(Requirement("ratio", 1.2, "sdpa"),),
    ),
    Case(
        "both-window",
        "forward + backward, window 256",
        "attention",
        WINDOWED,
        ("sdpa_bool_mask", "sdpa_blocks"),
        backward=True,
        mask=WINDOW_256,
        requirements=(Requirement("ratio", 25, "sdpa_bool_mask"),),
    ),
    Case(
        "forward-dense-512",
        "forward, dense, short",
        "attention",
        SHORT,
        ("sdpa",),
        requirements=(Requirement("ratio", 1.15, "sdpa"),),
    ),
    Case(
        "forward-causal-512",
        "forward, causal, short",
        "attention",
        SHORT,
        ("sdpa",),
        mask=CAUSAL,
        requirements=(Requirement("ratio", 1.8, "sdpa"),),
    ),
    Case(
        "forward-dense-avx2",
        "forward, dense, on AVX2",
        "attention",
        LONG,
        ("sdpa",),
        capability="avx2",
        requirements=(Requirement("share", 0.75, needs="avx2"),),
    ),
    Case(
        "overhead-forward",
        "call overhead, no grad",
        "attention",
        TINY,
        ("sdpa",),
        requirements=(Requirement("overhead", 3.0, "sdpa", needs="generic"),),
    ),
    Case(
        "overhead-both",
        "call overhead, forward + backward",
        "attention",
        TINY,
        ("sdpa",),
        backward=True,
        requirements=(Requirement("overhead", 2.5, "sdpa", needs="generic"),),
    ),
    Case(
        "memory-window",
        "peak memory, forward + backward, window 256",
        "attention",
        plain(1, 8, 100_000, 64),
        ("sdpa_bool_mask",),
        kind="memory",
        backward=True,
        mask=WINDOW_256,
        tail=512,
        requirements=(Requirement("memory", 3.0, needs="generic"),),
    ),
    # What follows has no requirement yet.
    Case(
        "both-dense-float64",
        "forward + backward, dense",
        "attention",
        LONG,
        ("sdpa",),
        dtype="float64",
        backward=True,
    ),
    Case("forward-dense-bfloat16", "forward, dense", "attention", LONG, ("sdpa",), dtype="bfloat16"),
    Case(
        "forward-decode",
        "forward, one query",
        "attention",
        Shape(1, 32, 8, 1, 16384, 128, 128),
        ("sdpa", "matmul"),
        bound="bandwidth",
    ),
]


def _scaling(case: Case, requirements: tuple[Requirement, ...] = (SCALING,)) -> Case:
    return replace(
        case,
        name=f"threads-{case.name}",
        title=f"two threads over one, {case.title}",
        kind="scaling",
        threads=2,
        requirements=requirements,
    )


_BY_NAME = {case.name: case for case in _ATTENTION}
_SCALING = [
    *(_scaling(_BY_NAME[n]) for n in ("forward-dense", "forward-causal", "both-dense", "both-causal")),
    _scaling(
        replace(
            _BY_NAME["both-dense"],
            name="both-one-head",
            title="forward + backward, dense",
            shape=plain(1, 1, 4096, 64),
        ),
        requirements=(),
    ),
]

CASES: tuple[Case, ...] = (*_ATTENTION, *_SCALING)


def operators() -> list[str]:
    """The operators that have cases."""
    return sorted({case.op for case in CASES})
