"""Masks in torch.compile, torch.export and vmap, as arguments and from outside."""

import io

import helpers
import pytest
import torch

import attention_ext as ax
from attention_ext.masks import Causal, Dense, Intersection, KeyLengths, KeyPadding, SlidingWindow

CPU = torch.device("cpu")
KEEP = torch.tensor([[True, False, True], [False, True, True]])


def attend(query, key, mask):
    return ax.attention(query, key, key, mask=mask)


class Attend(torch.nn.Module):
    def __init__(self, mask=None):
        super().__init__()
        self.mask = mask

    def forward(self, query, key, mask=None):
        return attend(query, key, self.mask if mask is None else mask)


GRAPH_MASKS = {
    "causal": lambda: Causal(),
    "band": lambda: Causal("top_left") & SlidingWindow(3, None),
    "lengths": lambda: KeyLengths(torch.tensor([2, 9])),
    "all": lambda: (
        Causal() & KeyLengths([2, 9]) & KeyPadding(KEEP.repeat(1, 3)) & Dense(torch.rand(4, 1, 9) > 0.3)
    ),
}


def query_key(Lq=5, Lk=9):
    return torch.randn(2, 4, Lq, 8), torch.randn(2, 4, Lk, 8)


@pytest.mark.parametrize("name", GRAPH_MASKS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_takes_masks_as_arguments_and_from_outside(name, dynamic):
    mask, (query, key) = GRAPH_MASKS[name](), query_key()
    options = {"fullgraph": True, "dynamic": dynamic, "backend": "aot_eager"}
    expected = attend(query, key, mask)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(attend, **options)(query, key, mask), expected)
    torch.testing.assert_close(
        torch.compile(lambda q, k: attend(q, k, mask), **options)(query, key), expected
    )


def test_compile_follows_other_sizes_and_tensors():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend=counter)
    torch._dynamo.reset()
    for Lq, Lk in [(5, 9), (6, 12), (11, 7)]:
        query, key = query_key(Lq, Lk)
        for lengths in ([1, 5], [7, 3]):
            mask = Causal() & KeyLengths(lengths)
            torch.testing.assert_close(compiled(query, key, mask), attend(query, key, mask))
    assert counter.frame_count <= 2


def test_masks_made_inside_a_compiled_function():
    def function(query, key, keep, lengths, left):
        mask = (
            Causal()
            & SlidingWindow(left, 0)
            & KeyPadding(keep)
            & KeyLengths(lengths)
            & Dense(keep[:, None, None])
        )
        return attend(query, key, mask)

    torch._dynamo.reset()
    query, key = query_key()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for left in (3, 4):
        args = query, key, KEEP.repeat(1, 3), torch.tensor([2, 9]), left
        torch.testing.assert_close(compiled(*args), function(*args))


@pytest.mark.parametrize("name", GRAPH_MASKS)
@pytest.mark.parametrize("strict", [False, True])
def test_export_takes_masks_as_arguments_and_from_outside(name, strict):
    mask, (query, key) = GRAPH_MASKS[name](), query_key()
    expected = attend(query, key, mask)
    other = torch.utils._pytree.tree_map(torch.clone, mask)
    for tensor in other._tensors():
        tensor.zero_()
    inside = torch.export.export(Attend(mask), (query, key), strict=strict)
    torch.testing.assert_close(inside.module()(query, key), expected)
    argument = torch.export.export(Attend(), (query, key, mask), strict=strict)
    torch.testing.assert_close(argument.module()(query, key, mask), expected)
    torch.testing.assert_close(argument.module()(query, key, other), attend(query, key, other))
    assert all(type(t) is torch.Tensor for t in mask.lower(2, 4, 5, 9, CPU)[1:4] if t is not None)


def test_export_keeps_sizes_open():
    size = {2: torch.export.Dim("Lq", min=2, max=64)}, {2: torch.export.Dim("Lk", min=2, max=64)}
    mask = Causal() & SlidingWindow(3, None, "top_left")
    program = torch.export.export(Attend(mask), query_key(), dynamic_shapes=size)
    for sizes in [(7, 12), (12, 7)]:
        query, key = query_key(*sizes)
        torch.testing.assert_close(program.module()(query, key), attend(query, key, mask))


def test_exported_programs_with_masks_are_saved():
    mask, (query, key) = GRAPH_MASKS["all"](), query_key()
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Attend(), (query, key, mask)), buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    torch.testing.assert_close(loaded(query, key, mask), attend(query, key, mask))


def test_vmap_sees_the_tensors_inside():
    keeps = helpers.random_keep(3, 2, 9)
    query, key = query_key()
    queries = torch.randn(3, *query.shape)

    def one(query, keep):
        return attend(query, key, Causal() & KeyPadding(keep))

    expected = torch.stack([one(q, keep) for q, keep in zip(queries, keeps, strict=True)])
    torch.testing.assert_close(torch.vmap(one)(queries, keeps), expected)
    lengths = torch.tensor([[1, 5], [9, 0], [3, 3]])
    expected = torch.stack([attend(q, key, KeyLengths(n)) for q, n in zip(queries, lengths, strict=True)])
    torch.testing.assert_close(
        torch.vmap(lambda q, n: attend(q, key, KeyLengths(n)))(queries, lengths), expected
    )
    tensors = helpers.random_keep(3, 5, 9)
    batched = Intersection((Causal(), Dense(tensors)))
    expected = torch.stack(
        [attend(q, key, Causal() & Dense(t)) for q, t in zip(queries, tensors, strict=True)]
    )
    torch.testing.assert_close(torch.vmap(lambda q, m: attend(q, key, m))(queries, batched), expected)
