"""Linear attention, the delta rule and their steps in graphs: export, inductor, checkpointing, opcheck."""

import pytest
import torch
from linear_cases import Shape, make_decay, make_qkv, make_state
from test_delta_rule import make_inputs
from torch.func import vmap
from torch.utils.checkpoint import checkpoint

import attention_ext as ax
from attention_ext._ops import library

pytestmark = pytest.mark.once
S = Shape(1, 4, 2, 2, 20, 6, 5)


class Both(torch.nn.Module):
    """The outputs of one fed to the other, and all states."""

    def forward(self, q, k, v, beta, decay, lengths):
        out, (state, z) = ax.linear_attention(
            q, k, v, causal=True, decay=decay, key_lengths=lengths, return_state=True
        )
        out, last = ax.delta_rule(
            q, k / 3, out, beta.repeat_interleave(2, 1), key_lengths=lengths, return_state=True
        )
        return out, state, z, last


def inputs(s=S, requires_grad=True):
    tensors = [t.requires_grad_(requires_grad) for t in make_inputs(s, "token", state=False)]
    return (*tensors, torch.tensor([s.L - 3]))


def gradients(f, tensors):
    outputs = f(*tensors)
    wanted = [t for t in tensors if t.requires_grad]
    return [o.detach() for o in outputs], torch.autograd.grad(sum(o.sin().sum() for o in outputs), wanted)


def test_export_with_another_length(tmp_path):
    L = torch.export.Dim("L", min=2, max=4096)
    tokens, numbers = {2: L}, {2: L}
    shapes = (tokens, tokens, tokens, numbers, numbers, None)
    program = torch.export.export(Both(), inputs(requires_grad=False), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "both.pt2")
    loaded = torch.export.load(tmp_path / "both.pt2").module()
    for length in (20, 700):
        tensors = inputs(S._replace(L=length), requires_grad=False)
        torch.testing.assert_close(loaded(*tensors), Both()(*tensors), rtol=0, atol=0)


def test_inductor():
    torch._dynamo.reset()
    tensors = inputs()
    compiled = torch.compile(Both(), fullgraph=True)
    torch.testing.assert_close(gradients(compiled, tensors), gradients(Both(), tensors))


def test_not_causal_and_packed_in_a_graph():
    torch._dynamo.reset()
    q, k, v, beta, decay, _ = inputs()
    borders = torch.tensor([0, 7, 7, 20])

    def f(q, k, v, beta, decay):
        a = ax.linear_attention(q, k, v, cu_seqlens=borders)
        b = ax.linear_attention(q, k, v, causal=True, decay=decay, cu_seqlens=borders, normalize=False)
        return a, b, ax.delta_rule(q, k / 3, v, beta, decay=decay, cu_seqlens=borders)

    tensors = (q, k, v, beta, decay)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, tensors), gradients(f, tensors), rtol=0, atol=0)


def test_activation_checkpointing():
    tensors = inputs()
    again = gradients(lambda *args: checkpoint(Both(), *args, use_reentrant=False), tensors)
    torch.testing.assert_close(again, gradients(Both(), tensors), rtol=0, atol=0)


def one_token():
    """Arguments of the two raw steps."""
    s = S._replace(L=1)
    q, k, v = make_qkv(s)
    state, z = make_state(s, True)
    decay, beta = make_decay(s, "token"), torch.rand(1, s.Hs, 1)
    return (q, k, v, state, z, 1, decay, 1.0, True, 1e-6), (q, k, v, beta, state.clone(), decay, 0.5)


@pytest.mark.parametrize("which", [0, 1], ids=["linear_attention", "delta_rule"])
def test_opcheck_of_the_steps(which):
    step = (library.linear_step, library.delta_step)[which]
    torch.library.opcheck(step, one_token()[which])


def test_steps_in_a_graph():
    torch._dynamo.reset()
    s = S._replace(L=3)
    q, k, v = make_qkv(s)
    beta = torch.rand(1, s.Hs, 3)

    def generate(state, z, other):
        outs = []
        for t in range(3):
            token = (q[:, :, t], k[:, :, t], v[:, :, t])
            outs.append(ax.linear_attention_step(*token, (state, z)))
            outs.append(ax.delta_rule_step(*token, beta[:, :, t], other))
        return torch.stack(outs)

    state, z = make_state(s, True)
    results = []
    for f in (generate, torch.compile(generate, fullgraph=True, backend="aot_eager")):
        states = [t.clone() for t in (state, z, state)]
        results.append((f(*states), states))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_steps_refuse_vmap():
    q, k, v, *_ = make_qkv(S._replace(B=3, L=1))
    states = make_state(S._replace(B=3), False)[0]

    def one(q, k, v, state):
        token = (t[None, :, 0] for t in (q, k, v))
        return ax.linear_attention_step(*token, state[None], normalize=False)

    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        vmap(one)(q, k, v, states)
