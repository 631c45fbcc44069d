"""What the figures belong to: the machine and the software."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from attention_ext import _C

__all__ = ["describe", "load"]


def cpu_name() -> str:
    """The model, with family and number: names of virtual machines tell little."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields.get('model', '?')})"
    return name


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def load() -> float:
    """Processes that wanted to run, averaged over the last minute."""
    return os.getloadavg()[0]


def describe() -> dict[str, Any]:
    built = _C.build()
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_bytes(),
        "cache_sizes": _C.cache_sizes(),
        "capability": _C.cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "compiler": built["compiler"],
        "attention_ext": built["version"],
    }
