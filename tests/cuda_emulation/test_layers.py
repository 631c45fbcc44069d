"""What is built on the operators gives on CUDA what it gives on the CPU: layers, packed sequences."""

import emulation
import pytest
import recurrent_layer_cases
import torch

import attention_ext as ax
from attention_ext import masks, nn

E, H, L = 16, 2, 70
LAYERS = {
    "multihead": lambda: ax.MultiheadAttention(E, H, batch_first=True),
    "longformer": lambda: nn.LongformerAttention(E, H, window=4, global_tokens=(0, 40), batch_first=True),
    "fixed": lambda: nn.StridedAttention(E, H, stride=9, mode="fixed", batch_first=True),
    "bigbird": lambda: nn.BigBirdAttention(
        E, H, block_size=8, window_blocks=3, random_blocks=1, batch_first=True
    ),
    "neighborhood": lambda: nn.NeighborhoodAttention(E, H, shape=(7, 10), window=3, batch_first=True),
    "moba": lambda: nn.MoBAAttention(E, H, block_size=8, top_k=3, batch_first=True),
    "nsa": lambda: nn.NativeSparseAttention(
        E, H, num_kv_heads=1, compress_length=8, compress_stride=4, block_size=8, top_k=4, window=9,
        batch_first=True,
    ),
    "linformer": lambda: nn.LinformerAttention(E, H, max_length=L, num_projections=8, batch_first=True),
    "nystrom": lambda: nn.NystromAttention(E, H, num_landmarks=8, batch_first=True),
    "linear": lambda: nn.LinearAttention(E, H, causal=True, batch_first=True),
    "performer": lambda: nn.PerformerAttention(E, H, batch_first=True),
}  # fmt: skip


@pytest.fixture(autouse=True)
def installed(kernels, ptx):
    """In place of conftest's: the CPU's kernels run here, too, but for what a test installs."""
    yield
    assert not kernels.findings()


def assert_same_on_cuda(kernels, function):
    expected, before = function(), kernels.calls
    with kernels.installed():
        found = function()
    assert kernels.calls > before
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_layers(layer, kernels):
    # In double no two scores of blocks are so near that rounding decides.
    layer, x = layer().double(), torch.randn(2, L, E, dtype=torch.float64, requires_grad=True)
    padding = torch.zeros(2, L, dtype=torch.bool)
    padding[0, 60:] = True

    def run():
        out, _ = layer(x, x, x, key_padding_mask=padding, need_weights=False)
        return out, *torch.autograd.grad(out.square().sum(), (x, *layer.parameters()))

    assert_same_on_cuda(kernels, run)


@pytest.mark.parametrize("name", ["retention", "gla", "gated_delta_grouped"])
def test_recurrent_layers_and_their_steps(name, kernels):
    layer, _ = recurrent_layer_cases.made(name)
    x = torch.randn(2, L, recurrent_layer_cases.E, dtype=torch.float64, requires_grad=True)

    def run():
        out, state = layer(x[:, :-1], return_state=True)
        gradients = torch.autograd.grad(out.square().sum(), (x, *layer.parameters()))
        with torch.no_grad():
            step = layer.step(x[:, -1], state)
        return out, *gradients, step

    assert_same_on_cuda(kernels, run)


def test_weights_and_their_dropout(kernels):
    # 12 keys: the checks tell accesses apart by 4 bytes, and the draw is of bytes.
    layer, x = ax.MultiheadAttention(E, H, dropout=0.3), torch.randn(12, 2, E)

    def run():
        torch.manual_seed(0)
        return layer(x, x, x, attn_mask=masks.SlidingWindow(3, 0) | masks.Global(1))

    assert_same_on_cuda(kernels, run)


@pytest.mark.parametrize("starts", [[0, 30, 30, 70], torch.tensor([0, 1, 65, 70])], ids=["list", "tensor"])
def test_packed_sequences(starts, kernels):
    query, key, value = (torch.randn(70, H, 8, requires_grad=True) for _ in range(3))

    def run():
        options = {"mask": masks.Causal(), "dropout_p": 0.2, "dropout_seed": 3}
        out = ax.attention_varlen(query, key, value, starts, **options)
        return out, *torch.autograd.grad(out.square().sum(), (query, key, value))

    assert_same_on_cuda(kernels, run)


def test_nested_tensors(kernels):
    rows = [torch.randn(n, H, 8) for n in (5, 65, 1)]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged).transpose(1, 2)

    def run():
        return (ax.attention(nested, nested, nested, mask=masks.Causal()).transpose(1, 2).values(),)

    assert_same_on_cuda(kernels, run)


@pytest.mark.filterwarnings("ignore::attention_ext.UnfusedWarning")
def test_second_derivatives_with_a_table(kernels):
    query = torch.randn(1, 1, 5, 4, dtype=torch.float64, requires_grad=True)

    def run():
        out = ax.attention(query, query, query, mask=masks.Causal() | masks.Global(1))
        (first,) = torch.autograd.grad(out.square().sum(), query, create_graph=True)
        return torch.autograd.grad(first.square().sum(), query)

    assert_same_on_cuda(kernels, run)


@pytest.mark.filterwarnings("ignore::attention_ext.UnfusedWarning")
def test_forward_mode_and_vmap(kernels):
    query = torch.randn(3, 2, 2, 5, 4, dtype=torch.float64)

    def value(x):
        return ax.attention(x, x, x, mask=masks.Causal()).square().sum()

    def run():
        _, along = torch.func.jvp(value, (query[0],), (query[1],))
        return along, torch.func.vmap(torch.func.grad(value))(query)

    assert_same_on_cuda(kernels, run)


def test_autocast(kernels):
    query = torch.randn(2, 2, 70, 8, requires_grad=True)

    def run():
        with torch.autocast("cpu", torch.bfloat16):
            out = ax.attention(query, query, query, mask=masks.Causal())
        assert out.dtype == torch.bfloat16
        return out.float() / 500, *(g / 500 for g in torch.autograd.grad(out.float().sum(), query))

    assert_same_on_cuda(kernels, run)


@pytest.mark.skipif(emulation.MODE == "checked", reason="the graph's kernels are those of eager")
def test_a_compiled_layer(kernels):
    layer, x = LAYERS["bigbird"](), torch.randn(1, L, E)

    def run():
        torch._dynamo.reset()
        compiled = torch.compile(layer, backend="aot_eager")
        return (compiled(x, x, x, need_weights=False)[0],)

    assert_same_on_cuda(kernels, run)
