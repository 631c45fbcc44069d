"""select_blocks in graphs, under transforms, and what a derivative through it is."""

import pytest
import torch
from helpers import Shape, make_qkv

import attention_ext as ax
from attention_ext import reference
from attention_ext.masks import Selected

pytestmark = pytest.mark.once

GROUPED = Shape(2, 4, 2, 40, 40, 8, 8)


def attend(query, key, value, **options):
    mask = ax.select_blocks(query, key, 8, 3, **options)
    return ax.attention(query, key, value, mask=mask)


OPTIONS = {
    "causal": {},
    "shared": {"share_heads": True, "initial_blocks": 1},
    "not_causal": {"causal": False, "query_block_size": 4},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(options, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for L in (40, 56):
        q, k, v = make_qkv(GROUPED._replace(Lq=L, Lk=L), requires_grad=True)
        actual, expected = compiled(q, k, v, **options), attend(q, k, v, **options)
        torch.testing.assert_close(actual, expected)
        found = torch.autograd.grad(actual.sum(), (q, k, v))
        torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), (q, k, v)))


def test_export():
    class Attend(torch.nn.Module):
        def forward(self, query, key, value):
            return attend(query, key, value)

    args = make_qkv(GROUPED)
    program = torch.export.export(Attend(), args)
    torch.testing.assert_close(program.module()(*args), attend(*args))


def test_opcheck():
    q, k, _ = make_qkv(GROUPED)
    op = torch.ops.attention_ext.select_blocks.default
    keep = torch.rand(2, 40) > 0.3
    torch.library.opcheck(op, (q, k, keep, 8, 1, 3, 0, 1, True, False, [], 1.0))
    torch.library.opcheck(op, (q, k, None, 8, 4, 3, 0, 0, False, True, [], 1.0))
    keys = k[:, :, :9].contiguous()
    torch.library.opcheck(op, (q, keys, None, 8, 1, 3, 1, 1, True, True, [8, 4, 40], 0.5))


def dense_attention(q, k, v):
    """The same with what was chosen as a constant mask."""
    mask = reference.select_blocks(q.detach(), k.detach(), 8, 3).dense(40, 40)
    return reference.attention(q, k, v, mask=mask)


def test_gradients_are_those_of_the_chosen_set():
    q, k, v = make_qkv(GROUPED, torch.float64, requires_grad=True)
    out = torch.randn(2, 4, 40, 8, dtype=torch.float64)
    found = torch.autograd.grad(attend(q, k, v), (q, k, v), out)
    torch.testing.assert_close(found, torch.autograd.grad(dense_attention(q, k, v), (q, k, v), out))
    indices = torch.ops.attention_ext.select_blocks(q, k, None, 8, 1, 3, 0, 1, True, False, [], 1.0)
    assert not indices.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(indices.double().sum(), q)


def test_transforms():
    q, k, v = make_qkv(GROUPED, torch.float64)

    def loss(function):
        return lambda q, k, v: function(q, k, v).square().sum()

    found = torch.func.grad(loss(attend), (0, 1, 2))(q, k, v)
    expected = torch.func.grad(loss(dense_attention), (0, 1, 2))(q, k, v)
    torch.testing.assert_close(found, expected)
    tangents = tuple(torch.randn_like(t) for t in (q, k, v))
    _, found = torch.func.jvp(attend, (q, k, v), tangents)
    torch.testing.assert_close(found, torch.func.jvp(dense_attention, (q, k, v), tangents)[1])


def test_vmap():
    queries, keys = torch.randn(3, 2, 4, 40, 8), torch.randn(3, 2, 2, 40, 8)

    def select(query, key):
        mask = ax.select_blocks(query, key, 8, 3, causal=False)
        assert isinstance(mask, Selected)
        return mask.indices

    found = torch.func.vmap(select)(queries, keys)
    expected = torch.stack([select(q, k) for q, k in zip(queries, keys, strict=True)])
    assert torch.equal(found, expected)
    shared = torch.func.vmap(select, in_dims=(None, 0))(queries[0], keys)
    assert torch.equal(shared, torch.stack([select(queries[0], k) for k in keys]))
    values = torch.randn(3, 2, 2, 40, 8)
    attended = torch.func.vmap(attend)(queries, keys, values)
    one_by_one = [attend(*sample) for sample in zip(queries, keys, values, strict=True)]
    torch.testing.assert_close(attended, torch.stack(one_by_one))


def test_autocast():
    q, k, v = make_qkv(GROUPED)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        assert attend(q, k, v).dtype == torch.bfloat16
