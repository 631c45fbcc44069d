"""What ax.MultiheadAttention allocates and copies."""

import pytest
import torch
from multihead_attention_cases import (
    INF,
    E,
    H,
    Watch,
    both,
    one_thread,  # noqa: F401  a fixture
    sample_inputs,
)

import attention_ext as ax

pytestmark = pytest.mark.cpu_only("counts the memory of the process")


@pytest.mark.parametrize("masks", ["none", "padding", "window", "head row"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_without_weights_nothing_quadratic_is_made(masks, batch_first):
    length, e = 1024, 16
    module = ax.MultiheadAttention(e, 2, batch_first=batch_first, dropout=0.1)
    x = torch.randn(*((1, length) if batch_first else (length, 1)), e)
    padding = torch.arange(length)[None] > 1000
    arguments = {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "window": {"attn_mask": ax.masks.SlidingWindow(20, 0), "key_padding_mask": padding},
        "head row": {"key_padding_mask": torch.zeros(1, length).masked_fill(padding, -INF)},
    }[masks]
    with Watch() as watch:
        module(x, x, x, need_weights=False, **arguments)[0].sum().backward()
    assert watch.attention_calls == 1
    assert "attention_ext::_attention_backward" in watch.ops
    assert watch.largest <= 3 * e * length  # the packed projection


@pytest.mark.parametrize("attn", ["bool", "hard"])
@pytest.mark.parametrize("padding", ["bool", "hard"])
def test_two_masks_make_nothing_larger_than_they_are(attn, padding):
    """Neither (N, L, S) nor (N·H, L, S) comes out of an (L, S) and an (N, S) mask."""
    n, length = 8, 256
    module = ax.MultiheadAttention(E, H, batch_first=True)
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    pad = torch.arange(length) >= torch.arange(length - n, length)[:, None]
    if attn == "hard":
        hidden = torch.zeros(length, length).masked_fill(hidden, -INF)
    if padding == "hard":
        pad = torch.zeros(n, length).masked_fill(pad, -INF)
    x = torch.randn(n, length, E)
    with Watch() as watch:
        module(x, x, x, attn_mask=hidden, key_padding_mask=pad, need_weights=False)
    assert watch.attention_calls == 1
    assert watch.largest <= length * length


def test_peak_memory_without_weights():
    """The whole process, kernels included: the weights of one head alone would be 256 MiB."""
    length = 8192
    module = ax.MultiheadAttention(16, 2, batch_first=True)
    x = torch.randn(1, length, 16)
    mask = ax.masks.SlidingWindow(63, 0)
    module(x, x, x, attn_mask=mask, need_weights=False)[0].sum().backward()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts at what is resident now
    before = peak_kib()
    module(x, x, x, attn_mask=mask, need_weights=False)[0].sum().backward()
    assert peak_kib() - before < 64 * 1024


def peak_kib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


@pytest.mark.parametrize(("kind", "products"), [("self", 2), ("cross", 3), ("three", 4)])
@pytest.mark.parametrize(("batch_first", "copies"), [(True, 0), (False, 1)])
def test_views_only(batch_first, copies, kind, products):
    """Packed projections and no copy of a tensor, but for (L, N, E) the one that torch makes too."""
    module = both(E, H, batch_first=batch_first)[1]
    inputs = sample_inputs(kind, batch_first)
    with torch.no_grad(), Watch() as watch:
        module(*inputs, need_weights=False)
    assert (
        sum(op in ("aten::clone", "aten::copy_", "aten::_to_copy", "aten::cat") for op in watch.ops) == copies
    )
    assert sum(op in ("aten::addmm", "aten::mm", "aten::bmm", "aten::linear") for op in watch.ops) == products
