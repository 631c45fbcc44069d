"""Retention, gated linear attention, DeltaNet and Gated DeltaNet against plain loops over tokens."""

import copy
import pickle

import pytest
import torch
from recurrent_layer_cases import LAYERS, E, made, tensors

from attention_ext import nn

pytestmark = pytest.mark.once

N, L = 2, 9
PADDED = torch.tensor([[1, 0, 0, 1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1, 1]], dtype=torch.bool)


def sample(length=L):
    return torch.randn(N, length, E, dtype=torch.float64, requires_grad=True)


def assert_same_with_gradients(actual, expected, leaves):
    torch.testing.assert_close(actual, expected)
    cotangent = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent)
    )


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("length", [1, 9, 70])
def test_output_and_gradients(name, length):
    module, plain = made(name)
    x = sample(length)
    assert_same_with_gradients(module(x, x, x)[0], plain(module, x), [x, *module.parameters()])


@pytest.mark.parametrize("name", LAYERS)
def test_halves_equal_the_whole(name):
    module, _ = made(name)
    x = sample()
    whole, end = module(x, return_state=True)
    first, state = module(x[:, :2], return_state=True)
    second, last = module(x[:, 2:], initial_state=state, return_state=True)
    torch.testing.assert_close(last, end)
    halves, (S, *_), (end_S, *_) = torch.cat([first, second], 1), tensors(last), tensors(end)
    leaves = [x, *module.parameters()]
    assert_same_with_gradients(
        torch.cat([halves.flatten(), S.flatten()]), torch.cat([whole.flatten(), end_S.flatten()]), leaves
    )


@pytest.mark.parametrize("name", LAYERS)
def test_steps_equal_the_whole(name):
    module, _ = made(name)
    x = sample()
    whole, end = module(x, return_state=True)
    with torch.no_grad():
        state = module.new_state(N)
        places = [t.data_ptr() for t in tensors(state)]
        steps = torch.stack([module.step(x[:, t], state) for t in range(L)], 1)
        _, resumed = module(x[:, :4], return_state=True)
        torch.testing.assert_close(module.step(x[:, 4], resumed), whole[:, 4])
    assert [t.data_ptr() for t in tensors(state)] == places
    torch.testing.assert_close(steps, whole)
    torch.testing.assert_close(state, end)


@pytest.mark.parametrize("name", LAYERS)
def test_padded_tokens_are_as_if_not_there(name):
    module, plain = made(name)
    x = sample()
    broken = x.masked_fill(PADDED[..., None], torch.nan)
    out, state = module(broken, key_padding_mask=PADDED, return_state=True)
    for row in range(N):
        kept = ~PADDED[row]
        torch.testing.assert_close(out[row, kept], plain(module, x[row : row + 1, kept])[0])
        alone = module(x[row, kept], return_state=True)[1]
        for ours, expected in zip(tensors(state), tensors(alone), strict=True):
            torch.testing.assert_close(ours[row : row + 1], expected)
    for gradient in torch.autograd.grad(out[~PADDED].sum(), [x, *module.parameters()]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LAYERS)
def test_layouts(name):
    module, _ = made(name)
    transposed, _ = made(name, batch_first=False)
    x = sample().detach()
    expected = module(x, key_padding_mask=PADDED)[0]
    out = transposed(x.transpose(0, 1), key_padding_mask=PADDED)[0].transpose(0, 1)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(module(x[0], key_padding_mask=PADDED[0])[0], expected[0])
    hidden = torch.zeros(N, L).masked_fill(PADDED, -torch.inf)
    torch.testing.assert_close(module(x, key_padding_mask=hidden)[0], expected)


@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck(name):
    module, _ = made(name)
    x = torch.randn(1, 3, E, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: module(x)[0], x)


@pytest.mark.parametrize("name", ["retention", "gla", "delta_plain", "gated_delta_grouped"])
def test_travels_and_compiles(name):
    module, _ = made(name)
    x = sample().detach()
    expected = module(x, key_padding_mask=PADDED, return_state=True)
    fresh = type(module)(E, **LAYERS[name][1], batch_first=True, dtype=torch.float64)
    fresh.load_state_dict(module.state_dict())
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), fresh):
        torch.testing.assert_close(copied(x, key_padding_mask=PADDED, return_state=True), expected)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, key_padding_mask=PADDED, return_state=True), expected)
    assert "key_dim=" in repr(module)


@pytest.mark.parametrize("name", ["retention", "gated_delta"])
def test_export_for_any_length(name):
    module, _ = made(name)
    x = sample(2 * L).detach()
    padded = torch.zeros(N, 2 * L, dtype=torch.bool)
    padded[:, :L] = PADDED
    length = torch.export.Dim("length", min=2, max=512)
    example = {"query": x[:, :L].contiguous(), "key_padding_mask": PADDED}
    dynamic = {"query": {1: length}, "key_padding_mask": {1: length}}
    program = torch.export.export(module.eval(), (), example, dynamic_shapes=dynamic)
    out = program.module()(query=x, key_padding_mask=padded)[0]
    torch.testing.assert_close(out, module(x, key_padding_mask=padded)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_and_low_precision(name):
    module, _ = made(name, dtype=torch.float32)
    x = torch.randn(N, L, E)
    expected = module(x)[0]
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        out, state = module(x, return_state=True)
        with torch.no_grad():
            step = module.step(x[:, 0], module.new_state(N))
    assert out.dtype == step.dtype == torch.bfloat16
    assert tensors(state)[0].dtype == torch.float32
    torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1)
    torch.testing.assert_close(step.float(), expected[:, 0], rtol=0.1, atol=0.1)
    half = module.to(torch.bfloat16)
    torch.testing.assert_close(half(x.bfloat16())[0].float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("length", [0, 2, 9])
def test_short_convolution_is_a_depthwise_one(size, length):
    conv = nn.ShortConvolution(E, size, dtype=torch.float64)
    x = torch.randn(N, length, E, dtype=torch.float64)
    out, past = conv(x)
    padded = torch.nn.functional.pad(x, (0, 0, size - 1, 0))
    if length > 0:
        expected = torch.nn.functional.conv1d(padded.mT, conv.weight, groups=E).mT
        torch.testing.assert_close(out, expected)
    assert out.shape == x.shape
    torch.testing.assert_close(past, padded[:, length:])


def test_retention_far_from_the_start():
    module, _ = made("retention", dtype=torch.float32)
    double, _ = made("retention")
    double.load_state_dict(module.state_dict())
    x = torch.randn(1, 20, E)
    states = []
    for m, inputs in ((module, x[:, :10]), (double, x[:, :10].double())):
        state = m(inputs, return_state=True)[1]
        states.append(nn.RetentionState(state.S, state.position + 1_000_000))
    near = double(x[:, 10:].double(), initial_state=states[1])[0]
    torch.testing.assert_close(
        module(x[:, 10:], initial_state=states[0])[0].double(), near, rtol=0, atol=1e-5
    )


def test_inside_torchs_encoder():
    module, _ = made("retention")
    encoder = torch.nn.TransformerEncoderLayer(E, 2, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
    encoder.self_attn = module
    x = sample().detach()
    mask = torch.ones(L, L, dtype=torch.bool).triu(1)
    expected = encoder(x, src_mask=mask, is_causal=True)
    with torch.no_grad():
        torch.testing.assert_close(encoder.eval()(x, src_mask=mask, is_causal=True), expected)


X = torch.zeros(N, L, E, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.Retention(E, 5), ValueError, "key_dim: expected a multiple of 5 heads, got 12"),
        (lambda: nn.Retention(E, 0), ValueError, "num_heads: expected at least 1, got 0"),
        (lambda: nn.Retention(E, 4), ValueError, "key_dim: expected an even number for each head, got 3"),
        (lambda: nn.DeltaNet(E, 2, num_value_heads=3), ValueError, "num_value_heads: expected a multiple of"),
        (lambda: nn.DeltaNet(E, 2, conv_size=0), ValueError, "conv_size: expected at least 1, got 0"),
        (lambda: nn.GatedLinearAttention(E, 2, gate_rank=0), ValueError, "gate_rank: expected at least 1"),
        (lambda: nn.GatedLinearAttention(E, 2, temperature=0), ValueError, "temperature: expected a posit"),
        (lambda: made("delta")[0](X, X.clone()), ValueError, "key: expected query itself, or None, for self"),
        (lambda: made("delta")[0](X, X, X, need_weights=True), ValueError, "need_weights: expected False, D"),
        (
            lambda: made("delta")[0](X, attn_mask=PADDED),
            ValueError,
            "attn_mask: expected None, DeltaNet computes no scores",
        ),
        (lambda: made("delta")[0](X[..., 1:]), ValueError, r"query: expected \(L, 12\), or 3 dimensions"),
        (lambda: made("delta")[0](X.float()), TypeError, "query: expected torch.float64, the weights' dtype"),
        (
            lambda: made("delta")[0](X, key_padding_mask=PADDED[:, 1:]),
            ValueError,
            r"key_padding_mask: expected shape \(2, 9\), got \(2, 8\)",
        ),
        (
            lambda: made("delta")[0](X, key_padding_mask=torch.zeros(N, L).requires_grad_()),
            ValueError,
            "key_padding_mask: expected bool, or 0 and -inf without a gradient",
        ),
        (
            lambda: made("delta")[0](X, key_padding_mask=PADDED.long()),
            TypeError,
            "key_padding_mask: expected bool or floating point, got torch.int64",
        ),
        (
            lambda: made("delta")[0](X, initial_state=X),
            TypeError,
            "state: expected a DeltaNetState, got Tens",
        ),
        (
            lambda: made("delta")[0](X, initial_state=made("delta")[0].new_state(1)),
            ValueError,
            r"initial_state: expected conv of shape \(2, 3, 36\), got \(1, 3, 36\)",
        ),
        (lambda: made("retention")[0].step(X[:, 0], X), TypeError, "state: expected a RetentionState, got T"),
        (lambda: made("gla")[0].step(X, X), ValueError, r"x: expected shape \(N, 12\) of one token"),
        (lambda: made("gla")[0](X, initial_state=X), ValueError, "initial_state: expected S of shape"),
    ],
)
def test_bad_arguments(call, error, message):
    with torch.no_grad(), pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", LAYERS)
def test_a_step_has_no_derivative(name):
    module, _ = made(name)
    with pytest.raises(RuntimeError, match=r"step: has no derivatives; call it inside torch.no_grad\(\)"):
        module.step(X[:, 0], module.new_state(N))
