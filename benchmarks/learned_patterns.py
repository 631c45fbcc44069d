"""What learned sparsity lets a query see: how much of it is known, which of it depends on the numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Chosen", "Native"]


@dataclass(frozen=True)
class Chosen:
    """`top_k` blocks of keys for each query, its own up to itself among them."""

    block: int
    top_k: int

    def pairs(self, Lq: int, Lk: int) -> int:
        """The number of pairs allowed; the last query stands at the last key."""
        total = 0
        for p in range(Lk - Lq, Lk):
            others = min(self.top_k - 1, p // self.block)
            total += others * self.block + p % self.block + 1
        return total

    def shrunk(self, N: int) -> Chosen:
        """Its like for few positions."""
        return replace(self, block=max(1, N // 16), top_k=min(self.top_k, 4))

    def __str__(self) -> str:
        return f"{self.top_k} blocks of {self.block} chosen by each query"


@dataclass(frozen=True)
class Native:
    """Native sparse attention: compressed keys, chosen blocks (one initial, two local), a window."""

    chosen: Chosen
    length: int
    stride: int
    window: int

    def pairs(self, Lq: int, Lk: int) -> int:
        """The number of pairs that the branches see together."""
        total = self.chosen.pairs(Lq, Lk)
        for p in range(Lk - Lq, Lk):
            compressed = (p + 1 - self.length) // self.stride + 1 if p + 1 >= self.length else 0
            total += compressed + min(p + 1, self.window)
        return total

    def shrunk(self, N: int) -> Native:
        """Its like for few positions."""
        return Native(self.chosen.shrunk(N), max(1, N // 16), max(1, N // 32), N // 8)

    def __str__(self) -> str:
        parts = f"{self.length} keys in one, {self.chosen}, window {self.window}"
        return f"native sparse attention ({parts})"
