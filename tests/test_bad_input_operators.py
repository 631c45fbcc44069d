"""Bad input of the operators, called directly: they check again."""

import math

import pytest
import torch

from attention_ext._ops import library
from attention_ext._ops.attention_schema import Call

pytestmark = pytest.mark.cpu_only("messages of the CPU operators")

F64 = torch.float64


def zeros(*sizes, dtype=torch.float32):
    return torch.zeros(sizes, dtype=dtype)


def arguments(**changes):
    """Good arguments with B, Hq, Hkv, Lq, Lk, D, Dv = 2, 4, 2, 3, 5, 8, 6, but for the changes."""
    tensors = zeros(2, 4, 3, 8), zeros(2, 2, 5, 8), zeros(2, 2, 5, 6)
    call = Call(*tensors, [], None, None, None, None, [], None, None, None, 0.5, 0.0, 0.0, None)
    return call._replace(**changes)


def int64(*values):
    return torch.tensor(values, dtype=torch.int64)


RAW_TABLE = {
    "rank": ({"query": zeros(4, 3, 8)}, "query: expected a 4-D CPU tensor"),
    "integers": ({"query": zeros(2, 4, 3, 8, dtype=torch.int64)}, "query: expected a 4-D CPU tensor"),
    "mixed": ({"key": zeros(2, 2, 5, 8, dtype=F64)}, "key: expected a 4-D CPU tensor"),
    "key_batch": ({"key": zeros(1, 2, 5, 8)}, r"key: expected shape \(2, Hkv, Lk, 8\), got \(1, 2, 5, 8\)"),
    "key_dim": ({"key": zeros(2, 2, 5, 9)}, r"key: expected shape \(2, Hkv, Lk, 8\), got \(2, 2, 5, 9\)"),
    "value_length": (
        {"value": zeros(2, 2, 4, 6)},
        r"value: expected shape \(2, 2, 5, Dv\), got \(2, 2, 4, 6\)",
    ),
    "heads": ({"query": zeros(2, 3, 3, 8)}, "query: expected heads a multiple of the key's 2, got 3"),
    "bias_rank": ({"bias": zeros(3, 5)}, "bias: expected a 4-D CPU tensor"),
    "bias_size": ({"bias": zeros(1, 1, 3, 4)}, "bias: expected a 4-D CPU tensor"),
    "bias_dtype": ({"bias": zeros(1, 1, 3, 5, dtype=F64)}, "bias: expected a 4-D CPU tensor"),
    "sinks": ({"sinks": zeros(3)}, "sinks: expected"),
    "slopes": ({"alibi_slopes": zeros(4, 2)}, "alibi_slopes: expected"),
    "scale": ({"scale": math.nan}, "scale: expected a finite number"),
    "softcap": ({"softcap": -1.0}, "softcap: expected a finite number >= 0"),
    "dropout_p": ({"dropout_p": 1.1}, "dropout_p: expected 0 to 1"),
    "no_seed": ({"dropout_p": 0.5}, "dropout_seed: expected one int64"),
    "seed": ({"dropout_p": 0.5, "dropout_seed": zeros()}, "dropout_seed: expected one int64"),
    "band": ({"band": [0, 1]}, "band: expected 0 or 6 integers, got 2"),
    "band_dilation": ({"band": [0, 1, 0, 0, 0, 0]}, "band: expected a dilation of at least 1, got 0"),
    "band_reserved": ({"band": [0, 1, 1, 0, 4, 0]}, "band: expected no global tokens"),
    "row_bounds": ({"row_bounds": int64(0)}, "row_bounds: expected None"),
    "block_table": ({"block_table": [int64(0)]}, "block_table: expected a mask program, got a malformed one"),
    "block_table_dtype": ({"block_table": [zeros()]}, "block_table: expected contiguous tensors of int64"),
    "lengths_dtype": (
        {"key_lengths": torch.zeros(2, dtype=torch.int32)},
        "key_lengths: expected contiguous int64",
    ),
    "lengths_size": ({"key_lengths": int64(1)}, r"key_lengths: expected contiguous int64 of shape \(2,\)"),
    "lengths_beyond": ({"key_lengths": int64(5, 6)}, "key_lengths: expected 0 to 5, got 6"),
    "lengths_negative": ({"key_lengths": int64(-1, 5)}, "key_lengths: expected 0 to 5, got -1"),
    "offset_size": (
        {"band_offset": int64(1, 2, 3)},
        r"band_offset: expected contiguous int64 of shape \(2,\)",
    ),
    "bits_words": ({"mask_bits": int64(0, 0).view(1, 1, 1, 2)}, "mask_bits: expected int64 of shape"),
    "bits_heads": ({"mask_bits": int64(0, 0).view(1, 2, 1, 1)}, "mask_bits: expected int64 of shape"),
    "bits_dtype": ({"mask_bits": zeros(1, 1, 1, 1)}, "mask_bits: expected int64 of shape"),
}


@pytest.mark.parametrize("case", RAW_TABLE)
def test_operators_check_again(case):
    changes, message = RAW_TABLE[case]
    call, good_call = arguments(**changes), arguments()
    out, lse = library.forward(*good_call)
    for op in (library.forward, library.attention):
        with pytest.raises(RuntimeError, match=message):
            op(*call)
    with pytest.raises(RuntimeError, match=message):
        library.backward(out, lse, *call[:3], out, lse, *call[3:], [True] * 6)


def test_backward_checks_what_the_forward_gave():
    call = arguments()
    out, lse = library.forward(*call)

    def backward(grad_out=out, grad_lse=lse, out=out, lse=lse, needs=(True,) * 6):
        return library.backward(grad_out, grad_lse, *call[:3], out, lse, *call[3:], list(needs))

    backward()
    with pytest.raises(RuntimeError, match="grad_out: expected shape and dtype of out"):
        backward(grad_out=zeros(2, 4, 3, 5))
    with pytest.raises(RuntimeError, match="grad_lse: expected shape and dtype of lse"):
        backward(grad_lse=lse.double())
    with pytest.raises(RuntimeError, match="out: expected what the forward operator gave"):
        backward(out=zeros(2, 4, 5, 6))
    with pytest.raises(RuntimeError, match="lse: expected what the forward operator gave"):
        backward(lse=zeros(2, 4, 3, 1))
    with pytest.raises(RuntimeError, match="needs: expected 6 booleans, got 2"):
        backward(needs=(True, False))


def test_pack_mask_bits_checks():
    with pytest.raises(RuntimeError, match="keep: expected a bool tensor"):
        library.pack_mask_bits(zeros(2, 3))
    with pytest.raises(RuntimeError, match="keep: expected a bool tensor"):
        library.pack_mask_bits(torch.tensor(True))
