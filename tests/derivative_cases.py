"""Attention with every option, small, as a function of its six tensors; a watch on the fused kernels."""

import contextlib
import functools
import warnings

import pytest
import torch

import attention_ext as ax
from attention_ext import _warnings
from attention_ext._ops import library

M = ax.masks
F64 = torch.float64
ALL = tuple(range(6))  # query, key, value, bias, sinks, slopes
LENGTHS = torch.tensor([0, 3])


def everything(attention, *, mask=True, sinks=True):
    """Attention with every option, as a function of its six tensors, returning (out, lse)."""

    def f(query, key, value, bias, sink, slopes):
        return attention(
            query,
            key,
            value,
            mask=M.Causal() & M.KeyLengths(LENGTHS) if mask else None,
            bias=bias,
            sinks=sink if sinks else None,
            alibi_slopes=slopes,
            softcap=3.0,
            dropout_p=0.0,
            return_lse=True,
        )

    return f


def scalar(f):
    """A scalar of (out, lse), curved in both; infinite lse left out."""

    @functools.wraps(f)
    def g(*args):
        out, lse = f(*args)
        return (out * out).sum() + lse.nan_to_num(neginf=0.0).sin().sum()

    return g


def inputs(requires_grad=False):
    """query, key, value, bias, sinks, slopes, small: B, Hq, Hkv, Lq, Lk, D, Dv = 2, 2, 1, 3, 4, 2, 1."""
    sizes = [(2, 2, 3, 2), (2, 1, 4, 2), (2, 1, 4, 1), (1, 2, 1, 4), (2,), (2, 2)]
    return tuple(torch.randn(s, dtype=F64, requires_grad=requires_grad) for s in sizes)


ours, formula = everything(ax.attention), everything(ax.reference.attention)


def count_calls(monkeypatch):
    """From now on counts how often the fused kernels are called."""
    calls = {"forward": 0, "backward": 0}

    def counted(name, op):
        @functools.wraps(op)
        def call(*args):
            calls[name] += 1
            return op(*args)

        return call

    for name in calls:
        monkeypatch.setattr(library, name, counted(name, getattr(library, name)))
    return calls


@contextlib.contextmanager
def unfused_is_an_error():
    """Also as a decorator: every derivative inside has to be fused."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_warnings, "_warned", set())
        warnings.simplefilter("error", ax.UnfusedWarning)
        yield
