"""torch's default device decides nothing inside: tensors made on the way lie where the inputs do."""

import ast
from pathlib import Path

import pytest
import torch
from helpers import MASKS, SHAPES, make_qkv

import attention_ext as ax
from attention_ext import masks

pytestmark = pytest.mark.cpu_only("about the default device")

PACKAGE = Path(ax.__file__).parent
FACTORIES = {
    *("arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn"),
    *("randperm", "tensor", "zeros"),
}
# Where the default device is meant: a caller's list becomes a tensor, a caller's function gets positions, and
# an empty tensor only shows what kind of tensors torch makes.
MEANT = {
    "masks/_function.py": ["arange"],
    "masks/_tensor.py": ["tensor"],
    "nn/sparse_attention.py": ["empty"],
}


def without_a_device(source):
    """Names of torch's factories that are called without a device."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=name), keywords=keywords):
                if name in FACTORIES and not {k.arg for k in keywords} & {"device", None}:
                    yield name


def test_the_search_finds_them():
    source = "torch.zeros(2)\ntorch.ones(2, device=d)\ntorch.empty(1, **made)\nx.tensor(1)\ntorch.eye(3)"
    assert list(without_a_device(source)) == ["zeros", "eye"]


def test_the_package_says_where():
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in sorted(PACKAGE.rglob("*.py"))
        if (names := list(without_a_device(path.read_text())))
    }
    assert found == MEANT


# The same on the CPU while new tensors have no memory: what lands on the default device is an error.


@pytest.mark.parametrize("name", MASKS)
def test_masks_and_attention(name):
    shape = SHAPES["odd"]
    qkv = make_qkv(shape, requires_grad=True)
    mask = MASKS[name](shape)
    options = {"alibi_slopes": torch.rand(shape.Hq), "dropout_p": 0.1, "dropout_seed": 3}

    def run(function, with_mask):
        out = function(*qkv, mask=with_mask, **options)
        return [out, *torch.autograd.grad(out.sum(), qkv)]

    functions = [ax.attention]
    if mask is None or mask._tensors():  # else dense() is meant to be on the default device
        functions.append(ax.reference.attention)
    expected = [run(f, mask) for f in functions]
    fresh = mask and mask._unflatten(*mask._flatten())  # nothing is kept of it
    with torch.device("meta"):
        found = [run(f, fresh) for f in functions]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_mask_of_a_blockmask():
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    block_mask = flex.create_block_mask(lambda b, h, q, k: q >= k, None, None, 300, 300, device="cpu")
    with torch.device("meta"):
        mask = masks.Blocks.from_flex(block_mask)
        dense = mask.dense(300, 300)
    assert torch.equal(dense, masks.Causal().dense(300, 300))


CALLS = {
    "merge": lambda q, k, v: ax.merge_attention_states(
        *zip(*(ax.attention(q, k, v, return_lse=True),) * 2, strict=True)
    ),
    "varlen": lambda q, k, v: ax.attention_varlen(
        *(t[0].transpose(0, 1) for t in (q, k, v)),
        torch.tensor([0, 30, 70], device="cpu"),
        mask=masks.Causal(),
    ),
    "attention_map": lambda q, k, v: tuple(
        t for t in ax.attention_map(q, k, masks.Causal(), rows=[1, 2], bins=4) if t is not None
    ),
    "select_blocks": lambda q, k, v: ax.select_blocks(q, k, 16, 2).dense(70, 70),
    "reference_select_blocks": lambda q, k, v: ax.reference.select_blocks(q, k, 16, 2).dense(70, 70),
    "linear_attention": lambda q, k, v: ax.linear_attention(q, k, v, causal=True, return_state=True)[0],
    "reference_linear_attention": lambda q, k, v: ax.reference.linear_attention(
        q, k, v, causal=True, key_lengths=torch.tensor([70, 50], device="cpu")
    ),
    "decay": lambda q, k, v: ax.linear_attention(
        q, k, v, causal=True, normalize=False, decay=-k[..., 0].abs(), key_lengths=[70, 50]
    ),
    "delta_rule": lambda q, k, v: ax.delta_rule(q, k, v, k[..., 0].sigmoid()),
    "reference_delta_rule": lambda q, k, v: ax.reference.delta_rule(q, k, v, k[..., 0].sigmoid()),
}


@pytest.mark.parametrize("name", CALLS)
def test_operators(name):
    qkv = [torch.randn(2, 2, 70, 16) for _ in range(3)]
    expected = CALLS[name](*qkv)
    with torch.device("meta"):
        found = CALLS[name](*qkv)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


LAYERS = {
    "MultiheadAttention": lambda: ax.MultiheadAttention(16, 2, batch_first=True),
    "SlidingWindowAttention": lambda: ax.nn.SlidingWindowAttention(16, 2, window=9, batch_first=True),
    "LongformerAttention": lambda: ax.nn.LongformerAttention(16, 2, window=8, batch_first=True),
    "BigBirdAttention": lambda: ax.nn.BigBirdAttention(16, 2, block_size=8, batch_first=True),
    "MoBAAttention": lambda: ax.nn.MoBAAttention(16, 2, block_size=8, top_k=2, batch_first=True),
    "NativeSparseAttention": lambda: ax.nn.NativeSparseAttention(16, 2, batch_first=True),
    "LinformerAttention": lambda: ax.nn.LinformerAttention(16, 2, max_length=70, batch_first=True),
    "NystromAttention": lambda: ax.nn.NystromAttention(16, 2, batch_first=True),
    "PerformerAttention": lambda: ax.nn.PerformerAttention(16, 2, batch_first=True),
    "RandomFeatureAttention": lambda: ax.nn.RandomFeatureAttention(16, 2, batch_first=True),
    "LinearAttention": lambda: ax.nn.LinearAttention(16, 2, batch_first=True),
    "Retention": lambda: ax.nn.Retention(16, 2),
    "GatedLinearAttention": lambda: ax.nn.GatedLinearAttention(16, 2),
    "DeltaNet": lambda: ax.nn.DeltaNet(16, 2),
    "GatedDeltaNet": lambda: ax.nn.GatedDeltaNet(16, 2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    layer, given = LAYERS[name]().eval(), torch.randn(2, 70, 16)

    def run():
        x = given.clone().requires_grad_()
        out = (
            layer(x, x, x, need_weights=False) if isinstance(layer, torch.nn.MultiheadAttention) else layer(x)
        )
        out = out[0] if isinstance(out, tuple) else out
        return out, *torch.autograd.grad(out.sum(), [x, *layer.parameters()], allow_unused=True)

    expected = run()
    with torch.device("meta"):
        found = run()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
