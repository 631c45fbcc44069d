"""Do two results agree? Without that there is no figure."""

from __future__ import annotations

import torch

from .contender import Results

__all__ = ["TOLERANCE", "Disagreement", "check_agreement"]

# Of the largest absolute value: both round, and sums over thousands of keys run in different orders.
TOLERANCE = {"float64": 1e-12, "float32": 5e-5, "float16": 4e-3, "bfloat16": 3e-2}


class Disagreement(Exception):
    """Ours and a peer's results differ; the message says where and how much."""


def check_agreement(peer: str, ours: Results, theirs: Results, dtype: str) -> float:
    """The largest difference of the results, relative to the largest value of the peer's.

    Raises Disagreement if one is more than the dtype's tolerance, or in shape or names.
    """
    if ours.keys() != theirs.keys():
        raise Disagreement(f"results {', '.join(ours)}; {peer} has {', '.join(theirs)}")
    worst = 0.0
    for name, a in ours.items():
        b = theirs[name]
        if a.shape != b.shape:
            raise Disagreement(f"{name} is {tuple(a.shape)}, of {peer} {tuple(b.shape)}")
        size = b.abs().max().item()
        difference = (a - b).abs().max().item() / (size or 1.0)
        # Written so that NaN fails as well.
        if not difference <= TOLERANCE[dtype]:
            raise Disagreement(
                f"{name} differs from {peer} by {difference:.1e}, allowed {TOLERANCE[dtype]:.0e}"
            )
        worst = max(worst, difference)
    return worst


def check_identical(what: str, a: Results, b: Results) -> None:
    """Raises Disagreement unless the results are the same bit for bit."""
    for name, x in a.items():
        if not torch.equal(x, b[name]):
            raise Disagreement(f"{name} is not the same {what}")
