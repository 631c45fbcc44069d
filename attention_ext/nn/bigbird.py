"""BigBird's attention: windows, global and random blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import masks
from ..masks import Mask
from .sparse_attention import SparseAttention, kept


class BigBirdAttention(SparseAttention):
    """Attention to the blocks around a query's own, to global blocks, which see all, and to random ones
    (BigBird, Zaheer et al. 2020, https://arxiv.org/abs/2007.14062; its internal transformer construction).

    Self-attention: query and key have one length L, of ceil(L / block_size) blocks. The random blocks of a
    query block differ from head to head and lie outside of its window and of the global blocks. They follow
    from seed, head and number of blocks alone, in training and in eval, on every device.

    Args:
        block_size: positions in a block.
        window_blocks: blocks of the window, an odd number, the query's own in the middle.
        global_blocks: how many of the first and of the last blocks are global.
        random_blocks: how many random blocks a query block sees; or a bool tensor (..., nq, nk), as in
            ``masks.Blocks``, of those it sees in addition. The tensor fixes the lengths, moves with the
            module, and is no part of ``state_dict``.
        seed: of the random blocks; give each layer its own.
    """

    def __init__(
        self,
        *args: Any,
        block_size: int = 64,
        window_blocks: int = 3,
        global_blocks: tuple[int, int] = (1, 1),
        random_blocks: int | Tensor = 3,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        pattern = {
            "block_size": block_size,
            "window_blocks": window_blocks,
            "global_blocks": global_blocks,
            "random_blocks": random_blocks,
            "seed": seed,
        }
        super().__init__(*args, pattern=pattern, **kwargs)

    def _set_pattern(
        self,
        block_size: int = 64,
        window_blocks: int = 3,
        global_blocks: tuple[int, int] = (1, 1),
        random_blocks: int | Tensor = 3,
        seed: int = 0,
    ) -> None:
        check_count("block_size", block_size, 1)
        check_count("window_blocks", window_blocks, 1)
        if window_blocks % 2 == 0:
            raise ValueError(f"window_blocks: expected an odd number, got {window_blocks}")
        if not isinstance(global_blocks, (tuple, list)) or len(global_blocks) != 2:
            raise ValueError(f"global_blocks: expected two numbers, (first, last), got {global_blocks!r}")
        for count in global_blocks:
            check_count("global_blocks", count, 0)
        check_count("seed", seed, 0)
        drawn = None
        if isinstance(random_blocks, Tensor):
            masks.Blocks(random_blocks, block_size)  # checks it
            drawn, random_blocks = random_blocks.to(self.out_proj.weight.device), 0
        else:
            check_count("random_blocks", random_blocks, 0)
        self.block_size, self.window_blocks, self.seed = block_size, window_blocks, seed
        self.global_blocks, self.random_blocks = tuple(global_blocks), random_blocks
        self.register_buffer("drawn_blocks", drawn, persistent=False)

    def pattern(self, Lq: int, Lk: int) -> Mask:
        if Lq != Lk:
            raise ValueError(f"key: expected the length of query, {Lq}, got {Lk}")
        blocks = -(-Lk // self.block_size)
        if self.drawn_blocks is not None and tuple(self.drawn_blocks.shape[-2:]) != (blocks, blocks):
            shape = tuple(self.drawn_blocks.shape)
            raise ValueError(f"random_blocks: expected {blocks} x {blocks} blocks for {Lk} keys, got {shape}")
        drawn = self.random_blocks if self.drawn_blocks is None else self.drawn_blocks
        device = self.out_proj.weight.device
        return _blocks(
            blocks,
            self.block_size,
            self.window_blocks,
            self.global_blocks,
            drawn,
            self.seed,
            self.num_heads,
            device,
        )

    def extra_repr(self) -> str:
        drawn = self.random_blocks if self.drawn_blocks is None else tuple(self.drawn_blocks.shape)
        return (
            f"block_size={self.block_size}, window_blocks={self.window_blocks}, "
            f"global_blocks={self.global_blocks}, random_blocks={drawn}, seed={self.seed}"
        )


@kept
def _blocks(
    blocks: int,
    block_size: int,
    window_blocks: int,
    global_blocks: tuple[int, int],
    drawn: int | Tensor,
    seed: int,
    heads: int,
    device: torch.device,
) -> Mask:
    i, j = torch.arange(blocks, device=device)[:, None], torch.arange(blocks, device=device)
    first, last = global_blocks
    always = (i - j).abs() <= window_blocks // 2
    for x in (i, j):
        always = always | (x < first) | (x >= blocks - last)
    if not isinstance(drawn, Tensor):
        drawn = draw_blocks(always, drawn, seed, heads)
    return masks.Blocks(always | drawn, block_size)


def draw_blocks(always: Tensor, count: int, seed: int, heads: int) -> Tensor:
    """bool (heads, n, n): `count` of the key blocks of each query block that are not seen always."""
    n = always.shape[0]
    count = min(count, n)
    if not count:
        return always.new_zeros(heads, n, n)
    pair = torch.arange(n * n, device=always.device).view(n, n)
    head = torch.arange(heads, device=always.device)[:, None, None]
    word = _scramble(pair + _scramble(head + _scramble(seed))).masked_fill(always, -1)
    smallest_chosen = word.topk(count, dim=-1).values[..., -1:].clamp(min=0)
    return word >= smallest_chosen


def _scramble(x: Tensor | int) -> Tensor | int:
    """A hash of integers to 32 bits, in few operations: a graph of torch.compile holds them."""
    for _ in range(2):
        x = ((x >> 16) ^ x) * 0x45D9F3B & 0xFFFFFFFF
    return (x >> 16) ^ x


def check_count(name: str, count: int, least: int) -> None:
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"{name}: expected an int, got {type(count).__name__}")
    if not least <= count < 2**31:
        raise ValueError(f"{name}: expected {least} to 2**31 - 1, got {count}")
