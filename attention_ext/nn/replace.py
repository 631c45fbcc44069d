"""Swapping the attention of an existing model."""

import copyreg
import functools
import types
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.utils import parametrize

from . import bigbird, longformer, moba_attention, sparse_attention
from .multihead_attention import MultiheadAttention

_KINDS: dict[str, type[MultiheadAttention]] = {
    "dense": MultiheadAttention,
    "sliding_window": sparse_attention.SlidingWindowAttention,
    "dilated": sparse_attention.DilatedAttention,
    "strided": sparse_attention.StridedAttention,
    "block_sparse": sparse_attention.BlockSparseAttention,
    "neighborhood": sparse_attention.NeighborhoodAttention,
    "longformer": longformer.LongformerAttention,
    "bigbird": bigbird.BigBirdAttention,
    "moba": moba_attention.MoBAAttention,
}


@dataclass(frozen=True)
class ReplacementReport:
    """What :func:`replace_attention` did, by the names of ``model.named_modules()`` ("" is the model itself).

    Attributes:
        model: the model, changed in place.
        replaced: names of the modules that compute with attention_ext now.
        skipped: name and reason of each ``nn.MultiheadAttention`` that was left as it was.
        fast_paths_disabled: names of the encoders and encoder layers whose fast path was switched off.
    """

    model: torch.nn.Module = field(repr=False)
    replaced: tuple[str, ...]
    skipped: dict[str, str]
    fast_paths_disabled: tuple[str, ...]

    def __str__(self) -> str:
        count = len(self.replaced)
        lines = [f"{type(self.model).__name__}: {count} attention module{'s' * (count != 1)} replaced"]
        lines += [f"  replaced {_display(name)}" for name in self.replaced]
        lines += [f"  skipped {_display(name)}: {reason}" for name, reason in self.skipped.items()]
        lines += [f"  fast path switched off: {_display(name)}" for name in self.fast_paths_disabled]
        return "\n".join(lines)


def replace_attention(model: torch.nn.Module, kind: str = "dense", **pattern: Any) -> ReplacementReport:
    """Make every ``nn.MultiheadAttention`` in a model an :class:`attention_ext.MultiheadAttention`, in place.

    Each module stays the same object and only changes its class, so parameters (and the optimizers that hold
    them), hooks, parametrizations, device, dtype and the training flag are untouched, and a module used in
    several places stays one. A subclass that doesn't override ``forward`` keeps its other methods and its
    ``isinstance`` relations; one with its own ``forward`` is skipped and reported.

    In eval ``nn.TransformerEncoderLayer`` and ``nn.TransformerEncoder`` have fast paths that read the weights
    of ``self_attn`` and never call it. Around swapped modules they are switched off, by the instances'
    attributes ``activation_relu_or_gelu`` and ``use_nested_tensor``, also where the module was an
    :class:`attention_ext.MultiheadAttention` already.

    Args:
        model: any module; may itself be an ``nn.MultiheadAttention``.
        kind: "dense", or a sparse pattern that every module gets, those that are
            :class:`attention_ext.MultiheadAttention` already included: "sliding_window", "dilated",
            "strided", "block_sparse", "neighborhood", "longformer" (whose global projections are new
            parameters), "bigbird" or "moba".
        pattern: the keywords of that pattern's layer in ``attention_ext.nn``, such as ``window=256``.

    Returns:
        A :class:`ReplacementReport`, whose ``model`` is the given one.

    Raises:
        TypeError: ``model`` is not a ``torch.nn.Module``, or ``pattern`` has a keyword the layer hasn't.
        ValueError: an unknown ``kind``, or a pattern that its layer refuses; nothing is changed then.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if kind not in _KINDS:
        raise ValueError(f"kind: expected one of {', '.join(_KINDS)}, got {kind!r}")
    target = _KINDS[kind]
    _check_pattern(target, pattern)
    replaced, skipped = [], {}
    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.MultiheadAttention):
            continue
        if isinstance(module, MultiheadAttention) and (kind == "dense" or type(module) is target):
            continue
        reason = _reason_to_skip(module, target)
        if reason is None:
            try:
                module.__class__ = _swapped_class(type(module), target)
            except TypeError as error:  # a metaclass or layout that allows no such class
                reason = str(error)
        if reason is None and kind != "dense":
            module._configure(**pattern)
        if reason is None:
            replaced.append(name)
        else:
            skipped[name] = reason
    disabled = [name for name, module in model.named_modules() if _disable_fast_path(module)]
    return ReplacementReport(model, tuple(replaced), skipped, tuple(disabled))


def _display(name: str) -> str:
    return name or "the model itself"


def _check_pattern(target: type[MultiheadAttention], pattern: dict[str, Any]) -> None:
    """Raises what the layer raises for this pattern."""
    if target is MultiheadAttention:
        if pattern:
            raise TypeError(f"{next(iter(pattern))}: expected no pattern with kind 'dense', got one")
        return
    target(1, 1, device="meta", **pattern)


def _reason_to_skip(module: torch.nn.MultiheadAttention, target: type[MultiheadAttention]) -> str | None:
    if isinstance(module, sparse_attention.SparseAttention):
        return f"{type(module).__name__} has a pattern of its own"
    forward = type(module).forward
    if forward is not torch.nn.MultiheadAttention.forward and forward is not MultiheadAttention.forward:
        return f"{type(module).__name__} overrides forward"
    if target is not MultiheadAttention and (module.bias_k is not None or module.add_zero_attn):
        return "add_bias_kv and add_zero_attn have no place in a pattern"
    if "forward" in vars(module):
        return "forward is overridden on the instance"
    return None


def _disable_fast_path(module: torch.nn.Module) -> bool:
    """Switch off the fast path of an encoder or its layer around a swapped module; whether there was one."""
    if isinstance(module, torch.nn.TransformerEncoderLayer):
        # Only the fast path reads this attribute (0: neither relu nor gelu); the layer calls `activation`.
        layers, attribute, off = [module], "activation_relu_or_gelu", 0
    elif isinstance(module, torch.nn.TransformerEncoder):
        layers, attribute, off = module.layers, "use_nested_tensor", False
    else:
        return False
    if not getattr(module, attribute, off) or not any(map(_holds_swapped, layers)):
        return False
    setattr(module, attribute, off)
    return True


def _holds_swapped(layer: torch.nn.Module) -> bool:
    return isinstance(getattr(layer, "self_attn", None), MultiheadAttention)


def _swapped_class(cls: type, target: type) -> type:
    if cls in (torch.nn.MultiheadAttention, MultiheadAttention):
        return target
    base = cls.__bases__[0]
    if cls.__name__ == f"Parametrized{base.__name__}" and parametrize.__name__ in _origins(cls):
        # The class that parametrize makes for each instance: removal expects the original as its only base,
        # and its properties in the class itself.
        members = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
        return type(cls)(cls.__name__, (_swapped_class(base, target),), members)
    return _swapped_subclass(cls, target)


def _origins(cls: type) -> set[str]:
    """The modules that the functions in the class's own namespace come from."""
    return {getattr(member, "__module__", "") or "" for member in vars(cls).values()}


@functools.cache
def _swapped_subclass(cls: type, target: type) -> type:
    """A user's subclass without a forward of its own, its forward now ours."""

    def reduce_ex(self, protocol):
        # No module holds this class by its name: pickle the user's class, and make this one again from it.
        function, args, *rest = super(swapped, self).__reduce_ex__(max(protocol, 2))
        if function is copyreg.__newobj__ and args[0] is swapped:
            function, args = _new_swapped, (cls, target, *args[1:])
        return (function, args, *rest)

    members = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": reduce_ex,
    }
    swapped = types.new_class(cls.__name__, (cls, target), exec_body=lambda ns: ns.update(members))
    return swapped


def _new_swapped(cls: type, target: type, *args):
    swapped = _swapped_subclass(cls, target)
    return swapped.__new__(swapped, *args)
