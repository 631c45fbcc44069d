"""The CUDA operators on CPU tensors: the kernels and bindings that ship, compiled for the emulator.

ATTENTION_EXT_EMULATION chooses one a process: plain (the default), checked, or device, a real GPU that the
tensors travel to and back.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import attention_ext as ax
from attention_ext._ops import delta_rule, library, linear_attention

NAMESPACE = "attention_ext_emulation"
MODE = os.environ.get("ATTENTION_EXT_EMULATION", "plain")
FOLDER = Path(
    os.environ.get("ATTENTION_EXT_EMULATION_FOLDER", Path(__file__).parents[2] / "build/cuda_emulation")
)
PATH = FOLDER / MODE / "liboperators.so"
OPERATORS = (
    "_attention_forward",
    "_attention_backward",
    "_pack_mask_bits",
    "_dropout_keep",
    "_linear_attention_forward",
    "_linear_attention_backward",
    "_linear_attention_step",
    "_delta_rule_forward",
    "_delta_rule_backward",
    "_delta_rule_step",
)


class Kernels:
    """The operators under test, and how many calls they had."""

    def __init__(self) -> None:
        self.calls = 0

    def set_schedule(self, seed: int) -> None:
        """In which order the emulator runs threads. 0: they take turns; else a random one."""

    def set_architecture(self, number: int) -> None:
        """Which one the emulator says that kernels are compiled for: 80 is sm_80."""

    def findings(self) -> list[str]:
        """What the checks found since the last call."""
        return []

    def run(self, name: str, *args: Any) -> Any:
        raise NotImplementedError

    def operator(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.calls += 1
            return self.run(name, *args)

        return call

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While it lasts, attention_ext runs these operators instead of its own."""
        with (
            mock.patch.object(library, "forward", self.operator("_attention_forward")),
            mock.patch.object(library, "backward", self.operator("_attention_backward")),
            mock.patch.object(library, "pack_mask_bits", self.operator("_pack_mask_bits")),
            mock.patch.object(library, "dropout_keep", self.operator("_dropout_keep")),
            mock.patch.object(
                linear_attention.operator, "forward", self.operator("_linear_attention_forward")
            ),
            mock.patch.object(
                linear_attention.operator, "backward", self.operator("_linear_attention_backward")
            ),
            mock.patch.object(library, "linear_step", self.operator("_linear_attention_step")),
            mock.patch.object(delta_rule.operator, "forward", self.operator("_delta_rule_forward")),
            mock.patch.object(delta_rule.operator, "backward", self.operator("_delta_rule_backward")),
            mock.patch.object(library, "delta_step", self.operator("_delta_rule_step")),
        ):
            yield


class Emulator(Kernels):
    def __init__(self) -> None:
        super().__init__()
        self._definitions = torch.library.Library(NAMESPACE, "DEF")
        for name in OPERATORS:
            schema = str(getattr(torch.ops.attention_ext, name).default._schema)
            self._definitions.define(schema.removeprefix("attention_ext::"))
        torch.ops.load_library(str(PATH))
        self._library = ctypes.CDLL(str(PATH))
        self._library.emulation_set_seed.argtypes = [ctypes.c_uint64]
        self._library.emulation_set_architecture.argtypes = [ctypes.c_int]
        self._library.emulation_is_checked.restype = ctypes.c_bool
        self._library.emulation_next_diagnostic.restype = ctypes.c_char_p
        assert self._library.emulation_is_checked() == (MODE == "checked")

    def set_schedule(self, seed: int) -> None:
        self._library.emulation_set_seed(seed)

    def set_architecture(self, number: int) -> None:
        self._library.emulation_set_architecture(number)

    def findings(self) -> list[str]:
        texts = iter(self._library.emulation_next_diagnostic, None)
        return [text.decode() for text in texts]

    def run(self, name: str, *args: Any) -> Any:
        return getattr(getattr(torch.ops, NAMESPACE), name).default(*args)


class Device(Kernels):
    """The operators of the package on the current CUDA device."""

    def run(self, name: str, *args: Any) -> Any:
        results = getattr(torch.ops.attention_ext, name).default(*_moved(args, "cuda"))
        return _moved(results, "cpu")


def _moved(x: Any, device: str) -> Any:
    if isinstance(x, torch.Tensor):
        return x.to(device)
    return type(x)(_moved(item, device) for item in x) if isinstance(x, (list, tuple)) else x


@cache
def kernels() -> Kernels:
    return Device() if MODE == "device" else Emulator()


def missing() -> str | None:
    """Why the kernels can't run here, if they can't."""
    if MODE == "device":
        if not torch.cuda.is_available():
            return "torch finds no CUDA device"
        built = ax.build_info()["cuda"]
        return None if built.startswith("built for") else f"the CUDA kernels were {built}"
    return None if PATH.exists() else "the emulated kernels are not built: `make test-cuda-emulation` does it"
