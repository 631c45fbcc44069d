"""ax.merge_attention_states: the whole from parts over disjoint keys."""

import math

import pytest
import torch
from helpers import DTYPES, MASKS, SHAPES, Shape, assert_matches, make_qkv

import attention_ext as ax
from attention_ext import reference
from attention_ext.masks import Causal, Dense, KeyLengths

INF = math.inf


def parts_of(shape, mask, splits, qkv, **options):
    """attention over each range of keys, the mask sliced as Dense; sinks go to the first."""
    query, key, value = qkv
    sinks = options.pop("sinks", None)
    dense = None if mask is None else mask.dense(shape.Lq, shape.Lk)
    results = []
    for start, stop in zip([0, *splits], [*splits, shape.Lk], strict=True):
        keys = slice(start, stop)
        part = None if dense is None else Dense(dense[..., keys])
        results.append(
            ax.attention(
                query,
                key[:, :, keys],
                value[:, :, keys],
                mask=part,
                sinks=sinks if start == 0 else None,
                return_lse=True,
                **options,
            )
        )
    return zip(*results, strict=True)


@pytest.mark.parametrize("mask_name", ["none", "causal", "lengths", "everything"])
@pytest.mark.parametrize("shape_name", ["grouped", "odd"])
def test_parts_make_the_whole(shape_name, mask_name):
    shape = SHAPES[shape_name]
    mask = MASKS[mask_name](shape)
    qkv = make_qkv(shape, torch.float64, requires_grad=True)
    sinks = torch.randn(shape.Hq, dtype=torch.float64, requires_grad=True)
    for splits in ([shape.Lk // 3], [1, 1, shape.Lk - 2]):  # one part without a key
        for options in ({}, {"sinks": sinks}):
            whole = ax.attention(*qkv, mask=mask, return_lse=True, **options)
            merged = ax.merge_attention_states(*parts_of(shape, mask, splits, qkv, **options))
            torch.testing.assert_close(merged, whole)
            cotangents = [torch.randn_like(t).masked_fill(t == -INF, 0.0) for t in whole]
            leaves = (*qkv, *options.values())
            found = torch.autograd.grad(merged, leaves, cotangents)
            wanted = torch.autograd.grad(whole, leaves, cotangents)
            torch.testing.assert_close(found, wanted)


def states(parts=3, dtype=torch.float32, Lq=6):
    """Random states with an empty part in row 0, no part in row 1 and only one in row 2."""
    outs = torch.randn(parts, 2, 3, Lq, 4, dtype=torch.float64).to(dtype)
    lses = torch.randn(parts, 2, 3, Lq, dtype=torch.float64 if dtype == torch.float64 else torch.float32) * 3
    lses[0, :, :, 0] = lses[:, :, :, 1] = lses[1:, :, :, 2] = -INF
    return outs, lses


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_matches_the_formula(dtype):
    outs, lses = states(dtype=dtype)
    assert_matches(ax.merge_attention_states, outs, lses, against=reference.merge_attention_states)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sequences_and_stacked_are_the_same(dtype):
    outs, lses = states(dtype=dtype)
    stacked = ax.merge_attention_states(outs, lses)
    assert stacked[0].dtype == dtype
    assert stacked[1].dtype == lses.dtype
    for kind in (list, tuple):
        for found, expected in zip(ax.merge_attention_states(kind(outs), kind(lses)), stacked, strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("merge", [ax.merge_attention_states, reference.merge_attention_states])
def test_empty_parts(merge):
    outs, lses = states(dtype=torch.float64)
    outs[0, :, :, 0] = outs[:, :, :, 1] = math.nan  # what an empty part holds does not count
    outs.requires_grad_()
    lses.requires_grad_()
    out, lse = merge(outs, lses)
    rest_out, rest_lse = merge(outs[1:, :, :, :1], lses[1:, :, :, :1])
    torch.testing.assert_close(out[:, :, :1], rest_out)
    torch.testing.assert_close(lse[:, :, :1], rest_lse)
    assert (out[:, :, 1] == 0).all()
    assert (lse[:, :, 1] == -INF).all()
    torch.testing.assert_close(out[:, :, 2], outs[0, :, :, 2])
    torch.testing.assert_close(lse[:, :, 2], lses[0, :, :, 2])
    d_outs, d_lses = torch.autograd.grad(
        (out, lse), (outs, lses), (torch.randn_like(out), torch.randn_like(lse))
    )
    assert d_outs.isfinite().all()
    assert d_lses.isfinite().all()
    assert (d_outs[0, :, :, 0] == 0).all()
    assert (d_outs[:, :, :, 1] == 0).all()
    assert (d_lses[lses == -INF] == 0).all()


def test_large_and_far_apart_lses():
    outs, lses = torch.randn(3, 1, 5, 4), torch.tensor([1e4, -1e4, 1e4 - 1]).reshape(3, 1, 1).expand(3, 1, 5)
    out, lse = ax.merge_attention_states(outs, lses)
    share = 1 / (1 + math.exp(-1))
    torch.testing.assert_close(out, outs[0] * share + outs[2] * (1 - share))
    torch.testing.assert_close(lse, torch.full_like(lse, 1e4 - math.log(share)))


@pytest.mark.parametrize(
    "sizes", [(1, 2, 3, 0, 4), (2, 0, 3, 5, 4), (1, 2, 3, 5, 0), (1, 2, 3, 5, 4), (2, 5, 4)]
)
def test_sizes(sizes):
    outs, lses = torch.randn(sizes), torch.randn(sizes[:-1])
    out, lse = ax.merge_attention_states(outs, lses)
    assert out.shape == sizes[1:]
    assert lse.shape == sizes[1:-1]
    if sizes[0] == 1:
        torch.testing.assert_close(out, outs[0])
        torch.testing.assert_close(lse, lses[0])


def test_derivatives():
    outs, lses = states(parts=2, dtype=torch.float64, Lq=3)
    whole = ax.merge_attention_states(outs, lses)
    torch.testing.assert_close(torch.vmap(ax.merge_attention_states, (1, 1))(outs, lses), whole)
    empty = lses == -INF

    def function(outs, lses):
        # -inf may not be perturbed.
        out, lse = ax.merge_attention_states(outs, torch.where(empty, -INF, lses))
        return out, torch.where(lse > -INF, lse, 0.0)

    inputs = outs.requires_grad_(), lses.masked_fill(empty, 0.0).requires_grad_()
    options = {"fast_mode": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, **options)
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True, **options)


def test_compiled():
    torch._dynamo.reset()
    compiled = torch.compile(ax.merge_attention_states, fullgraph=True, backend="aot_eager")
    outs, lses = states()
    torch.testing.assert_close(compiled(list(outs), list(lses)), ax.merge_attention_states(outs, lses))


def test_a_ring_of_causal_blocks():
    """As ring attention does: each block of queries meets each block of keys, in any order."""
    shape = Shape(1, 2, 2, 96, 96, 16, 16)
    query, key, value = make_qkv(shape)
    whole = ax.attention(query, key, value, mask=Causal(), return_lse=True)
    step = 32
    for start in range(0, 96, step):
        queries = query[:, :, start : start + step]
        done = None
        for other in (64, 0, 32):
            mask = Causal() if other == start else KeyLengths([step if other < start else 0])
            keys = slice(other, other + step)
            part = ax.attention(queries, key[:, :, keys], value[:, :, keys], mask=mask, return_lse=True)
            done = part if done is None else ax.merge_attention_states((done[0], part[0]), (done[1], part[1]))
        torch.testing.assert_close(done, tuple(t[:, :, start : start + step] for t in whole))


OUT, LSE = torch.zeros(2, 5, 4), torch.zeros(2, 5)
NO_PARTS = "expected at least one part, got none"
LIKE_FIRST = "expected the dtype of {}[0], torch.float32, got {}"
ERRORS = [
    ([], [], ValueError, f"outs: {NO_PARTS}"),
    ([OUT], [], ValueError, f"lses: {NO_PARTS}"),
    ([OUT, OUT], [LSE], ValueError, "lses: expected 2 parts as in outs, got 1"),
    (
        OUT[0, 0, 0, ...].sum(),
        [LSE],
        ValueError,
        "outs: expected parts stacked in dimension 0, got a tensor of shape ()",
    ),
    (3, [LSE], TypeError, "outs: expected a sequence of tensors or one tensor, got int"),
    ([OUT, 3], [LSE, LSE], TypeError, "outs[1]: expected a torch.Tensor, got int"),
    ([OUT.long()], [LSE], TypeError, "outs[0]: expected a floating dtype, got torch.int64"),
    ([OUT, OUT.half()], [LSE] * 2, TypeError, f"outs[1]: {LIKE_FIRST.format('outs', 'torch.float16')}"),
    ([OUT], [LSE.half()], TypeError, "lses[0]: expected dtype torch.float32, got torch.float16"),
    ([OUT.double()], [LSE], TypeError, "lses[0]: expected dtype torch.float64, got torch.float32"),
    ([OUT] * 2, [LSE, LSE.double()], TypeError, f"lses[1]: {LIKE_FIRST.format('lses', 'torch.float64')}"),
    (
        [OUT, OUT[:1]],
        [LSE] * 2,
        ValueError,
        "outs[1]: expected the shape of outs[0], (2, 5, 4), got (1, 5, 4)",
    ),
    ([OUT], [LSE[:1]], ValueError, "lses[0]: expected shape (2, 5) as in outs, got (1, 5)"),
    ([OUT[0, 0]], [LSE[0]], ValueError, "outs[0]: expected shape (..., Lq, Dv), got (4,)"),
    ([OUT], [LSE.to("meta")], ValueError, f"lses[0]: expected the device of outs[0], {OUT.device}, got meta"),
]


@pytest.mark.parametrize(("outs", "lses", "error", "message"), ERRORS, ids=[e[3] for e in ERRORS])
def test_wrong_arguments(outs, lses, error, message):
    with pytest.raises(error) as raised:
        ax.merge_attention_states(outs, lses)
    assert str(raised.value) == message
