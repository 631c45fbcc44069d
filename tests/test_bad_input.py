"""Bad input: which error, and its exact words."""

import math
import re

import pytest
import torch

import attention_ext as ax
from attention_ext import functional

ELSEWHERE = f"expected the device of query, {torch.get_default_device()}, got meta"

M = ax.masks
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


def zeros(*sizes, dtype=F32, device=None):
    return torch.zeros(sizes, dtype=dtype, device=device)


def good(**changes):
    """Arguments of ax.attention with B, Hq, Hkv, Lq, Lk, D, Dv = 2, 4, 2, 3, 5, 8, 6."""
    tensors = {"query": zeros(2, 4, 3, 8), "key": zeros(2, 2, 5, 8), "value": zeros(2, 2, 5, 6)}
    return {**tensors, **changes}


def cast(dtype):
    return {name: t.to(dtype) for name, t in good().items()}


DTYPES = "expected dtype float32, float64, bfloat16 or float16"

# arguments that differ from good(), error, message
TABLE = {
    # types
    "query_list": ({"query": [1.0]}, TypeError, "query: expected a torch.Tensor, got list"),
    "key_none": ({"key": None}, TypeError, "key: expected a torch.Tensor, got NoneType"),
    "value_float": ({"value": 1.0}, TypeError, "value: expected a torch.Tensor, got float"),
    "bias_list": ({"bias": [1.0]}, TypeError, "bias: expected a torch.Tensor, got list"),
    "sinks_list": ({"sinks": [1.0] * 4}, TypeError, "sinks: expected a torch.Tensor, got list"),
    "slopes_float": ({"alibi_slopes": 0.5}, TypeError, "alibi_slopes: expected a torch.Tensor, got float"),
    "mask_string": (
        {"mask": "causal"},
        TypeError,
        "mask: expected one of attention_ext.masks or None, got str",
    ),
    "mask_class": (
        {"mask": M.Causal},
        TypeError,
        "mask: expected one of attention_ext.masks or None, got type",
    ),
    "mask_tensor": (
        {"mask": torch.ones(3, 5, dtype=torch.bool)},
        TypeError,
        "mask: expected one of attention_ext.masks or None, got Tensor; "
        "a bool tensor, True = attend, is mask=attention_ext.masks.Dense(tensor)",
    ),
    "scale_string": ({"scale": "1"}, TypeError, "scale: expected a finite number or None, got str"),
    "scale_tensor": (
        {"scale": torch.ones(())},
        TypeError,
        "scale: expected a finite number or None, got Tensor",
    ),
    "scale_bool": ({"scale": True}, TypeError, "scale: expected a finite number or None, got bool"),
    "scale_complex": ({"scale": 1j}, TypeError, "scale: expected a finite number or None, got complex"),
    "softcap_list": (
        {"softcap": [1.0]},
        TypeError,
        "softcap: expected a finite number >= 0 or None, got list",
    ),
    "dropout_p_none": (
        {"dropout_p": None},
        TypeError,
        "dropout_p: expected a number from 0 to 1, got NoneType",
    ),
    "dropout_p_bool": ({"dropout_p": False}, TypeError, "dropout_p: expected a number from 0 to 1, got bool"),
    "seed_float": (
        {"dropout_p": 0.5, "dropout_seed": 1.0},
        TypeError,
        "dropout_seed: expected an int or an int64 tensor, got float",
    ),
    "seed_unused_but_wrong": (
        {"dropout_seed": "7"},
        TypeError,
        "dropout_seed: expected an int or an int64 tensor, got str",
    ),
    # dtypes
    "integers": (cast(torch.int64), TypeError, f"query: {DTYPES}, got torch.int64"),
    "bool": (cast(torch.bool), TypeError, f"query: {DTYPES}, got torch.bool"),
    "complex": (cast(torch.complex64), TypeError, f"query: {DTYPES}, got torch.complex64"),
    "float8": (cast(torch.float8_e4m3fn), TypeError, f"query: {DTYPES}, got torch.float8_e4m3fn"),
    "mixed_key": (
        {"key": zeros(2, 2, 5, 8, dtype=F64)},
        TypeError,
        "key: expected the dtype of query, torch.float32, got torch.float64",
    ),
    "mixed_value": (
        {"value": zeros(2, 2, 5, 6, dtype=BF16)},
        TypeError,
        "value: expected the dtype of query, torch.float32, got torch.bfloat16",
    ),
    "bias_dtype": (
        {"bias": zeros(3, 5, dtype=F64)},
        TypeError,
        "bias: expected the dtype of query, torch.float32, or float32, got torch.float64",
    ),
    "bias_bool": (
        {"bias": zeros(3, 5, dtype=torch.bool)},
        TypeError,
        "bias: expected the dtype of query, torch.float32, or float32, got torch.bool; "
        "a bool mask is mask=attention_ext.masks.Dense(tensor)",
    ),
    "sinks_integers": (
        {"sinks": zeros(4, dtype=torch.int32)},
        TypeError,
        f"sinks: {DTYPES}, got torch.int32",
    ),
    "slopes_complex": (
        {"alibi_slopes": zeros(4, dtype=torch.complex64)},
        TypeError,
        f"alibi_slopes: {DTYPES}, got torch.complex64",
    ),
    "seed_int32": (
        {"dropout_p": 0.5, "dropout_seed": zeros(dtype=torch.int32)},
        TypeError,
        "dropout_seed: expected an int or an int64 tensor, got torch.int32",
    ),
    # devices and layouts
    "key_device": (
        {"key": zeros(2, 2, 5, 8, device="meta")},
        ValueError,
        f"key: {ELSEWHERE}",
    ),
    "value_device": (
        {"value": zeros(2, 2, 5, 6, device="meta")},
        ValueError,
        f"value: {ELSEWHERE}",
    ),
    "bias_device": (
        {"bias": zeros(3, 5, device="meta")},
        ValueError,
        f"bias: {ELSEWHERE}",
    ),
    "sinks_device": (
        {"sinks": zeros(4, device="meta")},
        ValueError,
        f"sinks: {ELSEWHERE}",
    ),
    "slopes_device": (
        {"alibi_slopes": zeros(4, device="meta")},
        ValueError,
        f"alibi_slopes: {ELSEWHERE}",
    ),
    "seed_device": (
        {"dropout_p": 0.5, "dropout_seed": zeros(dtype=torch.int64, device="meta")},
        ValueError,
        f"dropout_seed: {ELSEWHERE}",
    ),
    "sparse": (
        {"query": zeros(2, 4, 3, 8).to_sparse()},
        ValueError,
        "query: expected a strided tensor, got layout torch.sparse_coo",
    ),
    "nested": (
        {"value": torch.nested.nested_tensor([zeros(2, 5, 6), zeros(2, 4, 6)])},
        ValueError,
        "value: expected a strided tensor, got a nested one",
    ),
    # ranks and sizes
    "one_dimension": (
        {"query": zeros(8)},
        ValueError,
        "query: expected shape (B, H, L, D), (H, L, D) or (L, D), got (8,)",
    ),
    "five_dimensions": (
        {"query": zeros(1, 2, 4, 3, 8)},
        ValueError,
        "query: expected shape (B, H, L, D), (H, L, D) or (L, D), got (1, 2, 4, 3, 8)",
    ),
    "key_rank": (
        {"key": zeros(2, 5, 8)},
        ValueError,
        "key: expected 4 dimensions as in query, got shape (2, 5, 8)",
    ),
    "value_rank": (
        {"query": zeros(3, 8), "key": zeros(5, 8)},
        ValueError,
        "value: expected 2 dimensions as in query, got shape (2, 2, 5, 6)",
    ),
    "no_head_dimension": (
        {"query": zeros(2, 4, 3, 0), "key": zeros(2, 2, 5, 0)},
        ValueError,
        "query: expected a head dimension of at least 1, got shape (2, 4, 3, 0)",
    ),
    "key_batch": (
        {"key": zeros(1, 2, 5, 8)},
        ValueError,
        "key: expected the batch size of query, 2, got shape (1, 2, 5, 8)",
    ),
    "value_batch": (
        {"value": zeros(3, 2, 5, 6)},
        ValueError,
        "value: expected the batch size of query, 2, got shape (3, 2, 5, 6)",
    ),
    "heads": (
        {"key": zeros(2, 3, 5, 8)},
        ValueError,
        "key: expected a number of heads that divides query's 4, got shape (2, 3, 5, 8)",
    ),
    "more_key_heads": (
        {"key": zeros(2, 8, 5, 8)},
        ValueError,
        "key: expected a number of heads that divides query's 4, got shape (2, 8, 5, 8)",
    ),
    "no_key_heads": (
        {"key": zeros(2, 0, 5, 8)},
        ValueError,
        "key: expected a number of heads that divides query's 4, got shape (2, 0, 5, 8)",
    ),
    "heads_of_three_dimensions": (
        {"query": zeros(4, 3, 8), "key": zeros(3, 5, 8), "value": zeros(3, 5, 6)},
        ValueError,
        "key: expected a number of heads that divides query's 4, got shape (3, 5, 8)",
    ),
    "value_heads": (
        {"value": zeros(2, 4, 5, 6)},
        ValueError,
        "value: expected the number of heads of key, 2, got shape (2, 4, 5, 6)",
    ),
    "head_dimension": (
        {"key": zeros(2, 2, 5, 7)},
        ValueError,
        "key: expected the head dimension of query, 8, got shape (2, 2, 5, 7)",
    ),
    "value_length": (
        {"value": zeros(2, 2, 6, 6)},
        ValueError,
        "value: expected the length of key, 5, got shape (2, 2, 6, 6)",
    ),
    "bias_shape": (
        {"bias": zeros(3, 4)},
        ValueError,
        "bias: expected a shape that broadcasts to (B, Hq, Lq, Lk) = (2, 4, 3, 5), got (3, 4)",
    ),
    "bias_key_heads": (
        {"bias": zeros(1, 2, 3, 5)},
        ValueError,
        "bias: expected a shape that broadcasts to (B, Hq, Lq, Lk) = (2, 4, 3, 5), got (1, 2, 3, 5)",
    ),
    "bias_rank": (
        {"bias": zeros(1, 1, 1, 1, 1)},
        ValueError,
        "bias: expected a shape that broadcasts to (B, Hq, Lq, Lk) = (2, 4, 3, 5), got (1, 1, 1, 1, 1)",
    ),
    "sinks_shape": ({"sinks": zeros(2)}, ValueError, "sinks: expected shape (Hq,) = (4,), got (2,)"),
    "sinks_rank": ({"sinks": zeros(2, 4)}, ValueError, "sinks: expected shape (Hq,) = (4,), got (2, 4)"),
    "slopes_shape": (
        {"alibi_slopes": zeros(3)},
        ValueError,
        "alibi_slopes: expected shape (Hq,) = (4,) or (B, Hq) = (2, 4), got (3,)",
    ),
    "slopes_batch": (
        {"alibi_slopes": zeros(1, 4)},
        ValueError,
        "alibi_slopes: expected shape (Hq,) = (4,) or (B, Hq) = (2, 4), got (1, 4)",
    ),
    "seed_shape": (
        {"dropout_p": 0.5, "dropout_seed": zeros(1, dtype=torch.int64)},
        ValueError,
        "dropout_seed: expected a tensor of shape (), got (1,)",
    ),
    "mask_lengths": (
        {"mask": M.KeyLengths([1, 2, 3])},
        ValueError,
        "mask: expected KeyLengths of shape (2,), got (3,)",
    ),
    # numbers
    "scale_nan": ({"scale": math.nan}, ValueError, "scale: expected a finite number or None, got nan"),
    "scale_inf": ({"scale": -math.inf}, ValueError, "scale: expected a finite number or None, got -inf"),
    "softcap_negative": (
        {"softcap": -1.0},
        ValueError,
        "softcap: expected a finite number >= 0 or None, got -1.0",
    ),
    "softcap_nan": (
        {"softcap": math.nan},
        ValueError,
        "softcap: expected a finite number >= 0 or None, got nan",
    ),
    "softcap_inf": (
        {"softcap": math.inf},
        ValueError,
        "softcap: expected a finite number >= 0 or None, got inf",
    ),
    "dropout_p_above": ({"dropout_p": 1.5}, ValueError, "dropout_p: expected a number from 0 to 1, got 1.5"),
    "dropout_p_below": (
        {"dropout_p": -0.1},
        ValueError,
        "dropout_p: expected a number from 0 to 1, got -0.1",
    ),
    "dropout_p_nan": (
        {"dropout_p": math.nan},
        ValueError,
        "dropout_p: expected a number from 0 to 1, got nan",
    ),
    "seed_too_large": (
        {"dropout_p": 0.5, "dropout_seed": 2**63},
        ValueError,
        "dropout_seed: expected a 64-bit integer, got 9223372036854775808",
    ),
}


def fail(*args, **kwargs):
    raise AssertionError("computed before the checks were done")


@pytest.mark.parametrize("case", TABLE)
def test_attention(case, monkeypatch):
    changes, error, message = TABLE[case]
    monkeypatch.setattr(functional, "attention_op", fail)
    monkeypatch.setattr(functional, "_seed_tensor", fail)
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        ax.attention(**good(**changes))


def test_what_the_table_changes_is_good():
    out = ax.attention(**good())
    assert out.shape == (2, 4, 3, 6)


def test_unknown_and_positional_options_are_refused():
    with pytest.raises(TypeError, match="is_causal"):
        ax.attention(**good(), is_causal=True)
    with pytest.raises(TypeError, match="positional"):
        ax.attention(*good().values(), M.Causal())


@pytest.mark.parametrize(
    "numbers",
    [
        {"scale": 2},
        {"scale": -0.5},
        {"scale": 0},
        {"softcap": 0},
        {"softcap": 3},
        {"dropout_p": 0},
        {"dropout_p": 1},
    ],
    ids=str,
)
def test_any_number_will_do(numbers):
    assert ax.attention(**good(), **numbers).shape == (2, 4, 3, 6)


def test_numpy_numbers_will_do():
    numpy = pytest.importorskip("numpy", reason="numpy is not installed")
    out = ax.attention(
        **good(), scale=numpy.float32(0.5), softcap=numpy.float64(2), dropout_p=numpy.float32(0)
    )
    assert out.shape == (2, 4, 3, 6)
