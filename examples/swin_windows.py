"""Swin's shifted windows: partitions as document ids, and a relative position bias, through ax.attention."""

import functools
import itertools
import sys
import time

import torch
import torch.nn.functional as F
from op_calls import OpCalls
from torch import Tensor

import attention_ext as ax

IMAGES, SIDE, DIM, HEADS, WINDOW = 2, 56, 96, 3, 7  # the first stage of Swin-T
ALLOWED = 1e-5


class ShiftedWindowAttention(torch.nn.Module):
    """The attention of a Swin block (Liu et al. 2021, https://arxiv.org/abs/2103.14030).

    The map is rolled by `shift` and cut into windows. A window at the edge then holds what the roll brought
    together from up to four sides: each is a document of its own, and attention stays inside documents.
    """

    def __init__(self, dim: int, heads: int, window: int, side: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.side, self.shift = heads, window, side, shift
        self.qkv, self.proj = torch.nn.Linear(dim, 3 * dim), torch.nn.Linear(dim, dim)
        self.bias_table = torch.nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, heads))
        at = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        apart = at[:, None] - at[None] + window - 1
        self.register_buffer("bias_index", apart[..., 0] * (2 * window - 1) + apart[..., 1])
        self.register_buffer("ids", self.partition_ids())

    def partition_ids(self) -> Tensor:
        """(windows, window**2): which side of the roll each position of a window comes from."""
        position = torch.arange(self.side)
        stripe = (position >= self.side - self.window).long() + (position >= self.side - self.shift).long()
        stripe = stripe if self.shift else torch.zeros_like(stripe)
        return self.windows((3 * stripe[:, None] + stripe)[None, ..., None])[..., 0]

    def windows(self, x: Tensor) -> Tensor:
        """(B, side, side, C) as (B * windows, window**2, C)."""
        n, w = self.side // self.window, self.window
        return x.unflatten(1, (n, w)).unflatten(3, (n, w)).transpose(2, 3).reshape(-1, w * w, x.shape[-1])

    def whole(self, x: Tensor) -> Tensor:
        """The inverse of `windows`."""
        n, w = self.side // self.window, self.window
        x = x.view(-1, n, n, w, w, x.shape[-1]).transpose(2, 3)
        return x.reshape(-1, self.side, self.side, x.shape[-1])

    def position_bias(self) -> Tensor:
        """(heads, window**2, window**2)"""
        return self.bias_table[self.bias_index].permute(2, 0, 1)

    def forward(self, x: Tensor, attend) -> Tensor:
        """x (B, side, side, C); attend(module, q, k, v), each (B * windows, heads, window**2, D)."""
        x = self.windows(x.roll((-self.shift, -self.shift), (1, 2)))
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = self.whole(self.proj(attend(self, q, k, v).transpose(1, 2).flatten(2)))
        return x.roll((self.shift, self.shift), (1, 2))


def fused(layer: ShiftedWindowAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    ids = layer.ids.repeat(q.shape[0] // layer.ids.shape[0], 1)
    return ax.attention(q, k, v, mask=ax.masks.Documents(ids), bias=layer.position_bias())


@functools.cache
def swin_mask(layer: ShiftedWindowAttention) -> Tensor:
    """(windows, window**2, window**2): -100 between parts of the rolled map that are no neighbours."""
    labels = torch.zeros(1, layer.side, layer.side, 1)
    if layer.shift:
        parts = slice(-layer.window), slice(-layer.window, -layer.shift), slice(-layer.shift, None)
        for n, (rows, columns) in enumerate(itertools.product(parts, parts)):
            labels[:, rows, columns] = n
    labels = layer.windows(labels)
    return torch.where(labels == labels.mT, 0.0, -100.0)


def plain(layer: ShiftedWindowAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula as Swin writes it: scores, bias and mask of every window, all of them stored."""
    scores = q @ k.mT * q.shape[-1] ** -0.5 + layer.position_bias()
    mask = swin_mask(layer)
    scores = scores.unflatten(0, (-1, len(mask))) + mask[:, None]
    return F.softmax(scores.flatten(0, 1), dim=-1) @ v


def step(layer: ShiftedWindowAttention, x: Tensor, attend) -> tuple[float, list[Tensor]]:
    """Seconds of a forward and backward; the output and all gradients."""
    x = x.clone().requires_grad_()
    start = time.perf_counter()
    out = layer(x, attend)
    gradients = torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])
    return time.perf_counter() - start, [out.detach(), *gradients]


def main() -> bool:
    torch.manual_seed(0)
    x = torch.randn(IMAGES, SIDE, SIDE, DIM)
    right = True
    print(f"  {IMAGES} maps of {SIDE} x {SIDE}, windows of {WINDOW} x {WINDOW}, {HEADS} heads, float32")
    for shift in (0, WINDOW // 2):
        layer = ShiftedWindowAttention(DIM, HEADS, WINDOW, SIDE, shift)
        with OpCalls() as counter:
            _, ours = step(layer, x, fused)
        calls = counter.calls["_attention_forward"], counter.calls["_attention_backward"]
        _, theirs = step(layer, x, plain)
        difference = max(
            float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True)
        )
        times = {attend: min(step(layer, x, attend)[0] for _ in range(5)) * 1e3 for attend in (fused, plain)}
        right = right and difference <= ALLOWED and calls == (1, 1)
        print(
            f"  shift {shift}: forward and backward {times[fused]:.0f} ms, the plain formula "
            f"{times[plain]:.0f} ms; output and gradients differ by {difference:.1e}"
            f" ({'within' if difference <= ALLOWED else 'ABOVE'} {ALLOWED:.0e}); our kernels ran: {calls}"
        )
    return right


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
