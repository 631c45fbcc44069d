"""The device that the tests run on: ATTENTION_EXT_TEST_DEVICE, cpu unless it says cuda or pretend.

It becomes torch's default device, so that what a test makes lies there; what is about the CPU alone is marked
`cpu_only`. `pretend` is the CPU under another name: it shows on any machine that tests, `reference` and the
Python of the package leave tensors where they are.
"""

from __future__ import annotations

import os

import torch

import attention_ext as ax

NAME = os.environ.get("ATTENTION_EXT_TEST_DEVICE", "cpu")


def no_cuda() -> str | None:
    """Why the CUDA kernels can't run here, if they can't."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    built = ax.build_info()["cuda"]
    return None if built.startswith("built for") else f"the CUDA kernels were {built}"


def missing() -> str | None:
    """Why the tests can't run on their device, if they can't."""
    return no_cuda() if NAME.startswith("cuda") else None


def install() -> None:
    """Makes it torch's default device."""
    if NAME == "pretend":
        import pretend_device  # which needs a newer torch than the package does

        pretend_device.install()
    elif NAME != "cpu":
        torch.set_default_device(NAME)


def poison_freed_memory() -> None:
    """What torch's allocator of CUDA memory hands out next is full of NaN, as far as sizes fit."""
    if not NAME.startswith("cuda"):
        return
    sizes = [2**n for n in range(6, 23, 2) for _ in range(3)]
    for t in [torch.empty(n, device="cuda") for n in sizes]:
        t.fill_(torch.nan)
