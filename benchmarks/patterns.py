"""Sparse masks as data: what they allow, without torch."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import lru_cache

__all__ = ["BigBird", "Documents", "Grid", "Longformer", "Table"]

# A pattern has `pairs`, the number of pairs allowed of one head, and `shrunk`, its like for few positions.


@dataclass(frozen=True)
class Documents:
    """Documents of `length` positions, one after the other."""

    length: int

    def pairs(self, Lq: int, Lk: int) -> int:
        starts = (i // self.length * self.length for i in range(Lq))
        return sum(max(0, min(start + self.length, Lk) - start) for start in starts)

    def shrunk(self, N: int) -> Documents:
        return Documents(max(1, N // 4))

    def __str__(self) -> str:
        return f"documents of {self.length}"


@dataclass(frozen=True)
class Grid:
    """A neighbourhood of window x window in a square grid of size x size, moved inwards at the edges."""

    size: int
    window: int

    def pairs(self, Lq: int, Lk: int) -> int:
        return Lq * self.window**2

    def shrunk(self, N: int) -> Grid:
        return Grid(int(N**0.5), 3)

    def __str__(self) -> str:
        return f"neighbourhood {self.window} x {self.window} on {self.size} x {self.size}"


@dataclass(frozen=True)
class BigBird:
    """Blocks: a query block sees its neighbours, the first and the last block, and random ones.

    All but the first and the last, which see everything, see random + 5 blocks. Of a layer, the random blocks
    are those that Transformers draws.
    """

    block: int
    random: int

    def blocks(self, Lk: int) -> tuple[tuple[int, ...], ...]:
        """The key blocks that each query block sees, in ascending order."""
        return _drawn(Lk // self.block, self.random)

    def pairs(self, Lq: int, Lk: int) -> int:
        return sum(map(len, self.blocks(Lk))) * self.block**2

    def shrunk(self, N: int) -> BigBird:
        return BigBird(N // 16, 2)

    def __str__(self) -> str:
        return f"BigBird, blocks of {self.block}"


@lru_cache
def _drawn(n: int, count: int) -> tuple[tuple[int, ...], ...]:
    draw = random.Random(0)
    every = tuple(range(n))
    rows = [every]
    for i in range(1, n - 1):
        seen = {0, n - 1, i - 1, i, i + 1}
        others = [j for j in every if j not in seen]
        seen.update(draw.sample(others, min(len(others), count + 5 - len(seen))))
        rows.append(tuple(sorted(seen)))
    return (*rows, every)


@dataclass(frozen=True)
class Longformer:
    """`reach` keys on either side, and the first `tokens` positions, which see and are seen by all."""

    reach: int
    tokens: int

    def pairs(self, Lq: int, Lk: int) -> int:
        total = 0
        for i in range(Lq):
            first, end = max(0, i - self.reach), min(Lk, i + self.reach + 1)
            total += Lk if i < self.tokens else max(0, end - first) + min(first, self.tokens, Lk)
        return total

    def shrunk(self, N: int) -> Longformer:
        return Longformer(N // 8, 2)

    def __str__(self) -> str:
        return f"Longformer, {self.reach} on either side, {self.tokens} global"


@dataclass(frozen=True)
class Table:
    """Another mask, given to the kernels as a table of tiles."""

    mask: object

    def pairs(self, Lq: int, Lk: int) -> int:
        return self.mask.pairs(Lq, Lk)

    def shrunk(self, N: int) -> Table:
        return replace(self, mask=self.mask.shrunk(N))

    def __str__(self) -> str:
        return f"{self.mask} as a table"
