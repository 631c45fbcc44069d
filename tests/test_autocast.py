"""Autocast: query, key and value are cast, a bias with them, the rest is not."""

import pytest
import torch

import attention_ext as ax

DEVICE = torch.get_default_device().type

DTYPES = [torch.bfloat16, torch.float16]


def make(*sizes, dtype=torch.float32):
    return torch.randn(*sizes, dtype=dtype, requires_grad=True)


def compiled(f):
    torch._dynamo.reset()
    return torch.compile(f, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrap", [lambda f: f, compiled], ids=["eager", "compiled"])
def test_casts_like_doing_it_by_hand(wrap, dtype):
    inputs = [make(2, 4, 5, 8), make(2, 2, 6, 8), make(2, 2, 6, 8), make(4, 1, 6), make(4), make(4)]

    def f(q, k, v, bias, sinks, slopes):
        return ax.attention(
            q, k, v, mask=ax.masks.Causal(), bias=bias, sinks=sinks, alibi_slopes=slopes, return_lse=True
        )

    with torch.autocast(DEVICE, dtype):
        out, lse = wrap(f)(*inputs)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    by_hand = f(*(t.to(dtype) for t in inputs[:4]), *inputs[4:])
    torch.testing.assert_close((out, lse), by_hand, rtol=0, atol=0)
    cotangents = torch.randn_like(out), torch.randn_like(lse)
    grads = torch.autograd.grad((out, lse), inputs, cotangents)
    torch.testing.assert_close(grads, torch.autograd.grad(by_hand, inputs, cotangents), rtol=0, atol=0)
    assert all(g.dtype == torch.float32 for g in grads)


def test_float64_is_left():
    q, k, v = (make(1, 2, 3, 4, dtype=torch.float64) for _ in range(3))
    with torch.autocast(DEVICE, torch.bfloat16):
        out = ax.attention(q, k, v)
    torch.testing.assert_close(out, ax.attention(q, k, v), rtol=0, atol=0)


def test_mixed_dtypes_meet():
    q, k, v = make(1, 2, 3, 4), make(1, 2, 3, 4, dtype=torch.bfloat16), make(1, 2, 3, 4, dtype=torch.float16)
    with torch.autocast(DEVICE, torch.bfloat16):
        out = ax.attention(q, k, v)
    expected = ax.attention(*(t.to(torch.bfloat16) for t in (q, k, v)))
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_a_float32_bias_of_a_half_query_keeps_its_precision():
    q, k, v = (make(1, 2, 3, 4, dtype=torch.bfloat16) for _ in range(3))
    bias = torch.full((3, 3), 1.0 + 2**-12)
    bias[:, 0] = 1.0
    with torch.autocast(DEVICE, torch.bfloat16):
        _, lse = ax.attention(q, k, v, bias=bias, return_lse=True)
    _, exact = ax.attention(q, k, v, bias=bias, return_lse=True)
    _, rounded = ax.attention(q, k, v, bias=bias.to(torch.bfloat16), return_lse=True)
    torch.testing.assert_close(lse, exact, rtol=0, atol=0)
    assert not torch.equal(lse, rounded)


def test_integers_are_still_an_error():
    q = torch.ones(1, 1, 2, 2, dtype=torch.int64)
    with torch.autocast(DEVICE, torch.bfloat16), pytest.raises(TypeError, match=r"^query: expected dtype"):
        ax.attention(q, q, q)


def test_off_inside_on():
    q, k, v = (make(1, 2, 3, 4) for _ in range(3))
    with torch.autocast(DEVICE, torch.bfloat16), torch.autocast(DEVICE, enabled=False):
        assert ax.attention(q, k, v).dtype == torch.float32
