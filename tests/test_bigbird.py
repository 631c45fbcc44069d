"""BigBirdAttention: its pattern, and against Transformers' with its own random blocks imposed."""

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close
from transformers import BigBirdConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

import attention_ext as ax
from attention_ext.nn import BigBirdAttention

pytestmark = pytest.mark.once

E, H, BLOCK, RANDOM = 16, 4, 8, 2
NAMES = ("query", "key", "value")


def transformers_layer(length):
    """In training, and the random blocks it will draw, bool (H, blocks, blocks)."""
    config = BigBirdConfig(
        hidden_size=E,
        num_attention_heads=H,
        block_size=BLOCK,
        num_random_blocks=RANDOM,
        max_position_embeddings=length,
        attention_probs_dropout_prob=0.0,
    )
    layer = BigBirdBlockSparseAttention(config, seed=3).double().train()
    drawn = []
    draw = layer._bigbird_block_rand_mask_with_head
    layer._bigbird_block_rand_mask_with_head = lambda **sizes: drawn.append(draw(**sizes)) or drawn[-1]

    def blocks():
        chosen = torch.stack([torch.as_tensor(head) for head in drawn[-1]]).long()
        return (
            torch.zeros(H, length // BLOCK, length // BLOCK)
            .bool()
            .index_put(
                (
                    torch.arange(H)[:, None, None],
                    torch.arange(1, length // BLOCK - 1)[:, None],
                    chosen,
                ),
                torch.tensor(True),
            )
        )

    return layer, blocks


@pytest.mark.parametrize("blocks", [13, 16])
@pytest.mark.parametrize("padded", [0, 11])
def test_output_and_gradients_are_those_of_transformers(blocks, padded):
    torch.manual_seed(0)
    length = blocks * BLOCK
    theirs, drawn = transformers_layer(length)
    keep = torch.ones(2, length, dtype=torch.float64)
    keep[1, length - padded :] = 0.0
    x = torch.randn(2, length, E, dtype=torch.float64)
    there, here = x.clone().requires_grad_(), x.clone().requires_grad_()
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(keep, BLOCK)
    expected = theirs(
        there,
        band_mask=band,
        from_mask=rows,
        to_mask=columns,
        from_blocked_mask=blocked,
        to_blocked_mask=blocked,
    )[0]

    ours = BigBirdAttention(
        E, H, block_size=BLOCK, random_blocks=drawn(), batch_first=True, dtype=torch.float64
    )
    with torch.no_grad():
        ours.in_proj_weight.copy_(torch.cat([getattr(theirs, name).weight for name in NAMES]))
        ours.in_proj_bias.copy_(torch.cat([getattr(theirs, name).bias for name in NAMES]))
        ours.out_proj.weight.copy_(torch.eye(E))
        ours.out_proj.bias.zero_()
    padding = keep == 0
    actual = ours(here, here, here, key_padding_mask=padding, need_weights=False)[0]
    assert_close(actual[~padding], expected[~padding])

    cotangent = torch.randn_like(x).masked_fill(padding[..., None], 0.0)
    expected.backward(cotangent)
    actual.backward(cotangent)
    assert_close(here.grad, there.grad)
    weights = torch.cat([getattr(theirs, name).weight.grad for name in NAMES])
    biases = torch.cat([getattr(theirs, name).bias.grad for name in NAMES])
    assert_close(ours.in_proj_weight.grad, weights)
    assert_close(ours.in_proj_bias.grad, biases)


@pytest.mark.parametrize(("first", "last"), [(1, 1), (0, 0), (2, 0)])
@pytest.mark.parametrize("window", [1, 3, 5])
def test_the_pattern(window, first, last):
    layer = BigBirdAttention(
        E, H, block_size=5, window_blocks=window, global_blocks=(first, last), random_blocks=2
    )
    length, n = 98, 20
    seen = layer.pattern(length, length).dense(length, length)[0, :, ::5, ::5]
    i, j = torch.arange(n)[:, None], torch.arange(n)
    near = (i - j).abs() <= window // 2
    by_all = (i < first) | (i >= n - last) | (j < first) | (j >= n - last)
    always = near | by_all
    assert seen[:, always].all()
    drawn = seen & ~always
    expected = 2 * (~always).any(1)
    assert torch.equal(drawn.sum(-1), expected.expand(H, n))
    assert not torch.equal(drawn[0], drawn[1])
    # Each block has its turn: 2 of at least 13 for 20 query blocks of 4 heads.
    assert drawn.any(0).any(0)[first : n - last].all()
    again = BigBirdAttention(
        E, H, block_size=5, window_blocks=window, global_blocks=(first, last), random_blocks=2, seed=1
    )
    assert not torch.equal(again.pattern(length, length).dense(length, length)[0, :, ::5, ::5], seen)


@pytest.mark.parametrize("blocks", [0, 1, 50])
def test_few_and_many_random_blocks(blocks):
    layer = BigBirdAttention(E, H, block_size=4, global_blocks=(0, 0), random_blocks=blocks)
    seen = layer.pattern(40, 40).dense(40, 40)[0, :, ::4, ::4]
    outside = (torch.arange(10)[:, None] - torch.arange(10)).abs() > 1
    assert torch.equal((seen & outside).sum(-1), outside.sum(-1).clamp(max=blocks).expand(H, 10))


def test_a_layer_is_attention_with_its_pattern():
    layer = BigBirdAttention(E, H, block_size=4, batch_first=True, dtype=torch.float64)
    dense = torch.nn.MultiheadAttention(E, H, batch_first=True, dtype=torch.float64)
    layer.load_state_dict(dense.state_dict())
    x = torch.randn(2, 50, E, dtype=torch.float64)
    hidden = ~layer.pattern(50, 50).dense(50, 50)
    expected = dense(x, x, x, attn_mask=hidden.expand(2, -1, -1, -1).flatten(0, 1))
    assert_close(layer(x, x, x), expected)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for same in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), compiled):
        assert_close(same(x, x, x, need_weights=False)[0], expected[0])
    exported = torch.export.export(layer, (x, x, x), {"need_weights": False})
    assert_close(exported.module()(x, x, x, need_weights=False)[0], expected[0])


def test_blocks_given_travel_with_the_layer():
    drawn = torch.rand(H, 6, 6) > 0.7
    layer = BigBirdAttention(E, H, block_size=4, random_blocks=drawn, batch_first=True)
    assert [*layer.state_dict()] == [*torch.nn.MultiheadAttention(E, H).state_dict()]
    x = torch.randn(1, 24, E)
    expected = layer(x, x, x, need_weights=False)[0]
    for same in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_close(same(x, x, x, need_weights=False)[0], expected)
    assert layer.to("meta").drawn_blocks.device.type == "meta"


def test_replace_attention():
    layer = torch.nn.TransformerEncoderLayer(E, H, 32, dropout=0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2).eval()
    swapped = copy.deepcopy(model)
    report = ax.replace_attention(swapped, "bigbird", block_size=4, random_blocks=1)
    assert report.replaced == ("layers.0.self_attn", "layers.1.self_attn")
    x = torch.randn(1, 40, E)
    hidden = ~swapped.layers[0].self_attn.pattern(40, 40).dense(40, 40)[0]
    assert_close(swapped(x), model(x, mask=hidden))


def test_the_pattern_is_made_once():
    layer, twin = (BigBirdAttention(E, H, block_size=4) for _ in range(2))
    assert layer.pattern(40, 40) is twin.pattern(40, 40)
    with torch.inference_mode():
        mask = layer.pattern(44, 44)
    q = torch.randn(1, H, 44, 4, requires_grad=True)
    ax.attention(q, q, q, mask=mask).sum().backward()
    assert q.grad.isfinite().all()


@pytest.mark.parametrize(
    ("own", "length", "error", "message"),
    [
        ({"block_size": 0}, 8, ValueError, "block_size: expected 1 to"),
        ({"window_blocks": 2}, 8, ValueError, "window_blocks: expected an odd number, got 2"),
        ({"global_blocks": 1}, 8, ValueError, "global_blocks: expected two numbers"),
        ({"global_blocks": (1, -1)}, 8, ValueError, "global_blocks: expected 0 to"),
        ({"random_blocks": 1.0}, 8, TypeError, "random_blocks: expected an int, got float"),
        ({"random_blocks": torch.ones(2, 2)}, 8, TypeError, "block_map: expected a bool tensor"),
        (
            {"random_blocks": torch.ones(2, 2) > 0},
            300,
            ValueError,
            "random_blocks: expected 5 x 5 blocks for",
        ),
        ({"random_blocks": torch.ones(3, 5, 5) > 0}, 300, ValueError, "mask: expected batch size"),
        ({"seed": -1}, 8, ValueError, "seed: expected 0 to"),
    ],
)
def test_bad_arguments(own, length, error, message):
    x = torch.randn(1, length, E)
    with pytest.raises(error, match=message):
        BigBirdAttention(E, H, batch_first=True, **own)(x, x, x)


def test_lengths_that_differ_are_refused():
    layer = BigBirdAttention(E, H, block_size=4, batch_first=True)
    x, y = torch.randn(1, 8, E), torch.randn(1, 12, E)
    with pytest.raises(ValueError, match="key: expected the length of query, 8, got 12"):
        layer(x, y, y)
