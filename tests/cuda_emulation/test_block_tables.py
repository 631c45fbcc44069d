"""Masks that lower to tables of tiles: what the kernels skip, and that nothing outside a table is read."""

import emulation
import pytest
import torch
from helpers import Shape, make_qkv, random_keep
from test_attention_kernels import assert_near
from test_masks_in_graphs import GRAPH_MASKS

import attention_ext as ax
from attention_ext import masks, reference
from attention_ext._ops import library
from attention_ext.masks._lowering import BAND, LENGTHS, stored_table

# Tiles without a pair, full ones and partial ones; heads and batch rows of their own.
TABLES = {
    "blocks": lambda s: masks.Blocks(random_keep(s.B, s.Hq, -(-s.Lq // 64), -(-s.Lk // 64)), 64),
    "few": lambda s: masks.Global((3, 190)),
    "global": lambda s: masks.SlidingWindow(20, 0) | masks.Global(2),
    "documents": lambda s: masks.Documents(torch.arange(s.Lk) // 90) & masks.Causal(),
    "nothing": lambda s: masks.Blocks(torch.zeros(-(-s.Lq // 64), -(-s.Lk // 64), dtype=torch.bool), 64),
}
SMALL = Shape(1, 2, 1, 130, 200, 8, 8)
SHAPE = SMALL if emulation.MODE == "checked" else SMALL._replace(B=2, Hq=4, Hkv=2)

both = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])


@both
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_tables(table, dtype, kernels):
    kernels.set_schedule(2)
    mask = table(SHAPE)
    assert mask.lower(SHAPE.B, SHAPE.Hq, SHAPE.Lq, SHAPE.Lk, torch.device("cpu")).block_table
    assert_near(*make_qkv(SHAPE, dtype), mask=mask)


@both
def test_a_table_with_other_conditions(dtype):
    lengths = masks.KeyLengths(torch.tensor([190, 65]))
    mask = (masks.SlidingWindow(3, 0) | masks.Global(1)) & masks.Strided(3) & lengths
    assert_near(*make_qkv(Shape(2, 4, 2, 70, 200, 8, 8), dtype), mask=mask)


# What a call of the operators themselves may be given.

RAW = Shape(1, 2, 1, 70, 131, 8, 8)
WINDOW = [torch.tensor([BAND, -9, 9, 1, 0, 0])]  # a program, yet to be built


def window_table():
    parts = torch.ops.attention_ext._build_block_table.default(WINDOW, RAW.Lq, RAW.Lk)
    return stored_table(parts, RAW.Lq, RAW.Lk)


def run(block_table, dtype=torch.float32, backward=False, band=(), key_lengths=None):
    torch.manual_seed(0)
    qkv = make_qkv(RAW, dtype)
    options = ([*band], None, key_lengths, None, None, block_table, None, None, None, 1.0, 0.0, 0.0, None)
    out, lse = library.forward(*qkv, *options)
    if backward:
        library.backward(out, None, *qkv, out, lse, *options, [True] * 3 + [False] * 3)
    return out, lse


# Values on a device are not looked at before a kernel runs.
@both
@pytest.mark.parametrize("junk", [-(2**40), -1, 7, 2**40], ids=str)
@pytest.mark.parametrize("part", range(1, 6))
def test_no_table_leads_outside(part, junk, dtype):
    table = window_table()
    table[part].fill_(max(-(2**31), min(junk, 2**31 - 1)) if table[part].dtype == torch.int32 else junk)
    run(table, dtype, backward=True)


@pytest.mark.parametrize("part", range(1, 6))
def test_arrays_of_another_kind_are_refused(part):
    table = window_table()
    run(table)
    table[part] = table[part].double()
    with pytest.raises(RuntimeError, match="block_table: expected the arrays of a table"):
        run(table)


# Programs whose table is yet to be built, as graphs hold them.


def test_a_program_is_built():
    expected, found = run(window_table()), run(WINDOW)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    run(WINDOW, backward=True)


def test_a_kept_table_serves_its_program_alone():
    """Neither other numbers nor other values of an array get the table of another program."""
    for _ in range(2):
        for bound in (3, 9):
            program = [torch.tensor([BAND, -bound, bound, 1, 0, 0])]
            assert_same_as_window(program, bound)
        for lengths in ([7], [70]):
            program = [torch.tensor([LENGTHS, 0]), torch.tensor(lengths)]
            expected = run([], key_lengths=torch.tensor(lengths))
            assert all(torch.equal(a, b) for a, b in zip(run(program), expected, strict=True))
    for bound in range(80):  # more than are kept
        run([torch.tensor([BAND, -bound, bound, 1, 0, 0])])
    assert_same_as_window([torch.tensor([BAND, -3, 3, 1, 0, 0])], 3)


def assert_same_as_window(program, bound):
    expected = run([], band=[-bound, bound, 1, 0, 0, 0])
    for found, other in zip(run(program), expected, strict=True):
        torch.testing.assert_close(found, other)


def test_a_cuda_graph_captures_kept_tables_alone(kernels):
    def window(bound):
        return [torch.tensor([BAND, -bound, bound + 100, 1, 0, 0])]

    before = run(window(5))
    kernels.set_capturing(True)
    try:
        with pytest.raises(RuntimeError, match=r"block_table: .* make the same call before the capture"):
            run(window(6))
        captured = run(window(5))
        run(window_table())
        kernels.set_capturing(False)
        for bound in range(7, 90):
            run(window(bound))
        kernels.set_capturing(True)
        again = run(window(5))  # what a graph reads is kept, whatever comes after it
    finally:
        kernels.set_capturing(False)
    for found in (captured, again):
        assert all(torch.equal(a, b) for a, b in zip(found, before, strict=True))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([torch.tensor([99])], "expected a mask program"),
        ([torch.tensor([LENGTHS, 0]), torch.tensor([1, 2])], "batch size 1"),
    ],
    ids=["program", "batch"],
)
def test_programs_that_do_not_fit_are_refused(table, message):
    run(WINDOW)
    with pytest.raises(RuntimeError, match=message):
        run(table)


GRAPHS = {name: GRAPH_MASKS[name] for name in ("table", "table_lengths", "selected")}


@pytest.mark.parametrize("mask", GRAPHS.values(), ids=GRAPHS)
def test_compiled_graphs(mask):
    mask, query = mask(), torch.randn(2, 4, 5, 8, requires_grad=True)
    key = torch.randn(2, 4, 9, 8)
    compiled = torch.compile(
        lambda q: ax.attention(q, key, key, mask=mask), fullgraph=True, backend="aot_eager"
    )
    results = []
    for function in (lambda q: reference.attention(q, key, key, mask=mask), compiled, compiled):
        out = function(query)
        results.append((out, *torch.autograd.grad(out.square().sum(), query)))
    torch._dynamo.reset()
    for found in results[1:]:
        torch.testing.assert_close(found, results[0])
