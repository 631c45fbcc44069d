"""Packed and jagged sequences against one run per sequence."""

import pytest
import torch
from helpers import assert_matches

import attention_ext as ax
from attention_ext import reference
from attention_ext.masks import Causal, Global, KeyLengths, Packed, SlidingWindow

Q = [0, 3, 3, 100, 130]
K = [0, 10, 40, 120, 190]


def packed_qkv(dtype=torch.float32, q=Q, k=K):
    sizes = (q[-1], 4, 16), (k[-1], 2, 16), (k[-1], 2, 8)
    return [torch.randn(size, dtype=torch.float64).to(dtype) for size in sizes]


def one_by_one(query, key, value, cu_seqlens_q, cu_seqlens_k=None, *, mask=None, return_lse=False, **options):
    """The reference formula of each sequence alone; mask: one for each, or one for all."""
    cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    results = []
    for s in range(len(cu_seqlens_q) - 1):
        rows, keys = (slice(c[s], c[s + 1]) for c in (cu_seqlens_q, cu_seqlens_k))
        parts = (t.transpose(0, 1)[None] for t in (query[rows], key[keys], value[keys]))
        own = mask[s] if isinstance(mask, list) else mask
        results.append(reference.attention(*parts, mask=own, return_lse=True, **options))
    out, lse = (torch.cat([r[n][0].transpose(0, 1) for r in results]) for n in (0, 1))
    return (out, lse) if return_lse else out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "mask",
    [None, Causal(), SlidingWindow(9, 2), Causal() | Global(2), SlidingWindow(4, 4, "top_left")],
    ids=repr,
)
def test_varlen_is_each_sequence_alone(mask, dtype):
    qkv = packed_qkv(dtype)

    def varlen(query, key, value, **options):
        return ax.attention_varlen(query, key, value, Q, K, mask=mask, **options)

    def alone(query, key, value, **options):
        return one_by_one(query, key, value, Q, K, mask=mask, **options)

    assert_matches(varlen, *qkv, against=alone, return_lse=True)
    assert_matches(varlen, *qkv, against=alone, sinks=torch.randn(4, dtype=dtype), softcap=3.0, scale=0.3)


def test_varlen_with_slopes_and_one_mask_per_sequence():
    lengths = [2, 0, 50, 7]
    each = [Causal() & KeyLengths([n]) for n in lengths]
    qkv = packed_qkv(k=Q)
    slopes = torch.rand(4)
    together = ax.attention_varlen(*qkv, Q, mask=Causal() & KeyLengths(lengths), alibi_slopes=slopes)
    torch.testing.assert_close(together, one_by_one(*qkv, Q, mask=each, alibi_slopes=slopes))
    with pytest.raises(ValueError, match=r"alibi_slopes: expected cu_seqlens_k to be cu_seqlens_q"):
        ax.attention_varlen(*packed_qkv(), Q, K, alibi_slopes=slopes)


def test_varlen_with_no_sequences_and_no_tokens():
    empty = [torch.randn(0, 2, 4) for _ in range(3)]
    for starts in ([0], [0, 0, 0]):
        out, lse = ax.attention_varlen(*empty, starts, mask=Causal(), return_lse=True)
        assert out.shape == (0, 2, 4)
        assert lse.shape == (0, 2)


def test_varlen_compiles():
    qkv = packed_qkv()
    starts = torch.tensor(Q, dtype=torch.int32), torch.tensor(K, dtype=torch.int32)

    def function(query, key, value, q, k):
        return ax.attention_varlen(query, key, value, q, k, mask=Causal() | Global(2))

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*qkv, *starts), function(*qkv, *starts))
    with pytest.raises(RuntimeError, match="expected a last number of 130, the length, got 131"):
        compiled(*qkv, starts[0] + torch.tensor([0, 0, 0, 0, 1]), starts[1])


@pytest.mark.parametrize(
    ("q", "k", "message"),
    [
        ([0, 5, 4, 130], K, "cu_seqlens_q: expected integers .* that don't decrease, got 5, 4"),
        ([1, 130], [0, 190], "cu_seqlens_q: expected integers .* that start at 0, got 1"),
        ([0, 131], [0, 190], "cu_seqlens_q: expected a last number of 130, the length, got 131"),
        ([0, 130], [0, 189], "cu_seqlens_k: expected a last number of 190, the length, got 189"),
        (Q, [0, 190], "cu_seqlens_k: expected the size of cu_seqlens_q, 5, got 2"),
        ([], [], r"cu_seqlens_q: expected integers of shape \(sequences \+ 1,\), got shape \(0,\)"),
    ],
)
def test_bad_cu_seqlens(q, k, message):
    with pytest.raises(ValueError, match=message):
        ax.attention_varlen(*packed_qkv(), q, k)


def test_bad_varlen_arguments():
    q, k, v = packed_qkv()
    with pytest.raises(TypeError, match=r"cu_seqlens_q: expected an integer tensor, got torch\.float32"):
        ax.attention_varlen(q, k, v, torch.tensor([0.0, 130.0]), K)
    with pytest.raises(ValueError, match=r"query: expected shape \(total, H, D\), got \(1, 130, 4, 16\)"):
        ax.attention_varlen(q[None], k, v, Q, K)
    with pytest.raises(TypeError, match=r"mask: expected one of attention_ext\.masks or None, got Tensor"):
        ax.attention_varlen(q, k, v, Q, K, mask=torch.ones(3))
    with pytest.raises(
        ValueError, match="mask: expected a batch size of 1 or 4, the number of sequences, got 2"
    ):
        ax.attention_varlen(q, k, v, Q, K, mask=KeyLengths([1, 2]))


# jagged


def jagged(lengths, H=4, D=16, **options):
    rows = [torch.randn(n, H * D, **options) for n in lengths]
    return torch.nested.nested_tensor(rows, layout=torch.jagged, requires_grad=True)


def heads(x, H):
    return x.unflatten(-1, (H, -1)).transpose(1, 2)


@pytest.mark.parametrize("mask", [None, Causal(), SlidingWindow(5, 1)], ids=repr)
def test_jagged_attention_is_each_row_alone(mask):
    x = jagged([3, 50, 1, 70])
    y, lse = ax.attention(heads(x, 4), heads(x, 4), heads(x, 4), mask=mask, return_lse=True)
    assert y.shape[2] == lse.shape[2] == x.shape[1]
    (y.transpose(1, 2).flatten(2) * 2).values().sum().backward()
    for row, out, row_lse, grad in zip(x.unbind(), y.unbind(), lse.unbind(), x.grad.unbind(), strict=True):
        row = row.detach().requires_grad_()
        qkv = row.unflatten(-1, (4, -1)).transpose(0, 1)
        expected, expected_lse = reference.attention(qkv, qkv, qkv, mask=mask, return_lse=True)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(row_lse, expected_lse)
        torch.testing.assert_close(
            grad, torch.autograd.grad(expected.sum() * 2, row)[0], rtol=1e-4, atol=1e-5
        )


def test_jagged_queries_and_keys_of_other_lengths():
    q, kv = jagged([3, 50, 7]), jagged([10, 4, 80], H=2)
    out = ax.attention(heads(q, 4), heads(kv, 2), heads(kv, 2), mask=Causal())
    for a, b, y in zip(q.unbind(), kv.unbind(), out.unbind(), strict=True):
        k = b.unflatten(-1, (2, -1)).transpose(0, 1)
        expected = reference.attention(a.unflatten(-1, (4, -1)).transpose(0, 1), k, k, mask=Causal())
        torch.testing.assert_close(y, expected)


def test_jagged_tensors_made_one_by_one():
    q, k, v = (
        torch.nested.nested_tensor([torch.randn(n, 2, 4) for n in (3, 5)], layout=torch.jagged)
        for _ in range(3)
    )
    out = ax.attention(*(t.transpose(1, 2) for t in (q, k, v)))
    expected = ax.attention_varlen(q.values(), k.values(), v.values(), q.offsets())
    torch.testing.assert_close(out.transpose(1, 2).values(), expected)


def test_bad_jagged_arguments():
    x = heads(jagged([3, 5]), 4)
    with pytest.raises(ValueError, match="bias: expected None with nested tensors"):
        ax.attention(x, x, x, bias=torch.zeros(1))
    with pytest.raises(TypeError, match=r"key: expected a nested tensor of layout torch\.jagged"):
        ax.attention(x, torch.randn(2, 4, 5, 16), x)
    with pytest.raises(
        ValueError, match=r"query: expected shape \(B, H, L, D\) with L different in each row"
    ):
        ax.attention(x.transpose(1, 2), x.transpose(1, 2), x.transpose(1, 2))
    with pytest.raises(ValueError, match="value: expected the lengths of key"):
        ax.attention(x, x, heads(jagged([4, 4]), 4))


def test_packed_masks_are_values():
    starts = torch.tensor(Q)
    assert Packed(Causal(), starts) == Packed(Causal(), starts)
    assert Packed(Causal(), starts) != Packed(None, starts)
    assert repr(Packed(Causal(), starts)) == "Packed(Causal(), 4 sequences)"
