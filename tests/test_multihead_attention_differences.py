"""What ax.MultiheadAttention does otherwise than torch's: empty rows, masked NaN, dropout, mask objects."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from multihead_attention_cases import (
    INF,
    E,
    H,
    L,
    N,
    S,
    both,
    one_thread,  # noqa: F401  a fixture
    sample,
)
from torch import nn
from torch.testing import assert_close

import attention_ext as ax


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("how", ["padding", "hard padding", "attn_mask", "float attn_mask", "both"])
def test_fully_masked_rows_are_zero(how, need_weights, training, grad):
    """Row 1 of every sequence, or the whole of sequence 1, sees nothing."""
    ours = both(E, H, batch_first=True)[1].train(training)
    x = sample(N, L, E)
    masks, dead = {}, torch.zeros(N, L, dtype=torch.bool)
    if how in ("padding", "hard padding", "both"):
        padding = torch.zeros(N, L, dtype=torch.bool)
        padding[1] = dead[1] = True
        hard = torch.zeros(N, L, dtype=torch.float64).masked_fill(padding, -INF)
        masks["key_padding_mask"] = hard if how == "hard padding" else padding
    if how in ("attn_mask", "float attn_mask", "both"):
        attn = torch.zeros(L, L, dtype=torch.bool)
        attn[1] = dead[:, 1] = True
        hard = torch.zeros(L, L, dtype=torch.float64).masked_fill(attn, -INF)
        masks["attn_mask"] = hard if how == "float attn_mask" else attn
    with torch.set_grad_enabled(grad):
        output, weights = ours(x, x, x, need_weights=need_weights, average_attn_weights=False, **masks)
    assert torch.equal(output[dead], ours.out_proj.bias.expand_as(output[dead]))
    assert output.isfinite().all()
    if need_weights:
        by_row = weights.transpose(1, 2)
        assert (by_row[dead] == 0).all()
        assert_close(by_row[~dead].sum(-1), torch.ones_like(by_row[~dead][..., 0]))
    if grad:
        loss = output[dead].sum() + (0.0 if weights is None else weights.transpose(1, 2)[dead].sum())
        grads = torch.autograd.grad(loss, [x, ours.in_proj_weight, ours.in_proj_bias])
        assert all((g == 0).all() for g in grads)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float64])
def test_one_fully_masked_head(dtype, need_weights):
    ours = both(E, H, batch_first=True)[1]
    x = sample(N, L, E)
    hidden = torch.zeros(N, H, L, L, dtype=torch.bool)
    hidden[:, 1] = True
    attn_mask = hidden.flatten(0, 1)
    if dtype != torch.bool:
        attn_mask = torch.zeros(N * H, L, L, dtype=dtype).masked_fill(attn_mask, -INF)
    output, weights = ours(
        x, x, x, attn_mask=attn_mask, need_weights=need_weights, average_attn_weights=False
    )
    with torch.no_grad():  # head 0 alone, by an out_proj that ignores head 1
        expected = copy.deepcopy(ours)
        expected.out_proj.weight[:, E // H :] = 0
        assert_close(output, expected(x, x, x)[0])
    if need_weights:
        assert (weights[:, 1] == 0).all()
        assert_close(weights[:, 0], ours(x, x, x, average_attn_weights=False)[1][:, 0])


@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", ["bool", "float", "attn bool", "attn float", "both"])
def test_masked_non_finite_keys_stay_out(mask, need_weights, bad):
    ours = both(E, H, batch_first=True)[1]
    query, memory = sample(N, L, E), sample(N, S, E)
    hidden = torch.zeros(S, dtype=torch.bool)
    hidden[[1, 4]] = True
    hard = torch.zeros(S, dtype=torch.float64).masked_fill(hidden, -INF)
    masks = {
        "bool": {"key_padding_mask": hidden.expand(N, S)},
        "float": {"key_padding_mask": hard.expand(N, S)},
        "attn bool": {"attn_mask": hidden.expand(L, S)},
        "attn float": {"attn_mask": hard.expand(L, S)},
        "both": {"attn_mask": hidden.expand(L, S), "key_padding_mask": hidden.expand(N, S)},
    }[mask]
    dirty = memory.detach().clone()
    dirty[:, hidden] = bad
    results = []
    for m in (memory, dirty):
        output, weights = ours(query, m, m, need_weights=need_weights, **masks)
        loss = output.square().sum() + (0.0 if weights is None else weights.square().sum())
        results.append((output, weights, torch.autograd.grad(loss, query)[0]))
    for clean, poisoned in zip(*results, strict=True):
        if clean is not None:
            assert_close(poisoned, clean)


def test_weights_of_a_visible_non_finite_key_are_nan():
    ours = both(E, H, batch_first=True)[1]
    x = sample(1, L, E, requires_grad=False)
    x[0, 2] = math.nan
    attn_mask = torch.ones(L, L, dtype=torch.bool).triu(1)
    weights = ours(x, x, x, attn_mask=attn_mask)[1][0]
    assert weights[:2].isfinite().all()
    assert weights[2:, :3].isnan().all()


def test_dropout_is_drawn_once_for_output_and_weights():
    module = ax.MultiheadAttention(E, 1, dropout=0.4, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        module.out_proj.weight.copy_(torch.eye(E))
    x = sample(N, 60, E)
    value = F.linear(x, module.in_proj_weight[2 * E :], module.in_proj_bias[2 * E :])
    plain = module.eval()(x, x, x)[1]
    module.train()
    torch.manual_seed(0)
    output, weights = module(x, x, x)
    assert_close(output, weights @ value)
    dropped = weights == 0
    assert abs(dropped.double().mean() - 0.4) < 0.02
    assert_close(weights[~dropped], plain[~dropped] / 0.6)

    torch.manual_seed(0)
    again = module(x, x, x)
    assert torch.equal(again[0], output)
    assert torch.equal(again[1], weights)
    assert not torch.equal(module(x, x, x)[1], weights)

    # The gradient goes through the draw as torch's goes through its own.
    g_out, g_weights = torch.randn_like(output), torch.randn_like(weights)
    expected = torch.where(dropped, 0.0, plain / 0.6)
    parameters = list(module.parameters())
    ours = torch.autograd.grad((output * g_out).sum() + (weights * g_weights).sum(), parameters)
    expected_output = F.linear(expected @ value, module.out_proj.weight, module.out_proj.bias)
    loss = (expected_output * g_out).sum() + (expected * g_weights).sum()
    for got, want in zip(ours, torch.autograd.grad(loss, parameters), strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout_of_everything_and_in_eval(need_weights):
    module = ax.MultiheadAttention(E, H, dropout=1.0)
    x = torch.randn(L, N, E)
    output, weights = module(x, x, x, need_weights=need_weights)
    assert torch.equal(output, module.out_proj.bias.expand_as(output))
    assert weights is None or (weights == 0).all()
    theirs = nn.MultiheadAttention(E, H)
    theirs.load_state_dict(module.state_dict())
    assert_close(module.eval()(x, x, x), theirs(x, x, x))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("is_causal", [True, False])
def test_attn_mask_may_be_a_mask(is_causal, padded, need_weights):
    theirs, ours = both(E, H, batch_first=True)
    x = sample(N, 9, E)
    window = ax.masks.SlidingWindow(2, 1)
    allowed = window.dense(9, 9)[0, 0]
    hidden = ~allowed
    padding = torch.arange(9) >= torch.tensor([9, 8, 8])[:, None] if padded else None
    options = {"key_padding_mask": padding, "need_weights": need_weights}
    expected = theirs(x, x, x, attn_mask=hidden, **options)
    output, weights = ours(x, x, x, attn_mask=window, is_causal=is_causal, **options)
    assert_close(output, expected[0])
    if need_weights:
        assert_close(weights, expected[1])
