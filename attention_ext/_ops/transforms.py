"""torch's private functions: the only module that touches them, one wrapper each.

Where torch lacks one, the call raises: a wrong guess here would be a silently wrong derivative.
tests/test_private_torch.py holds a canary for each.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.autograd import forward_ad


def transforms_active() -> bool:
    """Is a torch.func transform running? In an Autograd kernel: is one running that differentiates?

    The dispatcher is done with those that only batch when it comes to an Autograd kernel.
    """
    try:
        return torch._C._are_functorch_transforms_active()
    except AttributeError as error:
        raise _missing("torch._C._are_functorch_transforms_active") from error


def forward_mode_active() -> bool:
    """Is a level of forward-mode differentiation open, by torch.func.jvp or torch.autograd.forward_ad?"""
    try:
        return forward_ad._current_level >= 0
    except AttributeError as error:
        raise _missing("torch.autograd.forward_ad._current_level") from error


def below_autograd() -> AbstractContextManager[None]:
    """Ops called inside skip their Autograd kernels."""
    try:
        return torch._C._AutoDispatchBelowAutograd()
    except AttributeError as error:
        raise _missing("torch._C._AutoDispatchBelowAutograd") from error


def after_autograd(keyset: Any) -> Any:
    """The dispatch keys that come after Autograd."""
    try:
        return keyset & torch._C._after_autograd_keyset
    except AttributeError as error:
        raise _missing("torch._C._after_autograd_keyset") from error


def schema_of(op: Any) -> str:
    """An op's schema, as it is written."""
    try:
        return str(op._schema)
    except AttributeError as error:
        raise _missing("OpOverload._schema") from error


def _missing(name: str) -> RuntimeError:
    return RuntimeError(f"attention_ext needs {name}, which torch {torch.__version__} does not have")
