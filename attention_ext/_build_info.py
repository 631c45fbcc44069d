"""What was built, and what it runs on."""

from typing import Any

import torch

from . import _C


def build_info() -> dict[str, Any]:
    """Tell what was built and what it runs on; a bug report should carry it.

    Returns a dict with
      version             of attention_ext
      torch_built         the torch it was built against
      torch_running       the torch of this process
      compiler            the C++ compiler
      cuda                "built for …", or "not built: " and why
      cpu_capability      the instruction set in use; the variable ATTENTION_EXT_CPU_CAPABILITY forces one
      cpu_capabilities    those of this machine, lowest first
      cache_sizes         bytes of the data caches that one core reaches: l1d, l2, l3 (0 where unknown)
      threads             torch's number of threads

    Raises ValueError if ATTENTION_EXT_CPU_CAPABILITY names no instruction set of this machine.
    """
    built = _C.build()
    return {
        "version": built["version"],
        "torch_built": built["torch"],
        "torch_running": torch.__version__,
        "compiler": built["compiler"],
        "cuda": built["cuda"],
        "cpu_capability": _C.cpu_capability(),
        "cpu_capabilities": _C.cpu_capabilities(),
        "cache_sizes": _C.cache_sizes(),
        "threads": torch.get_num_threads(),
    }
