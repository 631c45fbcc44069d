"""The recurrent layers as plain loops over tokens, written from the papers."""

import torch
from torch.nn.functional import layer_norm, silu, softplus

from attention_ext import nn

E = 12


def heads(x, count):
    """(N, L, H·D) as (N, L, H, D)."""
    return x.unflatten(-1, (count, -1))


def root_mean_square_norm(x, norm):
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def turned(x, base):
    """(N, L, H, D): neighbours as real and imaginary part, turned by their position."""
    length, dim = x.shape[1], x.shape[-1]
    frequencies = base ** -torch.linspace(0, 1, dim // 2, dtype=torch.float64)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)


def recurrence(q, k, v, decay, beta=None):
    """Tensors (N, L, H, D), decay (N, L, H, D) as a factor: out (N, L, H, Dv)."""
    S = q.new_zeros(*q.shape[0::2], q.shape[3], v.shape[3])
    outs = []
    for t in range(q.shape[1]):
        S = decay[:, t, ..., None] * S
        new = v[:, t]
        if beta is not None:
            held = torch.einsum("nhd,nhde->nhe", k[:, t], S)
            new = beta[:, t, :, None] * (new - held)
        S = S + k[:, t, ..., None] * new[:, :, None]
        outs.append(torch.einsum("nhd,nhde->nhe", q[:, t], S))
    return torch.stack(outs, 1) * q.shape[-1] ** -0.5


def retention(m, x):
    q, k, v = (heads(p(x), m.num_heads) for p in (m.q_proj, m.k_proj, m.v_proj))
    gamma = 1 - 2.0 ** (-5 - torch.arange(m.num_heads, dtype=torch.float64))
    out = recurrence(turned(q, m.base), turned(k, m.base), v, gamma[:, None].expand_as(q))
    out = layer_norm(out, out.shape[-1:], eps=m.norm.eps).flatten(2) * m.norm.weight + m.norm.bias
    return m.out_proj(silu(m.g_proj(x)) * out)


def gated_linear_attention(m, x):
    q, k, v = (heads(p(x), m.num_heads) for p in (m.q_proj, m.k_proj, m.v_proj))
    low, high = m.decay_proj
    gate = x @ low.weight.T @ high.weight.T + high.bias
    out = recurrence(q, k, v, heads(gate.sigmoid() ** (1 / m.temperature), m.num_heads))
    out = root_mean_square_norm(out, m.norm).flatten(2)
    return m.out_proj(silu(m.g_proj(x)) * out)


def convolved(conv, x):
    padded = torch.nn.functional.pad(x, (0, 0, conv.size - 1, 0))
    return sum(padded[:, i : i + x.shape[1]] * conv.weight[:, 0, i] for i in range(conv.size))


def delta_net(m, x):
    mixed = torch.cat([m.q_proj(x), m.k_proj(x), m.v_proj(x)], -1)
    mixed = silu(mixed if m.conv is None else convolved(m.conv, mixed))
    q, k, v = mixed.split([m.key_dim, m.key_dim, m.value_dim], -1)
    q, k = (heads(t, m.num_heads) for t in (q, k))
    q, k = (t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
    q, k = (t.repeat_interleave(m.num_value_heads // m.num_heads, 2) for t in (q, k))
    decay = torch.ones_like(x[..., :1])
    if isinstance(m, nn.GatedDeltaNet):
        decay = (-m.A_log.exp() * softplus(m.decay_proj(x) + m.dt_bias)).exp()
    decay = decay[..., None].expand_as(q)
    out = recurrence(q, k, heads(v, m.num_value_heads), decay, m.beta_proj(x).sigmoid())
    out = root_mean_square_norm(out, m.norm).flatten(2)
    return m.out_proj(out if m.g_proj is None else silu(m.g_proj(x)) * out)


# Class, options, the plain loop.
LAYERS = {
    "retention": (nn.Retention, {"num_heads": 2}, retention),
    "retention_wide": (nn.Retention, {"num_heads": 3, "value_dim": 24, "bias": True}, retention),
    "gla": (nn.GatedLinearAttention, {"num_heads": 3}, gated_linear_attention),
    "gla_cold": (
        nn.GatedLinearAttention,
        {"num_heads": 2, "key_dim": 8, "value_dim": 6, "gate_rank": 3, "temperature": 0.5, "bias": True},
        gated_linear_attention,
    ),
    "delta": (nn.DeltaNet, {"num_heads": 3}, delta_net),
    "delta_plain": (nn.DeltaNet, {"num_heads": 2, "conv_size": None, "gate": True, "bias": True}, delta_net),
    "gated_delta": (nn.GatedDeltaNet, {"num_heads": 3}, delta_net),
    "gated_delta_grouped": (
        nn.GatedDeltaNet,
        {"num_heads": 2, "num_value_heads": 4, "key_dim": 6, "value_dim": 20, "conv_size": 2, "gate": False},
        delta_net,
    ),
}


def made(name, **options):
    cls, own, plain = LAYERS[name]
    torch.manual_seed(0)
    module = cls(E, **own, **{"batch_first": True, "dtype": torch.float64, **options})
    with torch.no_grad():
        for parameter in module.parameters():  # ones and zeros would hide a forgotten one
            parameter += 0.1 * torch.randn_like(parameter)
    return module, plain


def tensors(state):
    return [t for t in (state if isinstance(state, tuple) else (state,)) if t is not None]
