"""Ours and what else computes it on a GPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import attention_ext as ax

from ..cases import CAUSAL, Band, Case
from ..contender import Contender, Inputs, NotHere, Work
from ..mask_forms import dense_mask, flex_function, mask_of

__all__ = ["CONTENDERS", "FORMULAS"]

Forward = Callable[..., Tensor]
Make = Callable[[Case, torch.device], Forward]
WEIGHTS = 8 * 2**30  # bytes that a peer may write out


def on_device(make: Make) -> Callable[[Case, Inputs], Work]:
    """For Contender.build, of a function that makes the forward of a case for tensors on a device."""

    def build(case: Case, inputs: Inputs) -> Work:
        leaves = inputs.leaves()
        tensors = tuple(leaves.values())
        forward = make(case, tensors[0].device)
        return Work(lambda: forward(*tensors), leaves)

    return build


def package(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NotHere(f"{module} can't be imported: {error}") from error


# attention


def attention(module: Any) -> Make:
    def make(case: Case, device: torch.device) -> Forward:
        mask = mask_of(case)
        mask = mask and mask.to(device)
        return lambda q, k, v: module.attention(q, k, v, mask=mask)

    return make


def bytes_of_weights(case: Case) -> int:
    s = case.shape
    return s.B * s.H * s.Lq * s.Lk * case.element_bytes


def sdpa(backend: SDPBackend) -> Make:
    """SDPA with this backend alone, where is_causal says all."""

    def make(case: Case, device: torch.device) -> Forward:
        if case.mask not in (None, CAUSAL):
            raise ValueError(f"{case.name}: is_causal of SDPA does not describe {case.mask}")
        if backend == SDPBackend.MATH and (weights := bytes_of_weights(case)) > WEIGHTS:
            raise NotHere(f"its weights take {weights / 2**30:.0f} GiB")
        options = {"is_causal": case.mask is not None, "enable_gqa": case.shape.Hkv != case.shape.H}

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, **options)

        return forward

    return make


def sdpa_bool_mask(case: Case, device: torch.device) -> Forward:
    """With the backend that torch chooses."""
    keep = dense_mask(case.mask, case.shape.Lq, case.shape.Lk, device)
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=keep)


def flex(case: Case, device: torch.device) -> Forward:
    attention = package("torch.nn.attention.flex_attention")
    s, grouped = case.shape, case.shape.Hkv != case.shape.H
    blocks = None
    if case.mask is not None:
        allowed = flex_function(case.mask, s.Lk, device)
        blocks = attention.create_block_mask(allowed, None, None, s.Lq, s.Lk, device=device)
    torch._dynamo.reset()  # a second shape would be compiled for all shapes
    compiled = torch.compile(attention.flex_attention, fullgraph=True, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=blocks, enable_gqa=grouped)


def flash_attn(case: Case, device: torch.device) -> Forward:
    attend = package("flash_attn").flash_attn_func
    if not (case.mask is None or isinstance(case.mask, Band)):
        raise NotHere(f"flash_attn has no mask for {case.mask}")
    left, right = (-1, -1) if case.mask is None else (case.mask.left, case.mask.right)
    window = (-1 if left is None else left, -1 if right is None else right)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = (t.transpose(1, 2) for t in (q, k, v))
        return attend(*rows, causal=case.mask == CAUSAL, window_size=window).transpose(1, 2)

    return forward


# the linear family; keys of the delta rule have length 1 already


def linear_attention(module: Any) -> Make:
    def make(case: Case, device: torch.device) -> Forward:
        options = {"causal": True, "feature_map": "identity", "normalize": False, "scale": case.shape.D**-0.5}
        return lambda q, k, v, decay=None: module.linear_attention(q, k, v, decay=decay, **options)

    return make


def delta_rule(module: Any) -> Make:
    def make(case: Case, device: torch.device) -> Forward:
        return lambda q, k, v, beta, decay=None: module.delta_rule(q, k, v, beta, decay=decay)

    return make


def fla_linear_attention(case: Case, device: torch.device) -> Forward:
    scale = case.shape.D**-0.5
    if case.variant == "decay":
        chunked = package("fla.ops.simple_gla").chunk_simple_gla
        return rows_first(lambda q, k, v, g: chunked(q, k, v, g, scale=scale)[0])
    plain = package("fla.ops.linear_attn").chunk_linear_attn
    return rows_first(lambda q, k, v: plain(q, k, v, scale=scale, normalize=False)[0])


def fla_delta_rule(case: Case, device: torch.device) -> Forward:
    if case.variant == "decay":
        gated = package("fla.ops.gated_delta_rule").chunk_gated_delta_rule
        return rows_first(lambda q, k, v, beta, g: gated(q, k, v, g, beta)[0])
    chunked = package("fla.ops.delta_rule").chunk_delta_rule
    return rows_first(lambda q, k, v, beta: chunked(q, k, v, beta)[0])


def rows_first(function: Forward) -> Forward:
    """Of (B, L, H, ...), as fla has them; the cases' tensors lie so in memory."""
    return lambda *tensors: function(*(t.transpose(1, 2) for t in tensors)).transpose(1, 2)


def in_float64(make: Make) -> Make:
    """The same on tensors in float64, with results in their own dtype."""

    def made(case: Case, device: torch.device) -> Forward:
        forward = make(case, device)
        return lambda *tensors: forward(*(t.double() for t in tensors)).to(tensors[0].dtype)

    return made


OPERATORS = {"attention": attention, "linear_attention": linear_attention, "delta_rule": delta_rule}
# For sizes that they can do.
FORMULAS = {
    op: Contender("the formula in float64", on_device(in_float64(make(ax.reference))))
    for op, make in OPERATORS.items()
}
CONTENDERS: dict[str, dict[str, Contender]] = {
    "attention": {
        "ours": Contender("attention_ext", on_device(attention(ax))),
        "sdpa_flash": Contender("SDPA, flash", on_device(sdpa(SDPBackend.FLASH_ATTENTION))),
        "sdpa_cudnn": Contender("SDPA, cuDNN", on_device(sdpa(SDPBackend.CUDNN_ATTENTION))),
        "sdpa_efficient": Contender("SDPA, efficient", on_device(sdpa(SDPBackend.EFFICIENT_ATTENTION))),
        "sdpa_math": Contender("SDPA, math", on_device(sdpa(SDPBackend.MATH))),
        "sdpa_bool_mask": Contender("SDPA + bool mask", on_device(sdpa_bool_mask)),
        "flex": Contender("FlexAttention, compiled", on_device(flex), quick=False),
        "flash_attn": Contender("flash-attn", on_device(flash_attn)),
    },
    "linear_attention": {
        "ours": Contender("attention_ext", on_device(linear_attention(ax))),
        "fla": Contender("fla", on_device(fla_linear_attention)),
    },
    "delta_rule": {
        "ours": Contender("attention_ext", on_device(delta_rule(ax))),
        "fla": Contender("fla", on_device(fla_delta_rule)),
    },
}
