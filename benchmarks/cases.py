"""What a case of the benchmarks is: the work, how it is measured, and the bounds it has to meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .learned_patterns import Chosen, Native
from .patterns import BigBird, Documents, Grid, Longformer, Table

__all__ = ["CAUSAL", "FEATURES", "Band", "Case", "Holes", "Pattern", "Requirement", "Shape", "plain"]

__all__ = ["CAUSAL", "Band", "Case", "Holes", "Pattern", "Requirement", "Shape", "plain"]

Figure = Literal["ratio", "share", "overhead", "scaling", "memory", "memory_ratio", "growth", "memory_growth"]
Passes = Literal["forward", "backward", "both"]
PASSES = {"forward": "forward", "backward": "backward", "both": "forward + backward"}
LAYER_PASSES = {"forward": "layer, eval", "both": "layer, training step"}
FEATURES = 256  # of the cases of Performer
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

    def shrunk(self, N: int) -> Band:
        """Its like for few positions."""
        return self if self.left is None else Band(N // 8 - 1, self.right)

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

    def shrunk(self, N: int) -> Holes:
        """Its like for few positions."""
        return self

    def __str__(self) -> str:
        return "padding in every tile" if self.keys_only else "holes in every tile"


Pattern = Band | Holes | BigBird | Chosen | Documents | Grid | Longformer | Native | Table


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
      growth        p of the power N**p that fits our times over the lengths, at most
      memory_growth the same of what our call takes beyond its inputs
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
        return self.figure in ("overhead", "memory", "growth", "memory_growth")


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    op: attention              shape says all
        attention_map          tiles, column sums and entropies; the products are two of queries and keys
        linear_attention       causal, feature map elu + 1, normalised
        linear_attention_step  one token of it, unnormalised and with decays, in place on the states
        delta_rule             with keys of length 1 and a beta per token
        select_blocks          the choice, and attention to what was chosen
        native_sparse          the same beside compressed keys and a window, without gates
        performer              causal linear attention on positive random features, normalised
        multihead_attention    the layer, of width E = H * D; forward is eval, both a training step; of a
                               Longformer or BigBird mask the layer that has it
    passes: backward and both make the gradients of all inputs (of the layer: of its weights as well)
    layout: BLHD are views (B, H, L, D) of tensors that lie as (B, L, H, D)
    pair_bias: add a bias (H, Lq, Lk), shared by all B, which wants a gradient
    variant: of the linear family: "decay" is one per token and head, "plain" none; linear attention is then
      without feature map and normaliser
    kind: time       thread CPU time of ours and of the peers, interleaved
          scaling    wall time on 1 and on `threads` threads, interleaved with an FMA loop doing the same
          memory     peak memory of a process that does nothing else
          crossover  from which length on ours is faster than its one peer, which computes something else
          growth     time and peak memory of ours at each of `lengths`, without peers
    bound: the machine's limit that `share` is taken of: operations, bytes read, bytes changed in place
    capability: the instruction set forced on us, None = the best; runs in a process of its own
    memory: measure the peak memory of a call, too
    lengths: of kind growth, what takes the place of the shape's lengths
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
    mask: Pattern | None = None
    dtype: str = "float32"
    layout: Literal["BHLD", "BLHD"] = "BHLD"
    pair_bias: bool = False
    variant: Literal["", "plain", "decay"] = ""
    kind: Literal["time", "scaling", "memory", "crossover", "growth"] = "time"
    threads: int = 1
    bound: Literal["fma", "bandwidth", "update"] = "fma"
    capability: str | None = None
    memory: bool = False
    tail: int = 0
    lengths: tuple[int, ...] = ()
    note: str = ""
    headline: bool = False
    group: str = ""

    @property
    def grad(self) -> bool:
        return self.passes != "forward"

    @property
    def title(self) -> str:
        if self.op == "multihead_attention":
            return LAYER_PASSES[self.passes] + ("" if self.mask is None else f", {self.mask}")
        kinds = {"scaling": f"{self.threads} threads", "memory": "peak memory"}
        kind = f"{kinds.get(self.kind, self.kind)}, " if self.kind != "time" else ""
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
        Features of Performer are products too.
        """
        s = self.shape
        if self.op == "performer":
            return 4.0 * s.B * s.H * s.Lq * FEATURES * (s.D + s.Dv) * (3.0 if self.grad else 1.0)
        if self.op in ("linear_attention", "linear_attention_step", "delta_rule"):
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
        """Bytes of the inputs and of out, and of their gradients where they are made.

        Of a step those of the states, read and written.
        """
        s = self.shape
        if self.op == "linear_attention_step":
            return 2 * s.B * s.H * s.D * s.Dv * self.element_bytes
        if self.op == "multihead_attention":
            E = s.H * s.D
            elements = 2 * s.B * s.Lq * E + 4 * E * (E + 1)
        else:
            elements = s.B * (s.H * s.Lq + s.Hkv * s.Lk) * (s.D + s.Dv)
            elements += s.H * s.Lq * s.Lk if self.pair_bias else 0
        return elements * self.element_bytes * (2 if self.grad else 1)
