"""bfloat16 and float16 are no less precise than torch's SDPA at the same dtype."""

import pytest
import torch
from helpers import Shape, make_qkv
from torch.nn.functional import scaled_dot_product_attention

from attention_ext import attention, masks, reference

SHAPES = {
    "square": Shape(1, 4, 4, 128, 128, 64, 64),
    "long": Shape(1, 2, 2, 512, 512, 64, 64),
    "wide": Shape(1, 2, 2, 192, 192, 128, 128),
    "odd": Shape(2, 3, 3, 101, 101, 40, 40),
    "short": Shape(8, 4, 4, 24, 24, 32, 32),
}


def results(function, tensors, grad_out, dtype):
    """out, dq, dk, dv as one formula finds them in dtype."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_out.to(dtype))]


@pytest.mark.parametrize("causal", [False, True], ids=["dense", "causal"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_error_is_at_most_that_of_sdpa(dtype, shape, causal):
    # The norm of the error over that of the result averages over many roundings, and moves by a few per cent
    # with the order of the sums. So a tenth more is allowed, and a tenth of the dtype's rounding unit where
    # SDPA is nearly exact: the rounding of the result alone is about half of that unit.
    tensors = make_qkv(shape, dtype)
    grad_out = torch.randn(shape.B, shape.Hq, shape.Lq, shape.Dv, dtype=dtype)
    mask = masks.Causal() if causal else None

    exact = results(lambda *qkv: reference.attention(*qkv, mask=mask), tensors, grad_out, torch.float64)
    ours = results(lambda *qkv: attention(*qkv, mask=mask), tensors, grad_out, dtype)
    sdpa = results(
        lambda *qkv: scaled_dot_product_attention(*qkv, is_causal=causal), tensors, grad_out, dtype
    )

    unit = torch.finfo(dtype).eps / 2
    for name, e, a, p in zip(["out", "dq", "dk", "dv"], exact, ours, sdpa, strict=True):
        error, allowed = (float((x.double() - e).norm() / e.norm()) for x in (a, p))
        assert error <= 1.1 * allowed + 0.1 * unit, f"{name}: {error:.3g}, SDPA {allowed:.3g}"
