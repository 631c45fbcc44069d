"""Longformer's and BigBird's layers: ours and Transformers', with one set of weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import attention_ext as ax

from .cases import Case
from .contender import Inputs, Work
from .patterns import BigBird, Longformer

__all__ = ["sparse_layer", "transformers_layer"]

NAMES = ("query", "key", "value")
SEED = 0  # of Transformers' random blocks


def sparse_layer(case: Case) -> ax.MultiheadAttention:
    """Our layer that has the mask of the case."""
    s, options = case.shape, {"batch_first": True, "dtype": getattr(torch, case.dtype)}
    match case.mask:
        case Longformer(reach, tokens):
            return ax.nn.LongformerAttention(s.H * s.D, s.H, window=reach, global_tokens=tokens, **options)
        case BigBird(block):
            drawn = drawn_blocks(bigbird(case), case)
            return ax.nn.BigBirdAttention(s.H * s.D, s.H, block_size=block, random_blocks=drawn, **options)
    raise ValueError(f"{case.name}: no layer has {case.mask}")


def transformers_layer(case: Case, inputs: Inputs) -> Work:
    """For Contender.build: their attention, and ours' output projection, which they have elsewhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        leaves = inputs.leaves() | dict(sparse_layer(case).named_parameters())
    attend = longformer_forward(case) if isinstance(case.mask, Longformer) else bigbird_forward(case)

    def forward() -> Tensor:
        weights = dict(
            zip([f"{name}.weight" for name in NAMES], leaves["in_proj_weight"].chunk(3), strict=True)
        )
        weights |= zip([f"{name}.bias" for name in NAMES], leaves["in_proj_bias"].chunk(3), strict=True)
        if "global_in_proj_bias" in leaves:
            weights |= {f"{name}_global.weight": leaves[f"global_{name[0]}_proj_weight"] for name in NAMES}
            biases = leaves["global_in_proj_bias"].chunk(3)
            weights |= zip([f"{name}_global.bias" for name in NAMES], biases, strict=True)
        out = attend(weights, leaves["x"])
        return F.linear(out, leaves["out_proj.weight"], leaves["out_proj.bias"])

    return Work(forward, leaves)


def longformer_forward(case: Case) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    s, mask = case.shape, case.mask
    config = LongformerConfig(
        hidden_size=s.H * s.D,
        num_attention_heads=s.H,
        num_hidden_layers=1,
        attention_window=[2 * mask.reach],
        attention_probs_dropout_prob=0.0,
    )
    layer = LongformerSelfAttention(config, 0)
    hints = torch.zeros(s.B, s.Lq)
    hints[:, : mask.tokens] = 10000.0
    masks = {
        "attention_mask": hints,
        "is_index_masked": hints < 0,
        "is_index_global_attn": hints > 0,
        "is_global_attn": True,
    }
    return lambda weights, x: torch.func.functional_call(layer, weights, (x,), masks)[0]


def bigbird(case: Case) -> torch.nn.Module:
    """Transformers' layer, in training: in eval it draws no random blocks."""
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

    s, mask = case.shape, case.mask
    config = BigBirdConfig(
        hidden_size=s.H * s.D,
        num_attention_heads=s.H,
        block_size=mask.block,
        num_random_blocks=mask.random,
        max_position_embeddings=s.Lq,
        attention_probs_dropout_prob=0.0,
    )
    return BigBirdBlockSparseAttention(config, seed=SEED).train()


def bigbird_masks(case: Case) -> dict[str, Tensor]:
    from transformers.models.big_bird.modeling_big_bird import BigBirdModel

    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(
        torch.ones(case.shape.B, case.shape.Lq), case.mask.block
    )
    return {
        "band_mask": band,
        "from_mask": rows,
        "to_mask": columns,
        "from_blocked_mask": blocked,
        "to_blocked_mask": blocked,
    }


def bigbird_forward(case: Case) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    layer, masks = bigbird(case), bigbird_masks(case)
    return lambda weights, x: torch.func.functional_call(layer, weights, (x,), masks)[0]


def drawn_blocks(layer: torch.nn.Module, case: Case) -> Tensor:
    """The random blocks that Transformers' layer draws in every call, bool (H, blocks, blocks)."""
    s, n = case.shape, case.shape.Lq // case.mask.block
    drawn: list[Tensor] = []

    def record(draw: Callable[..., list]) -> Callable[..., list]:
        def recorded(*args: int, **sizes: int) -> list:
            heads = draw(*args, **sizes)
            drawn.extend(torch.as_tensor(head) for head in (heads if isinstance(heads, list) else [heads]))
            return heads

        return recorded

    for name in ("_bigbird_block_rand_mask", "_bigbird_block_rand_mask_with_head"):
        setattr(layer, name, record(getattr(layer, name)))
    with torch.no_grad():
        layer(torch.zeros(s.B, s.Lq, s.H * s.D), **bigbird_masks(case))
    keep = torch.zeros(s.H, n, n, dtype=torch.bool)
    for head, chosen in zip(keep, drawn, strict=True):
        head[1:-1].scatter_(1, chosen[: n - 2].long(), True)
    return keep
