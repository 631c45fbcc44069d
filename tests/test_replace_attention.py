"""ax.replace_attention on torch's transformers and on models of others."""

import copy
import io
import pickle

import pytest
import torch
import transformers
from multihead_attention_cases import (
    Watch,
    one_thread,  # noqa: F401  a fixture
)
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.testing import assert_close

import attention_ext as ax

N, L, S, E, H = 3, 6, 5, 8, 2


def run_both(model, *inputs, calls, atol=1e-12, **options):
    """Same output before and after the swap, which must call our operator `calls` times and no other."""
    swapped = copy.deepcopy(model)
    report = ax.replace_attention(swapped)
    assert report.model is swapped
    torch.manual_seed(0)
    expected = model(*inputs, **options)
    torch.manual_seed(0)
    with Watch() as watch:
        output = swapped(*inputs, **options)
    assert (watch.attention_calls, watch.around) == (calls, [])
    assert_close(output, expected, atol=atol, rtol=1e-7)
    return swapped, report


def sample(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def encoder(layers=2, **options):
    options = {"dropout": 0.0, "batch_first": True, "dtype": torch.float64, **options}
    layer = nn.TransformerEncoderLayer(E, H, 16, **options)
    return nn.TransformerEncoder(layer, layers)


PADDING = torch.arange(L) >= torch.tensor([L, L - 1, L - 3])[:, None]
CAUSAL = torch.ones(L, L, dtype=torch.bool).triu(1)
ENCODER_MASKS = {
    "none": {},
    "padding": {"src_key_padding_mask": PADDING},
    "causal": {"mask": CAUSAL},
    "causal flag": {"mask": CAUSAL, "is_causal": True},
    "both": {"mask": CAUSAL, "src_key_padding_mask": PADDING},
    "float": {"mask": sample(L, L)},
    "heads": {"mask": CAUSAL.expand(N * H, L, L)},
}


# torch's transformers.


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masks", ENCODER_MASKS)
@pytest.mark.parametrize(
    "options", [{}, {"norm_first": True}, {"batch_first": False}, {"activation": "gelu"}]
)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor", "ignore:The PyTorch API of nested")
def test_transformer_encoder(options, masks, training, grad):
    model = encoder(**options).train(training)
    x = sample(N, L, E) if options.get("batch_first", True) else sample(L, N, E)
    swapped = copy.deepcopy(model)
    ax.replace_attention(swapped)
    with torch.set_grad_enabled(grad or masks == "float"):  # torch's fast path answers NaN to a float mask
        expected = model(x, **ENCODER_MASKS[masks])
    with torch.set_grad_enabled(grad), Watch() as watch:
        output = swapped(x, **ENCODER_MASKS[masks])
    assert (watch.attention_calls, watch.around) == (2, [])
    if "src_key_padding_mask" in ENCODER_MASKS[masks]:  # torch's nested tensors answer 0 at padded positions
        seen = ~PADDING if model.layers[0].self_attn.batch_first else ~PADDING.T
        output, expected = output[seen], expected[seen]
    assert_close(output, expected)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_in_an_encoder(training):
    model = encoder().train(training)
    swapped = copy.deepcopy(model)
    ax.replace_attention(swapped)
    x = sample(N, L, E)
    gradients = []
    for m in (model, swapped):
        loss = m(x, src_key_padding_mask=PADDING)[~PADDING].square().sum()
        gradients.append(torch.autograd.grad(loss, list(m.parameters())))
    for expected, got in zip(*gradients, strict=True):
        assert_close(got, expected)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_decoder_layer_and_whole_transformer(batch_first, training):
    options = {"dropout": 0.0, "batch_first": batch_first, "dtype": torch.float64}
    layer = nn.TransformerDecoderLayer(E, H, 16, **options).train(training)
    target, memory = sample(N, L, E), sample(N, S, E)
    if not batch_first:
        target, memory = target.transpose(0, 1), memory.transpose(0, 1)
    masks = {
        "tgt_mask": CAUSAL,
        "tgt_is_causal": True,
        "memory_key_padding_mask": PADDING[:, :S],
        "memory_mask": torch.rand(L, S).argsort(1) > 2,
    }
    with torch.no_grad():
        run_both(layer, target, memory, calls=2, **masks)
    model = nn.Transformer(E, H, 1, 2, 16, **options).train(training)
    with torch.no_grad():
        run_both(model, memory, target, calls=5, tgt_mask=CAUSAL, tgt_is_causal=True)


def test_fast_paths_are_switched_off_per_instance():
    swapped, other = encoder().eval(), encoder().eval()
    report = ax.replace_attention(swapped)
    assert report.fast_paths_disabled == ("", "layers.0", "layers.1")
    x = sample(N, L, E)
    with torch.no_grad(), Watch() as watch:
        other(x)
    assert watch.around
    assert torch.backends.mha.get_fastpath_enabled()

    with Watch() as watch, torch.no_grad():
        for twin in (copy.deepcopy(swapped), pickle.loads(pickle.dumps(swapped))):
            twin(x, src_key_padding_mask=PADDING)
    assert (watch.attention_calls, watch.around) == (4, [])


def test_fast_paths_around_a_module_put_in_by_hand():
    model = encoder().eval()
    for layer in model.layers:
        layer.self_attn = ax.MultiheadAttention(E, H, batch_first=True, dtype=torch.float64).eval()
    report = ax.replace_attention(model)
    assert (report.replaced, report.skipped) == ((), {})
    assert report.fast_paths_disabled == ("", "layers.0", "layers.1")
    with torch.no_grad(), Watch() as watch:
        model(sample(N, L, E), src_key_padding_mask=PADDING)
    assert (watch.attention_calls, watch.around) == (2, [])


def test_compiled_encoder():
    model = encoder(1).eval()
    report = ax.replace_attention(model)
    x = sample(N, L, E)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = report.model(x, src_key_padding_mask=PADDING)
        got = torch.compile(model, fullgraph=True, backend="aot_eager")(x, src_key_padding_mask=PADDING)
    assert_close(got, expected)


# What stays as it was.


def test_everything_but_the_class_stays():
    first, second = nn.MultiheadAttention(E, H, add_bias_kv=True), nn.MultiheadAttention(E, H, bias=False)
    model = nn.ModuleDict(
        {"a": first, "b": nn.ModuleDict({"c": second, "again": first}), "d": nn.Linear(E, E)}
    )
    second.eval()
    second.half()
    seen = []
    handle = first.register_forward_hook(lambda module, *_: seen.append(module))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parameters, keys = dict(model.named_parameters()), list(model.state_dict())

    report = ax.replace_attention(model)
    assert report.replaced == ("a", "b.c")
    assert report.skipped == {}
    assert report.fast_paths_disabled == ()
    assert model["a"] is model["b"]["again"]
    assert type(model["a"]) is type(model["b"]["c"]) is ax.MultiheadAttention
    assert (model["a"].training, model["b"]["c"].training) == (True, False)
    assert list(model.state_dict()) == keys
    now = dict(model.named_parameters())
    assert now.keys() == parameters.keys()
    assert all(now[name] is p for name, p in parameters.items())
    assert model["b"]["c"].in_proj_weight.dtype == torch.float16

    x = torch.randn(L, N, E)
    before = model["a"].in_proj_weight.detach().clone()
    model["a"](x, x, x)[0].sum().backward()
    optimizer.step()
    assert not torch.equal(before, model["a"].in_proj_weight)
    assert seen == [model["a"]]
    handle.remove()
    model["a"](x, x, x)
    assert len(seen) == 1


def test_the_model_itself():
    model = nn.MultiheadAttention(E, H, dtype=torch.float64)
    x = sample(L, N, E)
    swapped, report = run_both(model, x, x, x, calls=1, need_weights=False)
    assert isinstance(swapped, ax.MultiheadAttention)
    assert report.replaced == ("",)


def test_state_dict_goes_both_ways():
    model, swapped = encoder(), encoder()
    ax.replace_attention(swapped)
    swapped.load_state_dict(model.state_dict())
    x = sample(N, L, E)
    expected = model(x)
    assert_close(swapped(x), expected)
    fresh = encoder()
    fresh.load_state_dict(swapped.state_dict())
    assert_close(fresh(x), expected)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_parametrized_module():
    model = nn.Sequential(nn.MultiheadAttention(E, H, dtype=torch.float64))
    parametrize.register_parametrization(model[0], "in_proj_weight", Doubled())
    parametrizations.weight_norm(model[0].out_proj)
    x = sample(L, N, E)
    expected = model[0](x, x, x)
    report = ax.replace_attention(model)
    assert report.replaced == ("0",)
    module = model[0]
    assert isinstance(module, ax.MultiheadAttention)
    with Watch() as watch:
        assert_close(module(x, x, x), expected)
        assert_close(copy.deepcopy(module)(x, x, x), expected)
    assert watch.attention_calls == 2
    parametrize.remove_parametrizations(module, "in_proj_weight")
    assert type(module) is ax.MultiheadAttention
    assert_close(module(x, x, x), expected)

    parametrize.register_parametrization(module, "in_proj_weight", Doubled())
    assert isinstance(module, ax.MultiheadAttention)
    assert ax.replace_attention(model).replaced == ()


# Subclasses.


class Named(nn.MultiheadAttention):
    """A subclass that only adds to it."""

    def __init__(self, *args, label="x", **kwargs):
        super().__init__(*args, **kwargs)
        self.label = label

    def head_weights(self, x):
        return self(x, x, x, average_attn_weights=False)[1]


class OwnForward(nn.MultiheadAttention):
    def forward(self, query, *args, **kwargs):
        return query, None


def test_subclass_without_its_own_forward():
    model = nn.ModuleList([Named(E, H, label="mine", dtype=torch.float64)])
    x = sample(L, N, E)
    expected = model[0].head_weights(x)
    report = ax.replace_attention(model)
    assert report.replaced == ("0",)
    module = model[0]
    assert isinstance(module, Named)
    assert isinstance(module, ax.MultiheadAttention)
    assert type(module).__name__ == "Named"
    with Watch() as watch:
        assert_close(module.head_weights(x), expected)
    assert watch.attention_calls == 1

    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    twins = [
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(buffer, weights_only=False)[0],
    ]
    for twin in twins:
        assert type(twin) is type(module)
        assert twin.label == "mine"
        assert_close(twin.head_weights(x), expected)


def test_modules_with_another_forward_are_skipped():
    patched = nn.MultiheadAttention(E, H)
    patched.forward = lambda query, *args: (query, None)
    model = nn.ModuleDict({"own": OwnForward(E, H), "patched": patched, "plain": nn.MultiheadAttention(E, H)})
    layer = nn.TransformerEncoderLayer(E, H)
    layer.self_attn = OwnForward(E, H)
    model["layer"] = layer
    report = ax.replace_attention(model)
    assert report.replaced == ("plain",)
    assert report.skipped == {
        "own": "OwnForward overrides forward",
        "patched": "forward is overridden on the instance",
        "layer.self_attn": "OwnForward overrides forward",
    }
    assert report.fast_paths_disabled == ()
    assert type(model["own"]) is OwnForward
    assert type(patched) is nn.MultiheadAttention


def test_report_as_text():
    model = encoder(1)
    model.own = OwnForward(E, H)
    report = ax.replace_attention(model)
    assert str(report).splitlines() == [
        "TransformerEncoder: 1 attention module replaced",
        "  replaced layers.0.self_attn",
        "  skipped own: OwnForward overrides forward",
        "  fast path switched off: the model itself",
        "  fast path switched off: layers.0",
    ]
    assert "TransformerEncoderLayer" not in repr(report)  # a model's repr is long


def test_not_a_module():
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got dict"):
        ax.replace_attention({})


# Models of others.


def test_mask2former():
    """Per-head bool masks, positions added to the queries, weights asked for, (L, N, E)."""
    torch.manual_seed(0)
    backbone = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2],
        window_size=2, out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_layers=1,
        encoder_feedforward_dim=16, dim_feedforward=16, decoder_layers=4, num_attention_heads=4,
        num_queries=7, num_labels=3, dropout=0.0,
    )  # fmt: skip
    model = transformers.Mask2FormerModel(config).eval()
    check_model(model, calls=3, pixel_values=torch.randn(2, 3, 32, 32))


def test_siglip():
    """A pooling head: one query per image, batch first."""
    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    model = transformers.SiglipVisionModel(config).eval()
    check_model(model, calls=1, pixel_values=torch.randn(2, 3, 32, 32))


def check_model(model, calls, **inputs):
    """Same outputs and gradients, through our operator."""
    swapped = copy.deepcopy(model)
    report = ax.replace_attention(swapped)
    assert len(report.replaced) == calls
    assert report.skipped == {}
    results = []
    for m in (model, swapped):
        with Watch() as watch:
            output = m(**inputs)
        assert watch.attention_calls == (calls if m is swapped else 0)
        tensors = [t for t in flatten(output) if t.requires_grad]
        loss = sum(t.square().mean() for t in tensors)
        gradients = torch.autograd.grad(loss, list(m.parameters()), allow_unused=True)
        results.append((tensors, [g for g in gradients if g is not None]))
    assert len(results[0][0]) > 1
    assert_close(results[1][0], results[0][0], atol=1e-5, rtol=1e-4)
    assert_close(results[1][1], results[0][1], atol=1e-5, rtol=1e-3)


def flatten(output):
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        output = output.values()
    return [t for part in output if part is not None for t in flatten(part)]
