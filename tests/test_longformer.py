"""LongformerAttention: against Transformers', against dense attention with its pattern, inside models."""

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close
from transformers import LongformerConfig
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

import attention_ext as ax
from attention_ext.masks import Causal, Dense, Global, KeyLengths, SlidingWindow
from attention_ext.nn import LongformerAttention

pytestmark = pytest.mark.once

E, H, L, WINDOW = 16, 4, 48, 8
CLOSE = {"atol": 1e-5, "rtol": 1e-4}  # float32: in float64 Transformers' minimum overflows its softmax


def transformers_layer():
    config = LongformerConfig(
        hidden_size=E,
        num_attention_heads=H,
        attention_window=[2 * WINDOW],
        attention_probs_dropout_prob=0.0,
        num_hidden_layers=1,
    )
    return LongformerSelfAttention(config, 0)


def with_weights_of(theirs):
    """A layer with the weights of Transformers', whose own output projection is another module."""
    ours = LongformerAttention(E, H, window=WINDOW, batch_first=True)
    with torch.no_grad():
        ours.in_proj_weight.copy_(torch.cat([theirs.query.weight, theirs.key.weight, theirs.value.weight]))
        ours.in_proj_bias.copy_(torch.cat([theirs.query.bias, theirs.key.bias, theirs.value.bias]))
        ours.global_q_proj_weight.copy_(theirs.query_global.weight)
        ours.global_k_proj_weight.copy_(theirs.key_global.weight)
        ours.global_v_proj_weight.copy_(theirs.value_global.weight)
        ours.global_in_proj_bias.copy_(
            torch.cat([theirs.query_global.bias, theirs.key_global.bias, theirs.value_global.bias])
        )
        ours.out_proj.weight.copy_(torch.eye(E))
        ours.out_proj.bias.zero_()
    return ours


@pytest.mark.parametrize("padded", [0, 5])
@pytest.mark.parametrize(
    "tokens", [[[], []], [[0], [0]], [[0, 1, 30], [7]], [[], [2, 40]], [[0, 3, 4, 7, 29], [1]]]
)
def test_output_and_gradients_are_those_of_transformers(tokens, padded):
    torch.manual_seed(0)
    theirs = transformers_layer()
    ours = with_weights_of(theirs)
    x = torch.randn(2, L, E)
    padding = torch.zeros(2, L, dtype=torch.bool)
    padding[1, L - padded :] = True
    is_global = torch.zeros(2, L, dtype=torch.bool)
    for b, positions in enumerate(tokens):
        is_global[b, positions] = True
    hints = torch.where(is_global, 10000.0, 0.0).masked_fill(padding, -10000.0)
    there, here = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = theirs(
        there,
        attention_mask=hints,
        is_index_masked=hints < 0,
        is_index_global_attn=hints > 0,
        is_global_attn=bool(is_global.any()),
    )[0]
    actual = ours(here, here, here, key_padding_mask=padding, global_mask=is_global, need_weights=False)[0]
    assert_close(actual[~padding], expected[~padding], **CLOSE)

    cotangent = torch.randn_like(x).masked_fill(padding[..., None], 0.0)
    expected.backward(cotangent)
    actual.backward(cotangent)
    assert_close(here.grad, there.grad, **CLOSE)
    for name in ("query", "key", "value"):
        rows = slice(*{"query": (0, E), "key": (E, 2 * E), "value": (2 * E, 3 * E)}[name])
        local, other = getattr(theirs, name), getattr(theirs, f"{name}_global")
        assert_close(ours.in_proj_weight.grad[rows], local.weight.grad, **CLOSE)
        assert_close(ours.in_proj_bias.grad[rows], local.bias.grad, **CLOSE)
        if is_global.any():
            assert_close(getattr(ours, f"global_{name[0]}_proj_weight").grad, other.weight.grad, **CLOSE)
            assert_close(ours.global_in_proj_bias.grad[rows], other.bias.grad, **CLOSE)


# As attention with its pattern: with equal projections a global token is one that sees, and is seen by, all.

MASKS = {
    "bool": ~torch.ones(24, 24, dtype=torch.bool).tril(),
    "float": torch.randn(24, 24),
    "heads": (torch.rand(8, 24, 24) > 0.7) & ~torch.eye(24, dtype=torch.bool),
    "mask": Causal() & KeyLengths([24, 22]),
}


@pytest.mark.parametrize("mask", [None, *MASKS])
@pytest.mark.parametrize("tokens", [0, 6, [5, 11]])  # more than a head has columns, and fewer
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_layer_is_attention_with_its_pattern(batch_first, tokens, mask):
    layer, dense = (
        make(E, H, batch_first=batch_first, dtype=torch.float64, **own)
        for make, own in (
            (LongformerAttention, {"window": (2, 3), "global_tokens": tokens}),
            (torch.nn.MultiheadAttention, {}),
        )
    )
    layer.load_state_dict(dense.state_dict())
    pattern = layer.pattern(24, 24)
    assert pattern == SlidingWindow(2, 3) | Global(tokens)
    hidden, bias = ~pattern.dense(24, 24)[0, 0], 0.0
    own = MASKS.get(mask)
    if isinstance(own, ax.masks.Mask):
        hidden = hidden | ~own.dense(24, 24).expand(2, H, -1, -1).flatten(0, 1)
    elif mask == "float":
        bias = own = own.double()
    elif own is not None:
        hidden = hidden | own
    everything = torch.zeros(hidden.shape, dtype=torch.float64).masked_fill(hidden, -torch.inf) + bias
    x = torch.randn(2, 24, E, dtype=torch.float64)
    x = x if batch_first else x.transpose(0, 1)
    expected = dense(x, x, x, attn_mask=everything)
    actual = layer(x, x, x, attn_mask=own)
    assert_close(actual, expected)
    assert_close(layer(x, x, x, attn_mask=own, need_weights=False)[0], expected[0])


def test_lengths_that_differ_and_sizes_of_key_and_value():
    options = {"kdim": 6, "vdim": 10, "batch_first": True, "dtype": torch.float64}
    dense = torch.nn.MultiheadAttention(E, H, **options)
    layer = LongformerAttention(E, H, window=4, global_tokens=[3, 22], **options)
    layer.load_state_dict(dense.state_dict())
    assert layer.global_k_proj_weight.shape == (E, 6)
    q, k, v = (torch.randn(2, n, d, dtype=torch.float64) for n, d in ((9, E), (30, 6), (30, 10)))
    hidden = ~layer.pattern(9, 30).dense(9, 30)[0, 0]
    assert_close(layer(q, k, v), dense(q, k, v, attn_mask=hidden))


def test_rows_of_a_batch_have_their_own_tokens():
    torch.manual_seed(0)
    layer = LongformerAttention(E, H, window=2, batch_first=True, dtype=torch.float64)
    torch.nn.init.normal_(layer.global_q_proj_weight)
    x = torch.randn(3, 20, E, dtype=torch.float64)
    chosen = torch.zeros(3, 20, dtype=torch.bool)
    chosen[0, [3, 9, 10]] = chosen[2, 15] = True
    together = layer(x, x, x, global_mask=chosen)
    for b in range(3):
        alone = layer(x[b], x[b], x[b], global_mask=chosen[b])
        assert_close((together[0][b], together[1][b]), alone)
        positions = chosen[b].nonzero()[:, 0].tolist()
        fixed = LongformerAttention(
            E, H, window=2, global_tokens=positions, batch_first=True, dtype=torch.float64
        )
        fixed.load_state_dict(layer.state_dict())
        assert_close(fixed(x[b], x[b], x[b]), alone)


def test_gradcheck():
    layer = LongformerAttention(4, 2, window=1, global_tokens=[2], dtype=torch.float64)
    x = torch.randn(6, 1, 4, dtype=torch.float64, requires_grad=True)
    names = [*dict(layer.named_parameters())]

    def run(x, *values):
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, parameters, (x, x, x), {"need_weights": False})[0]

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


def test_state_dict_travels_and_compiles():
    dense = torch.nn.MultiheadAttention(E, H, bias=False)
    layer = LongformerAttention(E, H, bias=False, window=2, global_tokens=1)
    assert [name for name in layer.state_dict() if "global" not in name] == [*dense.state_dict()]
    layer.load_state_dict(dense.state_dict())
    assert_close(
        torch.cat([layer.global_q_proj_weight, layer.global_k_proj_weight]), layer.in_proj_weight[: 2 * E]
    )
    torch.nn.init.normal_(layer.global_v_proj_weight)
    other = torch.nn.ModuleDict({"a": LongformerAttention(E, H, bias=False, window=2, global_tokens=1)})
    other.load_state_dict(torch.nn.ModuleDict({"a": layer}).state_dict())
    x = torch.randn(20, 2, E)
    expected = layer(x, x, x, need_weights=False)[0]
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for same in (other["a"], copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), compiled):
        assert_close(same(x, x, x, need_weights=False)[0], expected)
    exported = torch.export.export(layer, (x, x, x), {"need_weights": False})
    assert_close(exported.module()(x, x, x, need_weights=False)[0], expected)


@pytest.mark.parametrize("tokens", [2, 6])
def test_autocast_and_dropout(tokens):
    layer = LongformerAttention(E, H, dropout=0.5, window=4, global_tokens=tokens, batch_first=True)
    torch.nn.init.normal_(layer.global_in_proj_bias)
    x = torch.randn(1, 20, E)
    exact = layer.eval()(x, x, x)[0]
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        out = layer(x, x, x)[0]
        assert out.dtype == torch.bfloat16
    assert_close(out.float(), exact, atol=0.03, rtol=0.03)
    layer.train()
    torch.manual_seed(0)
    total = sum(layer(x, x, x, need_weights=False)[0].detach() for _ in range(2000)) / 2000
    assert_close(total, exact, atol=0.1, rtol=0.1)  # the mean of the draws


def test_replace_attention():
    layer = torch.nn.TransformerEncoderLayer(E, H, 32, dropout=0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2).eval()
    swapped = copy.deepcopy(model)
    report = ax.replace_attention(swapped, "longformer", window=3, global_tokens=2)
    assert report.replaced == ("layers.0.self_attn", "layers.1.self_attn")
    x = torch.randn(2, 20, E)
    hidden = ~(SlidingWindow(3, 3) | Global(2)).dense(20, 20)[0, 0]
    assert_close(swapped(x), model(x, mask=hidden))


def test_time_and_memory_do_not_follow_the_square():
    layer = LongformerAttention(8, 1, window=64, global_tokens=2, batch_first=True)
    x = torch.randn(1, 30_000, 8, requires_grad=True)
    layer(x, x, x, need_weights=False)[0].square().mean().backward()
    assert x.grad.isfinite().all()


BOOLS = torch.zeros(2, 20, dtype=torch.bool)


@pytest.mark.parametrize(
    ("own", "given", "error", "message"),
    [
        ({"window": 0}, {}, ValueError, "window: expected at least 1, got 0"),
        ({"window": 2, "global_tokens": -1}, {}, ValueError, "tokens: expected a number or positions of at"),
        ({"window": 2, "global_tokens": 1.5}, {}, TypeError, "tokens: expected an int or a sequence"),
        ({"window": 2, "add_bias_kv": True}, {}, ValueError, "add_bias_kv: expected False with Longformer"),
        (
            {"window": 2},
            {"global_mask": BOOLS.float()},
            TypeError,
            "global_mask: expected a bool tensor, got",
        ),
        ({"window": 2}, {"global_mask": [True]}, TypeError, "global_mask: expected a bool tensor, got list"),
        ({"window": 2}, {"global_mask": BOOLS.T}, ValueError, r"global_mask: expected shape \(2, 20\), got"),
    ],
)
def test_bad_arguments(own, given, error, message):
    x = torch.randn(2, 20, E)
    with pytest.raises(error, match=message):
        LongformerAttention(E, H, batch_first=True, **own)(x, x, x, **given)


def test_masks_of_what_a_global_token_sees_are_joined():
    layer = LongformerAttention(E, H, window=2, batch_first=True, dtype=torch.float64)
    x = torch.randn(2, 20, E, dtype=torch.float64)
    chosen = BOOLS.clone()
    chosen[0, 3] = chosen[1, [4, 12]] = True
    own = torch.rand(2, H, 20, 20) > 0.3
    expected = layer(x, x, x, attn_mask=Dense(own), global_mask=chosen)
    assert_close(layer(x, x, x, attn_mask=~own.flatten(0, 1), global_mask=chosen), expected)
