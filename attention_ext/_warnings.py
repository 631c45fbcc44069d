"""The package's warning category, and the once-per-op rule."""

import warnings


class UnfusedWarning(UserWarning):
    """A derivative goes through a plain PyTorch formula, which needs more time and memory than kernels."""


_warned: set[str] = set()


QUADRATIC = "an unfused formula, which holds the Lq x Lk matrix in memory"


def warn_unfused(op: str, formula: str = QUADRATIC) -> None:
    """Warn, once per op and process, that ``op`` left the fused kernels for the formula described."""
    if op in _warned:
        return
    warnings.warn(
        f"attention_ext.{op}: forward mode and derivatives beyond the first order go through {formula}",
        UnfusedWarning,
        stacklevel=3,
    )
    _warned.add(op)  # after the warning: where a filter turns it into an error, every call raises
