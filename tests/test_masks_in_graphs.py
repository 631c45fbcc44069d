"""Masks in torch.compile, torch.export and vmap, as arguments and from outside."""

import io

import helpers
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import attention_ext as ax
from attention_ext._ops import library
from attention_ext.masks import (
    Blocks,
    Causal,
    Compressed,
    Dense,
    Dilated,
    Documents,
    Global,
    Intersection,
    KeyLengths,
    KeyPadding,
    Packed,
    Selected,
    SlidingWindow,
    Strided,
    from_function,
)

pytestmark = pytest.mark.cpu_only("looks at graphs of the CPU")

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
    "dilated": lambda: Dilated(2, None, 2),
    "table": lambda: (Causal() | Global([1])) & ~Strided(3),
    "table_lengths": lambda: Documents(torch.tensor([0, 0, 1, 1, 1, 2, -1, -1, 2])) | KeyLengths([2, 9]),
    "packed": lambda: Packed(Causal(), [0, 2, 5], [0, 6, 9]),
    "blocks": lambda: Blocks(torch.rand(4, 2, 3) > 0.4, (4, 3)) & Causal(),
    "selected": lambda: Selected(torch.randint(-1, 3, (2, 4, 5, 2), dtype=torch.int32), 3) & Causal(),
    "compressed": lambda: Compressed(4, 2, 20),
    "function": lambda: from_function(lambda b, h, q, k: q + h != k, None, 4, 5, 9),
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
    for tensor in other._tensors() if name != "packed" else []:
        tensor.zero_()
    inside = torch.export.export(Attend(mask), (query, key), strict=strict)
    torch.testing.assert_close(inside.module()(query, key), expected)
    argument = torch.export.export(Attend(), (query, key, mask), strict=strict)
    torch.testing.assert_close(argument.module()(query, key, mask), expected)
    torch.testing.assert_close(argument.module()(query, key, other), attend(query, key, other))
    assert all(type(t) is torch.Tensor for t in mask.lower(2, 4, 5, 9, CPU)[1:4] if t is not None)


@pytest.mark.parametrize(
    "mask", [Causal() & SlidingWindow(3, None, "top_left"), Strided(2), Causal() | Global(2)], ids=repr
)
def test_export_keeps_sizes_open(mask):
    size = {2: torch.export.Dim("Lq", min=2, max=64)}, {2: torch.export.Dim("Lk", min=2, max=64)}
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


def test_vmap_sees_the_tensors_inside_tables():
    query, key = query_key()
    ids = torch.randint(0, 2, (3, 9))
    queries = torch.randn(3, *query.shape)

    def one(query, ids):
        return attend(query, key, Documents(ids) | Global(1))

    expected = torch.stack([one(q, n) for q, n in zip(queries, ids, strict=True)])
    torch.testing.assert_close(torch.vmap(one)(queries, ids), expected)
    mask = Causal() | KeyLengths([1, 5])
    expected = torch.stack([attend(q, key, mask) for q in queries])
    torch.testing.assert_close(torch.vmap(lambda q: attend(q, key, mask))(queries), expected)


@pytest.mark.filterwarnings("ignore::attention_ext.UnfusedWarning")
def test_derivatives_of_other_kinds_know_tables():
    query, key = (t.double().requires_grad_() for t in query_key())
    for mask in (Causal() | Global(1), Dilated(3, 0, 2), Documents(torch.arange(9) // 4) & Causal()):
        dense = Dense(mask.dense(5, 9))
        for function in (
            lambda q, m: torch.func.jvp(lambda q: attend(q, key, m), (q,), (torch.ones_like(q),))[1],
            lambda q, m: torch.func.grad(lambda q: attend(q, key, m).square().sum())(q),
            lambda q, m: torch.func.grad(
                lambda q: torch.func.grad(lambda q: attend(q, key, m).square().sum())(q).square().sum()
            )(q),
        ):
            torch.testing.assert_close(function(query, mask), function(query, dense))


@pytest.mark.parametrize("built", [False, True])
def test_opcheck_with_a_table(built):
    program = ax.masks._lowering.Program()
    ((Causal() | Global([1])) & ~KeyLengths([1, 5]))._emit(program)
    table = program.block_table()
    if built:
        table = ax.masks._lowering.lower_program(program, 5, 9)
        assert len(table) == 6
    query, key = query_key()
    call = (query, key, key, [], None, None, None, None, table, None, None, None, 0.3, 0.0, 0.0, None)
    torch.library.opcheck(library.forward, call)
    differentiable = (query.requires_grad_(), *call[1:])
    torch.library.opcheck(library.attention, differentiable)
    torch.library.opcheck(library.dense_block_table, (table, 2, 4, 5, 9))


def test_tables_are_built_where_values_are_known():
    with (
        FakeTensorMode(),
        pytest.raises(NotImplementedError, match="_build_block_table: what it makes depends on values"),
    ):
        library.build_block_table([torch.tensor([8, 1, -1, 1])], 4, 4)


def test_nothing_of_a_trace_stays_behind():
    query, key = query_key()
    mask = Documents(torch.arange(9) // 4) | Global(1)
    torch.vmap(lambda q: attend(q, key, mask))(torch.randn(2, *query.shape))
    with FakeTensorMode(allow_non_fake_inputs=True):
        attend(torch.empty(query.shape), torch.empty(key.shape), mask)
        attend(torch.empty(query.shape), torch.empty(key.shape), Causal() | Global(1))
    for each in (mask, Causal() | Global(1)):
        table = each.lower(2, 4, 5, 9, CPU).block_table
        assert len(table) == 6
        assert all(type(t) is torch.Tensor for t in table)
        torch.testing.assert_close(attend(query, key, each), attend(query, key, Dense(each.dense(5, 9))))
