"""The CUDA operators on CPU tensors: the kernels and bindings that ship, compiled for the emulator.

One library per process, plain or checked, as ATTENTION_EXT_EMULATION says (default: plain).
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

from attention_ext._ops import library

NAMESPACE = "attention_ext_emulation"
MODE = os.environ.get("ATTENTION_EXT_EMULATION", "plain")
FOLDER = Path(
    os.environ.get("ATTENTION_EXT_EMULATION_FOLDER", Path(__file__).parents[2] / "build/cuda_emulation")
)
PATH = FOLDER / MODE / "liboperators.so"
OPERATORS = ("_attention_forward", "_attention_backward", "_pack_mask_bits", "_dropout_keep")


class Emulator:
    """The loaded library: its operators, schedule and findings."""

    def __init__(self) -> None:
        self._definitions = torch.library.Library(NAMESPACE, "DEF")
        for name in OPERATORS:
            schema = str(getattr(torch.ops.attention_ext, name).default._schema)
            self._definitions.define(schema.removeprefix("attention_ext::"))
        torch.ops.load_library(str(PATH))
        self._library = ctypes.CDLL(str(PATH))
        self._library.emulation_set_seed.argtypes = [ctypes.c_uint64]
        self._library.emulation_is_checked.restype = ctypes.c_bool
        self._library.emulation_next_diagnostic.restype = ctypes.c_char_p
        assert self._library.emulation_is_checked() == (MODE == "checked")
        self.calls = 0

    def set_schedule(self, seed: int) -> None:
        """0: threads take turns; else they run in a random order."""
        self._library.emulation_set_seed(seed)

    def findings(self) -> list[str]:
        """What the checks found since the last call."""
        texts = iter(self._library.emulation_next_diagnostic, None)
        return [text.decode() for text in texts]

    def operator(self, name: str) -> Callable[..., Any]:
        op = getattr(getattr(torch.ops, NAMESPACE), name).default

        def call(*args: Any) -> Any:
            self.calls += 1
            return op(*args)

        return call

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While it lasts, attention_ext runs these operators instead of its own."""
        names = {name: self.operator(name) for name in OPERATORS}
        with (
            mock.patch.object(library, "forward", names["_attention_forward"]),
            mock.patch.object(library, "backward", names["_attention_backward"]),
            mock.patch.object(library, "pack_mask_bits", names["_pack_mask_bits"]),
            mock.patch.object(library, "dropout_keep", names["_dropout_keep"]),
        ):
            yield


@cache
def emulator() -> Emulator:
    return Emulator()
