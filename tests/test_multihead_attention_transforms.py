"""ax.MultiheadAttention under gradcheck, autocast, compile, export, torch.func and checkpointing."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from multihead_attention_cases import (
    INF,
    E,
    H,
    L,
    N,
    both,
    one_thread,  # noqa: F401  a fixture
    sample,
)
from torch.testing import assert_close

import attention_ext as ax


def test_gradcheck():
    """Output and weights, with a bias, masked keys and a row without any."""
    module = ax.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64)
    parameters = dict(module.named_parameters())
    hidden = torch.tensor([[[0, 0, 1], [1, 1, 1]], [[1, 0, 0], [0, 0, 0]]], dtype=torch.bool)

    def run(query, memory, bias, *values):
        named = dict(zip(parameters, values, strict=True))
        masks = {"attn_mask": bias.masked_fill(hidden, -INF)}
        return torch.func.functional_call(module, named, (query, memory, memory), masks)

    leaves = [p.detach().requires_grad_() for p in parameters.values()]
    assert torch.autograd.gradcheck(run, (sample(1, 2, 4), sample(1, 3, 4), sample(2, 2, 3), *leaves))


def test_autocast():
    theirs, ours = both(E, H, dtype=torch.float32, batch_first=True, add_bias_kv=True)
    x = torch.randn(N, L, E)
    bias = torch.randn(L, L)
    padding = torch.arange(L) >= torch.tensor([L, L - 1, L - 2])[:, None]
    for need_weights in (True, False):
        options = {"need_weights": need_weights, "key_padding_mask": padding, "attn_mask": bias}
        with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output, weights = ours(x, x, x, **options)
            expected = theirs(x, x, x, **options)
        assert output.dtype == expected[0].dtype == torch.bfloat16
        assert_close(output, expected[0], atol=0.03, rtol=0.03)
        if need_weights:
            assert weights.dtype == expected[1].dtype
            assert_close(weights, expected[1], atol=0.01, rtol=0.02)
        output.float().sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in ours.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision(dtype):
    ours = both(E, H)[1]
    low = copy.deepcopy(ours).to(dtype)
    x = torch.randn(L, N, E, dtype=dtype)
    bias = torch.randn(L, L)  # float32 is taken beside any dtype
    output, weights = low(x, x, x, attn_mask=bias)
    assert output.dtype == weights.dtype == dtype
    ours.load_state_dict(low.state_dict())
    expected = ours(*[x.double()] * 3, attn_mask=bias.double())
    tolerance = 8 * torch.finfo(dtype).eps
    assert_close(output.double(), expected[0], atol=tolerance, rtol=tolerance)
    assert_close(weights.double(), expected[1], atol=tolerance, rtol=tolerance)


COMPILED = {
    "plain": ({}, {"need_weights": False}),
    "weights": ({"dropout": 0.0}, {"need_weights": True}),
    "padding": (
        {},
        {"need_weights": True, "key_padding_mask": torch.arange(L) >= torch.tensor([[4], [3], [2]])},
    ),
    "bool": (
        {},
        {"need_weights": False, "attn_mask": torch.ones(L, L, dtype=torch.bool).triu(1), "is_causal": True},
    ),
    "float": (
        {"add_bias_kv": True},
        {
            "attn_mask": torch.zeros(L, L).masked_fill(torch.ones(L, L, dtype=torch.bool).triu(1), -INF),
            "key_padding_mask": torch.zeros(N, L),
        },
    ),
    "window": ({}, {"need_weights": False, "attn_mask": ax.masks.SlidingWindow(1, 0)}),
}


@pytest.mark.parametrize("case", COMPILED)
def test_compile(case):
    options, arguments = COMPILED[case]
    module = ax.MultiheadAttention(E, H, batch_first=True, **options)
    x = torch.randn(N, L, E, requires_grad=True)

    def step(x):
        return module(x, x, x, **arguments)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for run in (step, compiled):
        output, weights = run(x)
        loss = output.square().sum() + (0.0 if weights is None else weights.square().sum())
        results.append((output, weights, *torch.autograd.grad(loss, [x, *module.parameters()])))
    for expected, got in zip(*results, strict=True):
        assert (expected is None and got is None) or assert_close(got, expected) is None


def test_compile_dropout_with_weights():
    module = ax.MultiheadAttention(E, 1, dropout=0.5, batch_first=True)
    with torch.no_grad():
        module.out_proj.weight.copy_(torch.eye(E))
    x = torch.randn(N, L, E)
    torch._dynamo.reset()
    output, weights = torch.compile(module, fullgraph=True, backend="aot_eager")(x, x, x)
    assert_close(output, weights @ F.linear(x, module.in_proj_weight[2 * E :]))
    assert (weights == 0).any()


def test_export():
    module = ax.MultiheadAttention(E, H, batch_first=True).eval()
    length = torch.export.Dim("length", min=2, max=64)
    x = torch.randn(N, L, E)
    padding = torch.zeros(N, L, dtype=torch.bool)
    program = torch.export.export(
        module,
        (x, x, x, padding),
        dynamic_shapes=({1: length}, {1: length}, {1: length}, {1: length}),
    )
    x = torch.randn(N, 7, E)
    padding = torch.arange(7) >= torch.tensor([7, 5, 3])[:, None]
    assert_close(program.module()(x, x, x, padding), module(x, x, x, padding))


def test_per_sample_gradients():
    theirs, ours = both(E, H)
    x = sample(N, L, E, requires_grad=False)

    def gradients(module):
        parameters = {name: p.detach() for name, p in module.named_parameters()}

        def loss(parameters, x):
            return torch.func.functional_call(module, parameters, (x, x, x))[0].square().sum()

        return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)

    ours, theirs = gradients(ours), gradients(theirs)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert_close(ours[name], expected)


def test_checkpointing_replays_the_dropout():
    module = ax.MultiheadAttention(E, H, dropout=0.3, dtype=torch.float64)
    x = sample(L, N, E)
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        if checkpointed:
            output, weights = torch.utils.checkpoint.checkpoint(module, x, x, x, use_reentrant=False)
        else:
            output, weights = module(x, x, x)
        loss = output.square().sum() + weights.square().sum()
        gradients.append(torch.autograd.grad(loss, [x, *module.parameters()]))
    for expected, got in zip(*gradients, strict=True):
        assert_close(got, expected)
