"""torch.func.vmap over attention and over its gradients: fused, and what a loop gives."""

import pytest
import torch
from derivative_cases import ALL, F64, M, count_calls, inputs, ours, scalar, unfused_is_an_error
from torch.func import grad, vmap

import attention_ext as ax
from attention_ext._ops import library
from attention_ext._ops.attention_schema import BackwardCall, Call

# The routes do not depend on the instruction set, and values and gradients have their own tests.
pytestmark = pytest.mark.once


def loop(f, arguments, batched, size):
    samples = [[t[n] if i in batched else t for i, t in enumerate(arguments)] for n in range(size)]
    results = [f(*sample) for sample in samples]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


BATCHED = [(0,), (1, 2), (3,), (4,), (5,), (0, 3), ALL]


@pytest.mark.parametrize("batched", BATCHED, ids=str)
@pytest.mark.parametrize("differentiate", [False, True], ids=["values", "gradients"])
@unfused_is_an_error()
def test_vmap_over_any_arguments(batched, differentiate):
    arguments = [torch.randn(3, *t.shape, dtype=F64) if i in batched else t for i, t in enumerate(inputs())]
    f = grad(scalar(ours), ALL) if differentiate else ours
    found = vmap(f, tuple(0 if i in batched else None for i in ALL))(*arguments)
    torch.testing.assert_close(found, loop(f, arguments, batched, 3))


@pytest.mark.parametrize("slopes", [(2,), (2, 2)], ids=["per_head", "per_row"])
@pytest.mark.parametrize("bias", [(1, 2, 3, 4), (2, 1, 1, 4), (3, 1)], ids=str)
def test_per_sample_gradients_of_what_the_samples_share(bias, slopes):
    q, k, v, *_ = inputs()
    bias, slopes = torch.randn(bias, dtype=F64), torch.randn(slopes, dtype=F64)
    batch = torch.randn(3, *q.shape, dtype=F64)

    def f(bias, slopes, q):
        return ax.attention(q, k, v, bias=bias, alibi_slopes=slopes).square().sum()

    g = grad(f, (0, 1))
    found = vmap(g, (None, None, 0))(bias, slopes, batch)
    torch.testing.assert_close(found, loop(g, [bias, slopes, batch], (2,), 3))


@unfused_is_an_error()
def test_vmap_is_one_fused_call(monkeypatch):
    calls = count_calls(monkeypatch)
    q, k, v = (torch.randn(5, 2, 2, 3, 4) for _ in range(3))
    vmap(ax.attention)(q, k, v)
    assert calls == {"forward": 1, "backward": 0}
    vmap(grad(lambda *x: ax.attention(*x).sum(), (0, 1, 2)), (0, None, 0))(q, k[0], v)
    assert calls == {"forward": 2, "backward": 1}
    vmap(vmap(ax.attention))(*(t[None] for t in (q, k, v)))
    assert calls == {"forward": 3, "backward": 1}
    grad(lambda *x: vmap(ax.attention)(*x).sum())(q, k, v)
    assert calls == {"forward": 4, "backward": 2}
    torch.autograd.grad(vmap(ax.attention)(q.requires_grad_(), k, v).sum(), q)
    assert calls == {"forward": 5, "backward": 3}


def test_vmap_dimensions():
    q, k, v = torch.randn(2, 2, 3, 5, 4), torch.randn(5, 2, 2, 6, 4), torch.randn(2, 2, 6, 4)
    found = vmap(ax.attention, (3, 0, None), 2)(q, k, v)
    expected = torch.stack([ax.attention(q[:, :, :, n], k[n], v) for n in range(5)], 2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("batched", ["band_offset", "key_lengths", "mask_bits", "keep_for_all"])
def test_vmap_over_the_parts_of_a_mask(batched):
    q, k, v = torch.randn(2, 2, 3, 4), torch.randn(2, 1, 70, 4), torch.randn(2, 1, 70, 4)
    bits = library.pack_mask_bits(torch.rand(4, 1, 2, 3, 70) > 0.4)
    changes = {
        "band_offset": {"band": [-40, 30, 1, 0, 0, 0], "band_offset": torch.randint(-9, 60, (4, 2))},
        "key_lengths": {"key_lengths": torch.randint(0, 70, (4, 2))},
        "mask_bits": {
            "mask_bits": bits.movedim(0, -1).contiguous()
        },  # the vmapped dimension apart the words of a row
        "keep_for_all": {"query": torch.randn(4, *q.shape), "mask_bits": bits[0].expand(2, -1, -1, -1)},
    }[batched]
    call = Call(q, k, v, [], None, None, None, None, [], None, None, None, 0.5, 0.0, 0.0, None)
    call = call._replace(**changes)
    dims = call._replace(**dict.fromkeys(call._fields))
    name = "query" if batched == "keep_for_all" else batched
    dims = dims._replace(**{name: 4 if batched == "mask_bits" else 0})

    def sample(values, n, dims):
        return [t if d is None else t.select(d, n).contiguous() for t, d in zip(values, dims, strict=True)]

    # The band and the lists are no arguments of the function that vmap sees.
    def op(f, call, dims):
        tensors = [name for name in call._fields if isinstance(getattr(call, name), torch.Tensor)]
        found = vmap(
            lambda *x: f(*call._replace(**dict(zip(tensors, x, strict=True)))),
            tuple(getattr(dims, name) for name in tensors),
        )(*(getattr(call, name) for name in tensors))
        each = [f(*sample(call, n, dims)) for n in range(4)]
        expected = tuple(torch.stack(parts) for parts in zip(*each, strict=True))
        torch.testing.assert_close(found, expected, equal_nan=True)
        return found

    out, lse = op(library.forward, call, dims)
    backward = BackwardCall(
        torch.randn_like(out), None, *call[:3], out, lse, *call[3:], [True] * 3 + [False] * 3
    )
    op(library.backward, backward, BackwardCall(0, None, *dims[:3], 0, 0, *dims[3:], None))


def test_vmap_over_queries_of_one_padded_row():
    q, k, v = torch.randn(3, 1, 2, 5, 4), torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4)
    for mask in (M.KeyLengths([4]), M.KeyPadding(torch.rand(1, 6) > 0.4)):

        def f(q, mask=mask):
            return ax.attention(q, k, v, mask=mask)

        torch.testing.assert_close(vmap(f)(q), torch.stack([f(q[n]) for n in range(3)]))


def test_vmap_with_dropout():
    q = torch.randn(3, 2, 2, 3, 4, dtype=F64)
    k = torch.randn(2, 2, 5, 4, dtype=F64)
    seeds = torch.tensor([1, 2, 1])

    def f(q, seed):
        return ax.attention(q, k, k, dropout_p=0.5, dropout_seed=seed)

    g = grad(lambda q, seed: f(q, seed).square().sum())
    for function in (f, g):
        found = vmap(function)(q, seeds)
        expected = torch.stack([function(q[n], seeds[n]) for n in range(3)])
        torch.testing.assert_close(found, expected)

    def drawn(q):
        return ax.attention(q, k, k, dropout_p=0.5)

    same = q[:1].expand(3, -1, -1, -1, -1)
    out = vmap(drawn, randomness="same")(same)
    assert torch.equal(out[0], out[1])
    out = vmap(drawn, randomness="different")(same)
    assert not torch.equal(out[0], out[1])
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(drawn)(same)


@unfused_is_an_error()
def test_per_sample_gradients_of_a_module():
    linear = torch.nn.Linear(4, 4, dtype=F64)
    parameters = dict(linear.named_parameters())
    x = torch.randn(3, 2, 5, 4, dtype=F64)

    def loss(parameters, x):
        q = torch.func.functional_call(linear, parameters, (x,))
        return ax.attention(q, x, x, mask=M.Causal()).square().sum()

    found = vmap(grad(loss), (None, 0))(parameters, x)
    for n in range(3):
        expected = torch.autograd.grad(loss(parameters, x[n]), list(parameters.values()))
        torch.testing.assert_close([found[name][n] for name in parameters], list(expected))
