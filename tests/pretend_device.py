"""A device that is the CPU under another name, for what can be checked of a GPU without one.

Its tensors wrap tensors on the CPU; a mode runs every operator on those, and refuses what CUDA would refuse:
tensors of two devices, a generator of another one, kernels that only the CPU has.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
CPU = torch.device("cpu")
aten = torch.ops.aten
# They move data, or take an index from anywhere.
ACROSS = {aten.copy_, aten._to_copy, aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_}
ON_CPU_ONLY = {"attention_ext::_build_block_table", "attention_ext::_dense_block_table"}


class Wrapped(Tensor):
    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        options = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=f"{NAME}:0", **options)
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Wrapped({self.inner!r})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Pretend(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    wanted = kwargs.get("device")
    there = any(isinstance(x, Wrapped) for x in given) if wanted is None else is_pretend(wanted)
    if there and wanted is None:
        refuse_two_devices(func, given)
    generator = kwargs.get("generator")
    if there and generator is not None:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{generator.device}'")
    if there and wanted is not None:
        kwargs = kwargs | {"device": CPU}
    inner_args, inner_kwargs = pytree.tree_map_only(Wrapped, lambda x: x.inner, (args, kwargs))
    out = func(*inner_args, **inner_kwargs)
    if not there:
        return out
    out = pytree.tree_map_only(Tensor, lambda x: x if isinstance(x, Wrapped) else Wrapped(x), out)
    return return_and_correct_aliasing(func, args, kwargs, out)


def is_pretend(device: Any) -> bool:
    return torch.device(device).type == NAME


def refuse_two_devices(func: Any, given: list[Tensor]) -> None:
    if func._schema.name in ON_CPU_ONLY:
        raise NotImplementedError(f"{func} has no kernel for {NAME}")
    if func.overloadpacket in ACROSS:
        return
    ours = func.namespace == "attention_ext"  # whose mask programs lie on the CPU
    for x in given:
        if not isinstance(x, Wrapped) and x.dim() > 0 and not (ours and x.dim() == 1):
            raise RuntimeError(f"{func}: expected all tensors on {NAME}, got {tuple(x.shape)} on {x.device}")


class Backend:
    """What torch asks the module of a device for."""

    is_initialized = is_available = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    manual_seed_all = staticmethod(lambda seed: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])


def install() -> None:
    """From now on new tensors lie on the pretended device, unless they say otherwise."""
    _setup_privateuseone_for_python_backend(NAME, Backend)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor moves what it read by an operator that modes see
    Pretend().__enter__()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # `.data =` would not reach inside
    torch.set_default_device(NAME)
