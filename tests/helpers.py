"""What the tests share: tables of shapes and masks, the tolerance, poisoned memory."""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import attention_ext as ax
from attention_ext import masks, reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# shapes


class Shape(NamedTuple):
    B: int
    Hq: int
    Hkv: int
    Lq: int
    Lk: int
    D: int
    Dv: int


# Tiles are at most a few hundred rows wide; sizes stand around multiples of 16 and 64, and none is round.
SHAPES = {
    "tiny": Shape(1, 1, 1, 1, 1, 1, 1),
    "square": Shape(2, 2, 2, 37, 37, 16, 16),
    "grouped": Shape(2, 6, 2, 19, 70, 24, 24),
    "one_kv_head": Shape(1, 4, 1, 65, 33, 8, 40),
    "odd": Shape(1, 3, 3, 70, 131, 7, 5),
    "decode": Shape(3, 4, 2, 1, 129, 32, 32),
    "more_queries": Shape(1, 2, 1, 130, 20, 17, 9),
    "wide": Shape(1, 1, 1, 18, 67, 129, 200),
    "long": Shape(1, 1, 1, 300, 300, 16, 16),
}
EMPTY_SHAPES = {
    "no_batch": Shape(0, 2, 1, 5, 7, 8, 4),
    "no_queries": Shape(2, 2, 1, 0, 7, 8, 4),
    "no_keys": Shape(2, 2, 1, 5, 0, 8, 4),
}


def make_qkv(
    shape: Shape, dtype: torch.dtype = torch.float32, *, requires_grad: bool = False, heads_last: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Random query, key, value; heads_last: in memory (B, L, H, D), as a projection leaves them."""
    sizes = [(shape.Hq, shape.Lq, shape.D), (shape.Hkv, shape.Lk, shape.D), (shape.Hkv, shape.Lk, shape.Dv)]
    made = []
    for H, L, D in sizes:
        if heads_last:
            t = torch.randn(shape.B, L, H, D, dtype=torch.float64).to(dtype).transpose(1, 2)
        else:
            t = torch.randn(shape.B, H, L, D, dtype=torch.float64).to(dtype)
        made.append(t.requires_grad_(requires_grad))
    return tuple(made)


# masks


def random_keep(*sizes: int) -> Tensor:
    return torch.rand(*sizes) > 0.4


def random_lengths(s: Shape) -> masks.KeyLengths:
    # The first row is empty, the second full and beyond.
    lengths = torch.randint(0, s.Lk + 1, (s.B,))
    lengths[:2] = torch.tensor([0, s.Lk + 3])[: s.B] if s.B > 1 else s.Lk // 2
    return masks.KeyLengths(lengths)


def random_padding(s: Shape) -> masks.KeyPadding:
    return masks.KeyPadding(random_keep(s.B, s.Lk))


def random_blocks(s: Shape) -> masks.Blocks:
    return masks.Blocks(random_keep(s.B, s.Hq, -(-s.Lq // 40), -(-s.Lk // 24)), (40, 24))


def random_choice(s: Shape, block: int, group: int = 1) -> masks.Selected:
    """One block for most queries, none for some."""
    sizes = (s.B, s.Hq // group if s.Hq % group == 0 else s.Hq, s.Lq, 1)
    indices = torch.randint(-1, -(-s.Lk // block), sizes, dtype=torch.int32)
    return masks.Selected(indices, block, 1, s.Hq // sizes[1])


# A mask, or None, for a shape. Some leave rows without a key, or keys that nobody sees.
MASKS: dict[str, Callable[[Shape], masks.Mask | None]] = {
    "none": lambda s: None,
    "causal": lambda s: masks.Causal(),
    "causal_top_left": lambda s: masks.Causal(alignment="top_left"),
    "window": lambda s: masks.SlidingWindow(9, 4),
    "window_past": lambda s: masks.SlidingWindow(15, 0),
    "window_right": lambda s: masks.SlidingWindow(None, 2, alignment="top_left"),
    "lengths": random_lengths,
    "padding": random_padding,
    "dense": lambda s: masks.Dense(random_keep(s.B, s.Hq, s.Lq, s.Lk)),
    "dense_shared": lambda s: masks.Dense(random_keep(s.Lq, s.Lk)),
    "dense_heads": lambda s: masks.Dense(random_keep(s.Hq, 1, s.Lk)),
    "dense_queries": lambda s: masks.Dense(random_keep(s.B, 1, s.Lq, 1)),
    "causal_lengths": lambda s: masks.Causal() & random_lengths(s),
    "window_padding": lambda s: masks.SlidingWindow(12, 3) & random_padding(s),
    "dilated": lambda s: masks.Dilated(None, 3, 3),
    "table": lambda s: (masks.SlidingWindow(9, 4) | random_blocks(s)) & masks.Causal(),
    "table_lengths": lambda s: (masks.Strided(2) | masks.Global(1)) & random_lengths(s),
    "chosen": lambda s: random_choice(s, 64),
    "chosen_causal": lambda s: random_choice(s, 24, 2) & masks.Causal(),
    "everything": lambda s: (
        masks.Causal()
        & masks.SlidingWindow(20, None)
        & random_lengths(s)
        & random_padding(s)
        & masks.Dense(random_keep(s.Hq, s.Lq, s.Lk))
    ),
}

# tolerance

# Of every tolerance: more than 1 where a compiler fuses products and sums as the CPU's does not.
LEEWAY = 1.0
# Of the largest value of the oracle, for an error that plain PyTorch happens not to make.
FLOOR = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}


def assert_close_to(
    actual: Tensor, exact: Tensor, plain: Tensor, name: str = "result", floor: float | None = None
) -> None:
    """The error of actual is at most twice that of plain, plus a floor; both against exact, in float64.

    Where exact is NaN or infinite, actual has to be the same.
    """
    assert actual.shape == exact.shape == plain.shape, (
        f"{name}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    )
    assert exact.dtype == torch.float64
    actual64, plain64 = actual.detach().double(), plain.detach().double()
    exact = exact.detach()
    finite = exact.isfinite()
    torch.testing.assert_close(
        actual64[~finite],
        exact[~finite],
        rtol=0,
        atol=0,
        equal_nan=True,
        msg=f"{name}: NaN or infinity differs",
    )
    if not finite.any():
        return
    error = (actual64 - exact)[finite].abs()
    plain_error = (plain64 - exact)[finite].abs()
    assert bool(plain_error.isfinite().all()), f"{name}: plain PyTorch overflows here, so it measures nothing"
    size = max(float(exact[finite].abs().max()), 0.01)  # of a gradient that cancels to 0, too
    allowed = 2 * float(plain_error.max()) + (FLOOR[actual.dtype] if floor is None else floor) * size
    allowed *= LEEWAY
    assert bool(error.isfinite().all()), (
        f"{name}: NaN or infinity where {exact[finite][~error.isfinite()][0]} is due"
    )
    assert float(error.max()) <= allowed, f"{name}: error {float(error.max()):.3g}, allowed {allowed:.3g}"


def assert_matches(
    op: Callable[..., Any],
    *tensors: Tensor,
    against: Callable[..., Any],
    grads: bool = True,
    floor: float | None = None,
    cotangents: Sequence[Tensor | None] | None = None,
    **options: Any,
) -> None:
    """op(*tensors, **options) is as good as the formula `against`: outputs, and the gradient of every tensor.

    The oracle is the formula on float64 copies of all floating tensors, in options too; the yardstick is the
    formula in the tensors' own dtypes. Floating tensors in options (bias, sinks) are inputs with a gradient.
    floor: None = FLOOR. cotangents: of the outputs, None = random (0 where an output is infinite).
    """
    names = [*(f"argument {n}" for n in range(len(tensors)))]
    if isinstance(op, type(lambda: 0)):
        names = [*inspect.signature(op).parameters][: len(tensors)]
    named = {name: t for name, t in options.items() if isinstance(t, Tensor) and t.is_floating_point()}
    fixed = {name: value for name, value in options.items() if name not in named}
    inputs = [*tensors, *named.values()]
    names += named

    def run(function: Callable[..., Any], values: list[Tensor]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        positional = values[: len(tensors)]
        keyword = dict(zip(named, values[len(tensors) :], strict=True))
        outputs = function(*positional, **keyword, **fixed)
        return (outputs if isinstance(outputs, tuple) else (outputs,)), values

    def leaves(dtype: torch.dtype | None) -> list[Tensor]:
        return [_leaf(t, dtype, grads) for t in inputs]

    actual, actual_in = run(op, leaves(None))
    exact, exact_in = run(against, leaves(torch.float64))
    plain, plain_in = run(against, leaves(None))
    for n, (a, e, p) in enumerate(zip(actual, exact, plain, strict=True)):
        assert a.dtype == p.dtype, f"output {n}: {a.dtype}, expected {p.dtype}"
        assert_close_to(a, e, p, f"output {n}", floor)
    if not grads:
        return
    if cotangents is None:
        cotangents = [
            torch.randn_like(a).masked_fill(~e.isfinite(), 0.0) for a, e in zip(actual, exact, strict=True)
        ]

    def gradients(outputs: tuple[Tensor, ...], leaves: list[Tensor]) -> tuple[Tensor, ...]:
        wanted = [t for t in leaves if t.requires_grad]
        given = [None if c is None else c.to(o.dtype) for c, o in zip(cotangents, outputs, strict=True)]
        return torch.autograd.grad(outputs, wanted, given, allow_unused=True, materialize_grads=True)

    found = [gradients(*pair) for pair in ((actual, actual_in), (exact, exact_in), (plain, plain_in))]
    for name, t, a, e, p in zip(names, inputs, *found, strict=True):
        assert a.dtype == t.dtype, f"gradient of {name}: {a.dtype}, expected {t.dtype}"
        assert_close_to(a, e, p, f"gradient of {name}", floor)


def _leaf(t: Tensor, dtype: torch.dtype | None, requires_grad: bool) -> Tensor:
    """A leaf with the values of t, and its strides unless it changes dtype."""
    copy = t.detach() if dtype is None or t.dtype == dtype else t.detach().to(dtype)
    return copy.requires_grad_(requires_grad and t.is_floating_point())


def assert_attention_matches(*qkv: Tensor, grads: bool = True, **options: Any) -> None:
    """ax.attention against reference.attention, lse included; options as theirs."""
    options = {"return_lse": True, **options}
    assert_matches(ax.attention, *qkv, against=reference.attention, grads=grads, **options)


# memory


def poison_uninitialized_memory() -> None:
    """From now on malloc hands out memory full of NaN in each of our dtypes, but for some pieces below 1 KB.

    glibc's M_PERTURB fills with the complement of the number's low byte, and is off for the number 0. torch's
    own fill_uninitialized_memory does not reach what an operator in C++ allocates.
    """
    M_PERTURB = -6
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or mallopt(M_PERTURB, 0x100) != 1:
        raise RuntimeError("poisoning uninitialised memory needs glibc")
