"""The small CUDA operators against their definitions."""

import pytest
import torch

from attention_ext import reference
from attention_ext._ops import library


@pytest.mark.parametrize(
    "sizes", [(1,), (63,), (2, 64), (3, 2, 65), (2, 1, 3, 200), (150, 70), (0, 5), (5, 0)], ids=str
)
def test_pack_mask_bits(sizes):
    keep = torch.rand(sizes) > 0.5
    words = library.pack_mask_bits(keep)
    assert words.shape == (*sizes[:-1], (sizes[-1] + 63) // 64)
    unpacked = (words[..., None] >> torch.arange(64)) & 1
    bits = unpacked.flatten(-2).bool()
    assert torch.equal(bits[..., : sizes[-1]], keep)
    assert not bits[..., sizes[-1] :].any()


def test_pack_mask_bits_of_any_strides():
    keep = torch.rand(70, 3) > 0.5
    assert torch.equal(library.pack_mask_bits(keep.T), library.pack_mask_bits(keep.T.contiguous()))


@pytest.mark.parametrize("p", [0.25, 0.9, 1.0])
def test_dropout_keep(p):
    seed = torch.tensor(-1234567890123456789)
    keep = library.dropout_keep(seed, p, 2, 3, 5, 70)
    assert torch.equal(keep, reference.dropout_keep(seed, p, 2, 3, 5, 70))
