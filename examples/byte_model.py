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
    "gated delta": lambda: ax.nn.GatedDeltaNet(EMBED, HEADS, conv_size=None, **OPTIONS),
}
RECURRENT = ("linear", "retention", "gated delta")


def attend(kind: str, layer: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
    """A layer's output on a whole sequence, and its state where it has one."""
    if kind in RECURRENT:
        return layer(x, x, x, return_state=True)
    return layer(x, x, x, need_weights=False, attn_mask=CAUSAL if kind == "softmax" else None)


class Block(nn.Module):
    """A short convolution, which tells an attention what stands next to what, the attention, and an MLP."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.near, self.conv = nn.LayerNorm(EMBED), ax.nn.ShortConvolution(EMBED, 4)
        self.norm, self.attention = nn.LayerNorm(EMBED), KINDS[kind]()
        self.mlp = nn.Sequential(
            nn.LayerNorm(EMBED), nn.Linear(EMBED, 4 * EMBED), nn.GELU(), nn.Linear(4 * EMBED, EMBED)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        convolved, past = self.conv(self.near(x))
        x = x + convolved
        attended, state = attend(self.kind, self.attention, self.norm(x))
        x = x + attended
        return x + self.mlp(x), (past, state)

    def step(self, x: Tensor, state: Any) -> Tensor:
        past, state = state
        x = x + self.conv.step(self.near(x)[:, None], past)[:, 0]
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
        x = self.embedding(data)
        states = []
        for block in self.blocks:
            x, state = block(x)
            states.append(state)
        return self.norm(x) @ self.embedding.weight.T, states

    @torch.no_grad()
    def step(self, data: Tensor, states: list[Any]) -> Tensor:
        """data (N,), one byte each: logits (N, 256). The states are brought up to date."""
        x = self.embedding(data)
        for block, state in zip(self.blocks, states, strict=True):
            x = block.step(x, state)
        return self.norm(x) @ self.embedding.weight.T
