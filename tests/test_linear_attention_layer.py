"""ax.nn.LinearAttention against torch's projections around a plain recurrence."""

import copy
import pickle

import pytest
import torch

from attention_ext.nn import LinearAttention

pytestmark = pytest.mark.once

N, L, S, E, H = 2, 7, 9, 12, 3
PADDED = torch.tensor([[1, 0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0, 1]], dtype=torch.bool)


class Scale(torch.nn.Module):
    """A feature map with a weight, from D to 2 D."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x):
        return torch.cat([(self.weight * x).exp(), (-self.weight * x).exp()], -1)


MAPS = {
    "identity": lambda x: x,
    "elu": lambda x: torch.nn.functional.elu(x) + 1,
    "relu": torch.relu,
    "softmax": lambda x: x.softmax(-1),
}


def layer(seed=0, **options):
    torch.manual_seed(seed)
    made = LinearAttention(E, H, **{"batch_first": True, "dtype": torch.float64, **options})
    if made.in_proj_bias is not None:
        torch.nn.init.normal_(made.in_proj_bias)
        torch.nn.init.normal_(made.out_proj.bias)
    return made


def plain(module, query, key, value, hidden=None):
    """Every pair of query and key, with torch's own operators; inputs (N, L, E)."""
    weights = module.in_proj_weight.chunk(3)
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    inputs = zip((query, key, value), weights, biases, strict=True)
    q, k, v = (torch.nn.functional.linear(*i).unflatten(-1, (H, -1)).transpose(1, 2) for i in inputs)
    phi = module.feature_map if isinstance(module.feature_map, torch.nn.Module) else MAPS[module.feature_map]
    scores = phi(q) @ phi(k).mT
    if module.causal:
        scores = scores.tril()
    if hidden is not None:
        scores = scores.masked_fill(hidden[:, None, None], 0.0)
        if module.causal:
            scores = scores.masked_fill(hidden[:, None, :, None], 0.0)
    if module.normalize:
        scores = scores / (scores.sum(-1, keepdim=True) + module.eps)
    heads = (scores @ v).transpose(1, 2).flatten(2)
    return torch.nn.functional.linear(heads, module.out_proj.weight, module.out_proj.bias)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("feature_map", [*MAPS, "module"])
def test_output_and_gradients(feature_map, causal, normalize):
    if feature_map in ("identity", "relu") and normalize:
        normalize = False  # sums of weights that may be zero are no measure
    module = layer(
        feature_map=Scale() if feature_map == "module" else feature_map, causal=causal, normalize=normalize
    )
    x = torch.randn(N, L, E, dtype=torch.float64, requires_grad=True)
    memory = x if causal else torch.randn(N, S, E, dtype=torch.float64, requires_grad=True)
    for inputs in ((x, x, x), (x, memory, memory)):
        hidden = PADDED if inputs[1] is x else None
        out, state = module(*inputs, key_padding_mask=hidden)
        expected = plain(module, *inputs, hidden)
        torch.testing.assert_close(out, expected)
        assert state is None
        leaves = [*{id(i): i for i in inputs}.values(), *module.parameters()]
        cotangent = torch.randn_like(out)
        torch.testing.assert_close(
            torch.autograd.grad(out, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent)
        )


@pytest.mark.parametrize("feature_map", ["elu", "module"])
def test_steps_and_halves_equal_the_whole(feature_map):
    module = layer(feature_map=Scale() if feature_map == "module" else feature_map, causal=True)
    x = torch.randn(N, L, E, dtype=torch.float64, requires_grad=True)
    whole, end = module(x, x, x, return_state=True)
    first, state = module(*[x[:, :3]] * 3, return_state=True)
    second, last = module(*[x[:, 3:]] * 3, initial_state=state, return_state=True)
    halves = torch.cat([first, second], 1)
    torch.testing.assert_close(halves, whole)
    torch.testing.assert_close(last, end)
    leaves, cotangent = [x, *module.parameters()], torch.randn_like(whole)
    torch.testing.assert_close(
        torch.autograd.grad(halves, leaves, cotangent), torch.autograd.grad(whole, leaves, cotangent)
    )
    state = module.new_state(N)
    with torch.no_grad():
        steps = torch.stack([module.step(x[:, t], state) for t in range(L)], 1)
    torch.testing.assert_close(steps, whole)
    torch.testing.assert_close(state, end)


def test_layouts():
    module, last = layer(causal=True), layer(causal=True, batch_first=False)
    x = torch.randn(N, L, E, dtype=torch.float64)
    expected = module(x, x, x, key_padding_mask=PADDED)[0]
    t = x.transpose(0, 1)
    torch.testing.assert_close(last(t, t, t, key_padding_mask=PADDED)[0].transpose(0, 1), expected)
    torch.testing.assert_close(module(*[x[0]] * 3, key_padding_mask=PADDED[0])[0], expected[0])
    float_mask = torch.zeros(N, L, dtype=torch.float64).masked_fill(PADDED, -torch.inf)
    torch.testing.assert_close(module(x, x, x, key_padding_mask=float_mask)[0], expected)
    state = last.new_state(N)
    with torch.no_grad():
        torch.testing.assert_close(last.step(x[:, 0], state), module(x, x, x)[0][:, 0])


@pytest.mark.parametrize("causal", [False, True])
def test_padding_stays_out(causal):
    module = layer(causal=causal)
    x = torch.randn(N, L, E, dtype=torch.float64)
    broken = x.masked_fill(PADDED[..., None], torch.nan)
    expected = module(x, x, x, key_padding_mask=PADDED)[0]
    query = broken if causal else x
    out = module(query, broken, broken, key_padding_mask=PADDED)[0]
    kept = ~PADDED if causal else slice(None)
    torch.testing.assert_close(out[kept], expected[kept])
    assert out.isfinite().all()


def test_weights_come_from_torch():
    made = []
    for cls in (torch.nn.MultiheadAttention, LinearAttention):
        torch.manual_seed(0)
        made.append(cls(E, H, kdim=5, vdim=4))
    theirs, module = made
    assert [*module.state_dict()] == [*theirs.state_dict()]
    torch.testing.assert_close(module.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    module.load_state_dict(torch.nn.MultiheadAttention(E, H, kdim=5, vdim=4).state_dict())
    out, _ = module(torch.randn(L, N, E), torch.randn(S, N, 5), torch.randn(S, N, 4))
    assert out.shape == (L, N, E)


def test_inside_torchs_encoder():
    encoder = torch.nn.TransformerEncoderLayer(E, 2, 16, dropout=0.0, batch_first=True)
    encoder.self_attn = LinearAttention(E, 2, batch_first=True, causal=True)
    x = torch.randn(N, L, E)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(L)
    expected = encoder(x, src_mask=mask, src_key_padding_mask=PADDED, is_causal=True)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.eval()(x, src_mask=mask, src_key_padding_mask=PADDED, is_causal=True), expected
        )


def test_travels_and_compiles():
    module = layer(causal=True)
    x = torch.randn(N, L, E, dtype=torch.float64)
    expected = module(x, x, x, key_padding_mask=PADDED)[0]
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(copied(x, x, x, key_padding_mask=PADDED)[0], expected)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, x, x, key_padding_mask=PADDED)[0], expected)
    assert "feature_map='elu', causal=True" in repr(module)


def test_autocast():
    module = layer(causal=True, dtype=torch.float32)
    x = torch.randn(N, L, E)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        out, state = module(x, x, x, return_state=True)
    assert out.dtype == torch.bfloat16
    assert {t.dtype for t in state} == {torch.float32}
    torch.testing.assert_close(out.float(), module(x, x, x)[0], rtol=0.05, atol=0.05)


def test_gradcheck():
    module = layer(causal=True)
    x = torch.randn(1, 4, E, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: module(x, x, x)[0], x)


X = torch.zeros(N, L, E, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: layer(dropout=0.1), ValueError, "dropout: expected 0.0 without weights, got 0.1"),
        (
            lambda: layer(add_bias_kv=True),
            ValueError,
            "add_bias_kv: expected False without weights, got True",
        ),
        (lambda: layer(add_zero_attn=True), ValueError, "add_zero_attn: expected False without weights"),
        (
            lambda: layer(feature_map="exp"),
            ValueError,
            "feature_map: expected one of identity, elu, relu, so",
        ),
        (
            lambda: layer(feature_map=torch.exp),
            TypeError,
            "feature_map: expected a name or a module, got bui",
        ),
        (
            lambda: layer()(X, X, X, need_weights=True),
            ValueError,
            "need_weights: expected False, LinearAtten",
        ),
        (
            lambda: layer()(X, X, X, attn_mask=X),
            ValueError,
            "attn_mask: expected None, LinearAttention compu",
        ),
        (
            lambda: layer()(X, X, X, is_causal=True),
            ValueError,
            "is_causal: expected False with a LinearAtten",
        ),
        (lambda: layer()(X, X, X, return_state=True), ValueError, "return_state: expected with causal=True"),
        (lambda: layer().new_state(1), ValueError, "new_state: expected causal=True, got False"),
        (lambda: layer().step(X[:, 0], None), ValueError, "step: expected causal=True, got False"),
        (lambda: layer(causal=True).step(X, None), ValueError, r"x: expected shape \(N, 12\) of one token"),
        (lambda: layer(causal=True).step(X[:, 0], None), TypeError, "state: expected the state to bring up"),
        (
            lambda: layer()(X, X, X, key_padding_mask=torch.full((N, L), -1.0)),
            ValueError,
            "key_padding_mask: expected bool, or 0 and -inf",
        ),
        (
            lambda: layer(causal=True)(X, X[:, 1:], X[:, 1:]),
            ValueError,
            "key: expected the length of query, 7",
        ),
        (
            lambda: layer()(X, X.float(), X.float()),
            TypeError,
            "key: expected torch.float64, the weights' dtyp",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with torch.no_grad(), pytest.raises(error, match=message):
        call()


def test_a_step_has_no_derivative():
    module = layer(causal=True)
    with pytest.raises(RuntimeError, match=r"step: has no derivatives; call it inside torch.no_grad\(\)"):
        module.step(X[:, 0], module.new_state(N))
