"""What a case of the benchmarks is: the work, how it is measured, and the bounds it has to meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CAUSAL", "Band", "Case", "Holes", "Requirement", "Shape", "plain"]

Figure = Literal["ratio", "share", "overhead", "scaling", "memory", "memory_ratio"]
Passes = Literal["forward", "backward", "both"]
PASSES = {"forward": "forward", "backward": "backward", "both": "forward + backward"}
LAYER_PASSES = {"forward": "layer, eval", "both": "layer, training step"}
PRODUCTS = {"forward": 1.0, "backward": 2.5, "both": 3.5}  # matrix products of attention, over forward's two


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

    def __str__(self) -> str:
        return "causal" if self == CAUSAL else f"window {self.left + 1}"


CAUSAL = Band(None, 0)


@dataclass(frozen=True)
class Holes:
    """A mask of single pairs, so that no tile is full.

    Query i doesn't see key j iff (i + j) % step == 0; with `keys_only`, iff j % step == 0: key padding.
    """

    step: int
    keys_only: bool = False

    def pairs(self, Lq: int, Lk: int) -> int:
        """The number of pairs allowed."""
        hidden = sum(len(range(0 if self.keys_only else -i % self.step, Lk, self.step)) for i in range(Lq))
        return Lq * Lk - hidden

    def __str__(self) -> str:
        return "padding in every tile" if self.keys_only else "holes in every tile"


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
      ratio         the peer's time over ours, at least
      overhead      our time over the peer's, at most
      share         our rate over the machine's peak rate, at least
      scaling       time on one thread over time on `threads` threads, at least
      memory        peak memory over the bytes of the inputs, the output and their gradients, at most
      memory_ratio  what the peer's call takes beyond its inputs over what ours does, at least
    peer: the one compared with, of ratio, overhead and memory_ratio
    needs: the instruction set below which the bound does not apply
    control: on several threads, judged only where an FMA loop scales by this
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

    op: attention            shape says all
        attention_map        tiles, column sums and entropies; the products are two of queries and keys
        linear_attention     causal, feature map elu + 1, normalised
        delta_rule           with keys of length 1 and a beta per token
        multihead_attention  the layer, of width E = H * D; forward is eval, both a training step
    passes: backward and both make the gradients of all inputs (of the layer: of its weights as well)
    layout: BLHD are views (B, H, L, D) of tensors that lie as (B, L, H, D)
    pair_bias: add a bias (H, Lq, Lk), shared by all B, which wants a gradient
    kind: time      thread CPU time of ours and of the peers, interleaved
          scaling   wall time on 1 and on `threads` threads, interleaved with an FMA loop doing the same
          memory    peak memory of a process that does nothing else
    bound: the machine's limit that `share` is taken of
    capability: the instruction set forced on us, None = the best; runs in a process of its own
    memory: measure the peak memory of a call, too
    tail: of kind memory, how many of the last queries are compared with a peer, which could not do all
    note: for people, what the rest doesn't tell
    headline: show it in README.md
    group: the heading under which it stands
    """

    name: str
    shape: Shape
    requirements: tuple[Requirement, ...] = ()
    peers: tuple[str, ...] = ("sdpa",)
    op: str = "attention"
    passes: Passes = "forward"
    mask: Band | Holes | None = None
    dtype: str = "float32"
    layout: Literal["BHLD", "BLHD"] = "BHLD"
    pair_bias: bool = False
    kind: Literal["time", "scaling", "memory"] = "time"
    threads: int = 1
    bound: Literal["fma", "bandwidth"] = "fma"
    capability: str | None = None
    memory: bool = False
    tail: int = 0
    note: str = ""
    headline: bool = False
    group: str = ""

    @property
    def grad(self) -> bool:
        return self.passes != "forward"

    @property
    def title(self) -> str:
        if self.op == "multihead_attention":
            return LAYER_PASSES[self.passes]
        kind = {"time": "", "scaling": f"{self.threads} threads, ", "memory": "peak memory, "}[self.kind]
        parts = [PASSES[self.passes], "dense" if self.mask is None else str(self.mask), self.note]
        return kind + ", ".join(part for part in parts if part)

    @property
    def pairs(self) -> int:
        """Pairs (query, key) allowed, of one head."""
        s = self.shape
        return s.Lq * s.Lk if self.mask is None else self.mask.pairs(s.Lq, s.Lk)

    @property
    def flops(self) -> float:
        """Two products forward, five backward; what is masked does not count. The layer's projections do.

        Of the linear family the recurrence: one state written and read per token, twice that backward.
        """
        s = self.shape
        if self.op in ("linear_attention", "delta_rule"):
            return 4.0 * s.B * s.H * s.Lq * s.D * s.Dv * (3.0 if self.grad else 1.0)
        products = 2.0 * s.B * s.H * self.pairs * (s.D + s.Dv) * PRODUCTS[self.passes]
        if self.op != "multihead_attention":
            return products
        return products + 8.0 * s.B * s.Lq * (s.H * s.D) ** 2 * (3.0 if self.grad else 1.0)

    @property
    def element_bytes(self) -> int:
        return {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}[self.dtype]

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the inputs and of out, and of their gradients where they are made."""
        s = self.shape
        if self.op == "multihead_attention":
            E = s.H * s.D
            elements = 2 * s.B * s.Lq * E + 4 * E * (E + 1)
        else:
            elements = s.B * (s.H * s.Lq + s.Hkv * s.Lk) * (s.D + s.Dv)
            elements += s.H * s.Lq * s.Lk if self.pair_bias else 0
        return elements * self.element_bytes * (2 if self.grad else 1)
