"""A small language model over bytes, with one of several attentions of attention_ext inside."""

from typing import Any

import torch
from torch import Tensor, nn

import attention_ext as ax

EMBED, HEADS, LAYERS, WINDOW = 128, 4, 2, 128
CAUSAL = ax.masks.Causal()
OPTIONS = {"batch_first": True}
KINDS = {
    "softmax": lambda: ax.MultiheadAttention(EMBED, HEADS, **OPTIONS),
    "sliding window": lambda: ax.nn.SlidingWindowAttention(
        EMBED, HEADS, window=WINDOW, causal=True, **OPTIONS
    ),
    "linear": lambda: ax.nn.LinearAttention(EMBED, HEADS, causal=True, **OPTIONS),
    "retention": lambda: ax.nn.Retention(EMBED, HEADS, **OPTIONS),
    "gated delta": lambda: ax.nn.GatedDeltaNet(EMBED, HEADS, **OPTIONS),
}
RECURRENT = ("linear", "retention", "gated delta")


def attend(kind: str, layer: nn.Module, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """A layer's output on a whole sequence, and its state where it has one."""
    if kind in RECURRENT:
        return layer(x, x, x, initial_state=state, return_state=True)
    return layer(x, x, x, need_weights=False, attn_mask=CAUSAL if kind == "softmax" else None)


class Block(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.norm, self.attention = nn.LayerNorm(EMBED), KINDS[kind]()
        self.mlp = nn.Sequential(
            nn.LayerNorm(EMBED), nn.Linear(EMBED, 4 * EMBED), nn.GELU(), nn.Linear(4 * EMBED, EMBED)
        )

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        attended, state = attend(self.kind, self.attention, self.norm(x), state)
        x = x + attended
        return x + self.mlp(x), state

    def step(self, x: Tensor, state: Any) -> Tensor:
        x = x + self.attention.step(self.norm(x), state)
        return x + self.mlp(x)


class ByteModel(nn.Module):
    """Logits of the next byte; the recurrent kinds also go on from a state, a byte at a time."""

    def __init__(self, kind: str):
        super().__init__()
        self.embedding = nn.Embedding(256, EMBED)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(kind) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(EMBED)

    def forward(self, data: Tensor) -> tuple[Tensor, list[Any]]:
        """data (N, L): logits (N, L, 256), and the states of the layers."""
        x = self.embedding(data) + positions(torch.arange(data.shape[1]))
        states = []
        for block in self.blocks:
            x, state = block(x)
            states.append(state)
        return self.norm(x) @ self.embedding.weight.T, states

    @torch.no_grad()
    def step(self, data: Tensor, states: list[Any], position: int) -> Tensor:
        """data (N,), one byte each: logits (N, 256). The states are brought up to date."""
        x = self.embedding(data) + positions(torch.tensor(position))
        for block, state in zip(self.blocks, states, strict=True):
            x = block.step(x, state)
        return self.norm(x) @ self.embedding.weight.T


def positions(index: Tensor) -> Tensor:
    """Sinusoidal positions (..., EMBED), as small as the embeddings are at first."""
    angles = index[..., None] * 10_000.0 ** -torch.linspace(0, 1, EMBED // 2)
    return 0.02 * torch.cat([angles.sin(), angles.cos()], -1)
