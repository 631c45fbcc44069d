"""The raw op that tells which weights a dropout draw keeps."""

import pytest
import torch

from attention_ext import reference
from attention_ext._ops import library


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.4, 1.0])
@pytest.mark.parametrize("seed", [0, -1, 2**62 + 12345])
@pytest.mark.parametrize("sizes", [(2, 3, 5, 7), (1, 1, 1, 64), (0, 2, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_equals_the_reference(sizes, seed, p):
    seed = torch.tensor(seed)
    keep = library.dropout_keep(seed, p, *sizes)
    assert torch.equal(keep, reference.dropout_keep(seed, p, *sizes))


def test_opcheck():
    torch.library.opcheck(library.dropout_keep, (torch.tensor(3), 0.5, 2, 3, 4, 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.tensor(1), 1.5, 1, 1, 1, 1), "dropout_p: expected 0 to 1, got 1.5"),
        ((torch.tensor(1.0), 0.5, 1, 1, 1, 1), "dropout_seed: expected one int64"),
        ((torch.tensor(1), 0.5, 1, -1, 1, 1), "sizes: expected none below 0"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        library.dropout_keep(*arguments)
