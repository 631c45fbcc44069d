"""The GPU and its software: whether there is one, and what figures belong to."""

from __future__ import annotations

import platform
import shutil
import subprocess
from typing import Any

import torch

import attention_ext as ax

__all__ = ["clocks", "describe", "missing"]

CLOCKS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.draw", "pstate")


def missing() -> str:
    """Why nothing can be measured here; "" where it can."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    built = ax.build_info()["cuda"]
    return "" if built.startswith("built for") else f"the CUDA kernels of attention_ext were {built}"


def describe() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties()
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "driver": asked("driver_version").get("driver_version", "unknown"),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "attention_ext": ax.build_info()["version"],
        "kernels": ax.build_info()["cuda"],
    }


def clocks() -> dict[str, str]:
    """What nvidia-smi says of clocks, heat and power now; empty where it is not found."""
    return asked(*CLOCKS)


def asked(*fields: str) -> dict[str, str]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    index = str(torch.cuda.get_device_properties().uuid)
    options = [f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", f"--id=GPU-{index}"]
    try:
        told = subprocess.run([command, *options], capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return {}
    if told.returncode:
        return {}
    return dict(zip(fields, (value.strip() for value in told.stdout.strip().split(",")), strict=True))
