"""Gated DeltaNet against Transformers' Qwen3-Next, which has the same layer under other names."""

import inspect

import pytest
import torch
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

from attention_ext.nn import GatedDeltaNet

pytestmark = pytest.mark.once

E, K_HEADS, V_HEADS, DK, DV, SIZE = 24, 2, 4, 8, 6, 4


@pytest.fixture(autouse=True)
def plain_torch(monkeypatch):
    """Where fla is installed, Transformers would call its kernels, which need a GPU."""
    for name in ("torch_chunk_gated_delta_rule", "causal_conv1d_fn"):
        plain = inspect.unwrap(getattr(qwen, name))
        known = inspect.signature(plain).parameters

        def call(*args, plain=plain, known=known, **kwargs):
            return plain(*args, **{key: value for key, value in kwargs.items() if key in known})

        monkeypatch.setattr(qwen, name, call)


def pair():
    """Theirs and ours, with the same weights."""
    torch.manual_seed(0)
    config = Qwen3NextConfig(
        hidden_size=E,
        num_hidden_layers=2,
        linear_num_key_heads=K_HEADS,
        linear_num_value_heads=V_HEADS,
        linear_key_head_dim=DK,
        linear_value_head_dim=DV,
        linear_conv_kernel_dim=SIZE,
        rms_norm_eps=1e-6,
    )
    theirs = qwen.Qwen3NextGatedDeltaNet(config, 0)
    torch.nn.init.normal_(theirs.norm.weight)
    ours = GatedDeltaNet(
        E,
        K_HEADS,
        num_value_heads=V_HEADS,
        key_dim=K_HEADS * DK,
        value_dim=V_HEADS * DV,
        conv_size=SIZE,
        norm_eps=1e-6,
        batch_first=True,
    )
    group = V_HEADS // K_HEADS
    rows = theirs.in_proj_qkvz.weight.detach().unflatten(0, (K_HEADS, -1))  # each key head's q, k, v, z
    q, k, v, z = (w.flatten(0, 1) for w in rows.split([DK, DK, group * DV, group * DV], 1))
    b, a = (
        w.flatten(0, 1) for w in theirs.in_proj_ba.weight.detach().unflatten(0, (K_HEADS, -1)).chunk(2, 1)
    )
    ours.load_state_dict(
        {
            "q_proj.weight": q,
            "k_proj.weight": k,
            "v_proj.weight": v,
            "g_proj.weight": z,
            "beta_proj.weight": b,
            "decay_proj.weight": a,
            "A_log": theirs.A_log,
            "dt_bias": theirs.dt_bias,
            "conv.weight": theirs.conv1d.weight,
            "norm.weight": theirs.norm.weight,
            "out_proj.weight": theirs.out_proj.weight,
        }
    )
    return theirs, ours


def test_output_and_gradient():
    theirs, ours = pair()
    x = torch.randn(2, 70, E, requires_grad=True)
    expected, out = theirs(x), ours(x)[0]
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    cotangent = torch.randn_like(out)
    for a, b in ((x, x), (ours.out_proj.weight, theirs.out_proj.weight), (ours.A_log, theirs.A_log)):
        (actual,) = torch.autograd.grad(out, a, cotangent, retain_graph=True)
        (wanted,) = torch.autograd.grad(expected, b, cotangent, retain_graph=True)
        torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-4)


def test_left_padding():
    theirs, ours = pair()
    x = torch.randn(2, 10, E)
    keep = torch.ones(2, 10, dtype=torch.long)
    keep[1, :4] = 0
    expected = theirs(x, attention_mask=keep)
    out, _ = ours(x, key_padding_mask=keep == 0)
    torch.testing.assert_close(out[keep == 1], expected[keep == 1], rtol=1e-4, atol=1e-5)
