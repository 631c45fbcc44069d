"""The CUDA operators on CPU tensors: the kernels and bindings that ship, compiled for the emulator.

ATTENTION_EXT_EMULATION chooses one a process: plain (the default); checked; ptx, which runs what nvcc made
of the kernels, once an architecture; or device, a real GPU that the tensors travel to and back.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import device
import torch
from cuda_code import kernel_name

import attention_ext  # noqa: F401  whose operators these take the place of

NAMESPACE = "attention_ext_emulation"
MODE = os.environ.get("ATTENTION_EXT_EMULATION", "plain")
FOLDER = Path(
    os.environ.get("ATTENTION_EXT_EMULATION_FOLDER", Path(__file__).parents[2] / "build/cuda_emulation")
)
PATH = FOLDER / ("plain" if MODE == "ptx" else MODE) / "liboperators.so"
# Where there is PTX of the kernels, a folder for each architecture; and what tests leave of it.
PTX = sorted({file.parent for file in FOLDER.glob("ptx/sm_*/*.ptx")})
PTX_RUN = FOLDER / "ptx" / "run"
OPERATORS = (
    "attention",
    "_attention_forward",
    "_attention_backward",
    "_pack_mask_bits",
    "_dropout_keep",
    "attention_map",
    "select_blocks",
    "_linear_attention_forward",
    "_linear_attention_backward",
    "_linear_attention_step",
    "_delta_rule_forward",
    "_delta_rule_backward",
    "_delta_rule_step",
)
# Not installed: a test that is to run kernels must not be content with this one's.
TABLE_OPERATOR = "_build_block_table"


class Kernels:
    """The operators under test, and how many calls they had."""

    def __init__(self) -> None:
        self.calls = 0

    def set_schedule(self, seed: int) -> None:
        """In which order the emulator runs threads. 0: they take turns; else a random one."""

    def set_architecture(self, number: int) -> None:
        """Which one the emulator says that kernels are compiled for: 80 is sm_80."""

    def set_capturing(self, on: bool) -> None:
        """Whether the emulator says that its stream is being captured into a CUDA graph."""

    def load_ptx(self, folder: Path) -> None:
        """In ptx mode: runs kernels from the PTX of this folder."""

    def findings(self) -> list[str]:
        """What the checks found since the last call."""
        return []

    def kernels_run(self) -> list[str]:
        """Those that were run from PTX, as sm_80/name."""
        return []

    def launches(self) -> dict[str, list[int]]:
        """(threads, bytes of shared memory) of a block of each kernel that was launched, the most of all."""
        return {}

    def run(self, name: str, *args: Any) -> Any:
        raise NotImplementedError

    def operator(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.calls += 1
            return self.run(name, *args)

        return call

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While it lasts, these operators take the place of those that attention_ext has for CPU tensors."""
        library = torch.library.Library("attention_ext", "IMPL")
        for name in OPERATORS:
            library.impl(name, self.operator(name), "CPU", allow_override=True)
        try:
            yield
        finally:
            library._destroy()


class Launch(ctypes.Structure):
    _fields_ = (("kernel", ctypes.c_size_t), ("threads", ctypes.c_int), ("shared_bytes", ctypes.c_size_t))


class Emulator(Kernels):
    def __init__(self) -> None:
        super().__init__()
        self._definitions = torch.library.Library(NAMESPACE, "DEF")
        for name in (*OPERATORS, TABLE_OPERATOR):
            schema = str(getattr(torch.ops.attention_ext, name).default._schema)
            self._definitions.define(schema.removeprefix("attention_ext::"))
        torch.ops.load_library(str(PATH))
        self._library = ctypes.CDLL(str(PATH))
        self._library.emulation_set_seed.argtypes = [ctypes.c_uint64]
        self._library.emulation_set_architecture.argtypes = [ctypes.c_int]
        self._library.emulation_set_capturing.argtypes = [ctypes.c_bool]
        self._library.emulation_is_checked.restype = ctypes.c_bool
        self._library.emulation_next_diagnostic.restype = ctypes.c_char_p
        self._library.emulation_launches.restype = ctypes.POINTER(Launch)
        self._library.emulation_interpret_ptx.argtypes = [ctypes.c_char_p]
        self._library.emulation_interpret_ptx.restype = ctypes.c_char_p
        self._library.emulation_ptx_kernels_run.restype = ctypes.c_char_p
        assert self._library.emulation_is_checked() == (MODE == "checked")

    def set_schedule(self, seed: int) -> None:
        if MODE == "checked" and seed:  # one schedule a test, but each test its own
            test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
            seed += zlib.crc32(test.encode())
        self._library.emulation_set_seed(seed)

    def set_architecture(self, number: int) -> None:
        self._library.emulation_set_architecture(number)

    def set_capturing(self, on: bool) -> None:
        self._library.emulation_set_capturing(on)

    def load_ptx(self, folder: Path) -> None:
        if error := self._library.emulation_interpret_ptx(str(folder).encode()):
            raise RuntimeError(error.decode())

    def kernels_run(self) -> list[str]:
        paths = self._library.emulation_ptx_kernels_run().decode().splitlines()
        return ["/".join(Path(path).parts[-2:]) for path in paths]

    def findings(self) -> list[str]:
        texts = iter(self._library.emulation_next_diagnostic, None)
        return [text.decode() for text in texts]

    def launches(self) -> dict[str, list[int]]:
        count = ctypes.c_size_t()
        found = self._library.emulation_launches(ctypes.byref(count))[: count.value]
        symbols = subprocess.run(
            ["nm", "--demangle", PATH], check=True, capture_output=True, text=True
        ).stdout
        names = {int(line[:16], 16): line[19:] for line in symbols.splitlines() if line[:16].strip()}
        return {kernel_name(names[at.kernel]): [at.threads, at.shared_bytes] for at in found}

    def run(self, name: str, *args: Any) -> Any:
        return getattr(getattr(torch.ops, NAMESPACE), name).default(*args)


class Device(Kernels):
    """The operators of the package on a device, to which tensors travel, and back."""

    def __init__(self, device: str = "cuda") -> None:
        super().__init__()
        self._device = device

    def run(self, name: str, *args: Any) -> Any:
        operator = getattr(torch.ops.attention_ext, name).default
        arguments = operator._schema.arguments[: len(args)]
        sent = [self._sent(argument.name, x) for argument, x in zip(arguments, args, strict=True)]
        results = operator(*sent)
        for argument, mine, theirs in zip(arguments, args, sent, strict=True):
            if argument.alias_info is not None and argument.alias_info.is_write and mine is not None:
                mine.copy_(theirs)
        return _moved(results, "cpu")

    def _sent(self, name: str, x: Any) -> Any:
        """An argument on the device; a mask program, the first of a block table, stays where it is read."""
        on_host = x[:1] if name == "block_table" else []
        return [*on_host, *_moved(x[1:], self._device)] if on_host else _moved(x, self._device)


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
        return device.no_cuda()
    if MODE == "ptx" and not PTX:
        return "there is no PTX of the kernels: `make test-cuda-emulation` makes it where it finds nvcc"
    return None if PATH.exists() else "the emulated kernels are not built: `make test-cuda-emulation` does it"
