"""attention_map as torch meets it: opcheck, compile, autocast, derivatives, bad input, memory."""

import subprocess
import sys

import pytest
import torch

import attention_ext as ax
from attention_ext import masks
from attention_ext._ops import library

pytestmark = pytest.mark.once


def make(*sizes, dtype=torch.float32):
    return torch.randn(*sizes, dtype=dtype)


def arguments(**changes):
    """Good arguments of the op, but for the changes."""
    given = {
        "query": make(2, 4, 9, 8), "key": make(2, 2, 11, 8), "band": [], "band_offset": None,
        "key_lengths": None, "mask_bits": None, "row_bounds": None, "block_table": [], "bias": None,
        "sinks": None, "alibi_slopes": None, "scale": None, "softcap": 0.0, "rows": torch.tensor([3, 0]),
        "bins": [2, 3],
    }  # fmt: skip
    return tuple((given | changes).values())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rows": None, "bins": []},
        {"query": make(2, 9, 4, 8).transpose(1, 2), "band": [-3, 2, 1, 0, 0, 0]},
        {"query": make(0, 4, 9, 8), "key": make(0, 2, 11, 8)},
        {"bias": make(1, 4, 1, 11), "sinks": make(4), "alibi_slopes": make(2, 4), "softcap": 2.0},
    ],
    ids=["rows_and_bins", "neither", "heads_last", "empty", "terms"],
)
def test_opcheck(changes):
    torch.library.opcheck(library.attention_map, arguments(**changes))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    torch._dynamo.reset()

    def f(query, key, rows):
        return ax.attention_map(query, key, masks.Causal() | masks.Global(2), rows=rows, bins=(4, 6))

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for Lq, Lk in ((9, 70), (30, 130)):
        given = make(2, 4, Lq, 8), make(2, 2, Lk, 8), torch.tensor([-1, 3])
        found, expected = compiled(*given), f(*given)
        assert isinstance(found, ax.AttentionMap)
        torch.testing.assert_close([*found], [*expected], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_query_and_key(dtype):
    query, key, bias = make(2, 4, 9, 8), make(2, 2, 11, 8), make(9, 11)
    with torch.autocast(torch.get_default_device().type, dtype):
        found = ax.attention_map(query, key, bias=bias, rows="all", bins=3)
    by_hand = ax.attention_map(query.to(dtype), key.to(dtype), bias=bias.to(dtype), rows="all", bins=3)
    torch.testing.assert_close([*found], [*by_hand], rtol=0, atol=0)


def test_vmap_is_the_batch():
    query, key = make(3, 4, 9, 8), make(3, 2, 11, 8)
    mask = masks.Causal() | masks.Global(1)

    def f(q, k):
        return ax.attention_map(q, k, mask, rows=[2, 5], bins=3)

    torch.testing.assert_close([*torch.func.vmap(f)(query, key)], [*f(query, key)], rtol=0, atol=0)


# derivatives


def test_a_derivative_is_refused():
    query, key, bias = make(1, 2, 5, 8), make(1, 2, 6, 8), make(5, 6)
    for name in ("query", "key", "bias"):
        given = {"query": query, "key": key, "bias": bias}
        given[name] = given[name].clone().requires_grad_()
        with pytest.raises(RuntimeError, match="attention_map has no derivative"):
            ax.attention_map(**given)
        with torch.no_grad():
            ax.attention_map(**given)
    total = lambda q: ax.attention_map(q, key).entropy.sum()  # noqa: E731
    with pytest.raises(RuntimeError, match="attention_map has no derivative"):
        torch.func.grad(total)(query)
    with pytest.raises(RuntimeError, match="attention_map has no derivative"):
        torch.func.jvp(total, (query,), (query,))


# bad input

BAD = {
    "rows_word": ({"rows": "some"}, ValueError, 'rows: expected integers, "all" or None'),
    "rows_number": ({"rows": 3}, TypeError, "rows: expected a sequence of integers, got int"),
    "rows_floats": ({"rows": [1.0]}, TypeError, "rows: expected integers, got float"),
    "rows_bools": ({"rows": torch.ones(9, dtype=torch.bool)}, TypeError, "rows: expected integers, got"),
    "rows_shape": (
        {"rows": torch.zeros(1, 2, dtype=torch.int64)},
        ValueError,
        "rows: expected one dimension",
    ),
    "rows_beyond": ({"rows": [0, 9]}, ValueError, "rows: expected -9 to 8, got 9"),
    "rows_before": ({"rows": torch.tensor([-10])}, ValueError, "rows: expected -9 to 8, got -10"),
    "bins_zero": ({"bins": 0}, ValueError, "bins: expected at least 1, got 0"),
    "bins_three": ({"bins": (1, 2, 3)}, ValueError, "bins: expected one integer or two, got 3"),
    "bins_float": ({"bins": (2.0, 3)}, TypeError, "bins: expected an integer or two, got float"),
    "mask": ({"mask": torch.ones(9, 11, dtype=torch.bool)}, TypeError, "mask: expected one of"),
    "key_heads": ({"key": make(2, 3, 11, 8)}, ValueError, "key: expected a number of heads"),
    "bias": ({"bias": make(3, 11)}, ValueError, "bias: expected a shape"),
    "softcap": ({"softcap": -1.0}, ValueError, "softcap: expected a finite number >= 0"),
    "scale": ({"scale": float("inf")}, ValueError, "scale: expected a finite number"),
    "sinks": ({"sinks": make(3)}, ValueError, "sinks: expected shape"),
    "slopes": ({"alibi_slopes": make(3)}, ValueError, "alibi_slopes: expected shape"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input(bad):
    changes, error, message = BAD[bad]
    with pytest.raises(error, match=message):
        ax.attention_map(**({"query": make(2, 4, 9, 8), "key": make(2, 2, 11, 8)} | changes))


RAW = {
    "rows_dtype": ({"rows": make(2)}, "rows: expected int64 of one dimension"),
    "rows_shape": ({"rows": torch.zeros(1, 2, dtype=torch.int64)}, "rows: expected int64 of one dimension"),
    "rows_beyond": ({"rows": torch.tensor([0, 9])}, "rows: expected 0 to Lq - 1 = 8, got 9"),
    "rows_negative": ({"rows": torch.tensor([-1])}, "rows: expected 0 to Lq - 1 = 8, got -1"),
    "bins_one": ({"bins": [3]}, "bins: expected 0 or 2 integers, got 1"),
    "bins_zero": ({"bins": [0, 3]}, "bins: expected 1 to Lq = 9"),
    "bins_many": ({"bins": [3, 12]}, "1 to Lk = 11, got 3 and 12"),
    "key_dim": ({"key": make(2, 2, 11, 9)}, "key: expected shape"),
    "key_dtype": ({"key": make(2, 2, 11, 8, dtype=torch.float64)}, "key: expected a 4-D CPU tensor"),
    "lengths": ({"key_lengths": torch.tensor([1, 12])}, "key_lengths: expected 0 to 11, got 12"),
    "bias": ({"bias": make(1, 1, 9, 10)}, "bias: expected a 4-D CPU tensor"),
}


@pytest.mark.parametrize("bad", RAW)
def test_bad_input_of_the_op(bad):
    changes, message = RAW[bad]
    with pytest.raises(RuntimeError, match=message):
        library.attention_map(*arguments(**changes))


def test_devices():
    with torch.device("meta"):
        assert ax.attention_map(make(2, 4, 9, 8), make(2, 2, 11, 8), bins=3).binned.shape == (2, 4, 3, 3)
    with torch._subclasses.FakeTensorMode():
        on_cuda = torch.empty(1, 1, 9, 8, device="cuda")
        binned = ax.attention_map(on_cuda, on_cuda, bins=3).binned
        assert (binned.shape, binned.device.type) == ((1, 1, 3, 3), "cuda")
        with pytest.raises(ValueError, match="key: expected the device of query, cuda:0, got cpu"):
            ax.attention_map(on_cuda, make(1, 1, 9, 8))


# memory

PROGRAM = """
import resource, torch, attention_ext as ax
query = key = torch.randn(1, 1, 40_000, 16)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
ax.attention_map(query[:, :, :100], key[:, :, :100], bins=8)
before = peak()
found = ax.attention_map(query, key, ax.masks.SlidingWindow(500, 500), rows=[5], bins=100)
print(peak() - before)
"""


def test_memory_is_linear():
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=300
    )
    assert float(result.stdout) < 64  # MiB; all weights are 6 GB
