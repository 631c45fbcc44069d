"""What only a GPU shows: streams, devices, graphs, waiting, memory beyond 32 bits, and its tensor cores."""

import device
import pytest
import torch
import torch.nn.functional as F
from helpers import Shape, assert_close_to, make_qkv
from torch.nn.attention import SDPBackend, sdpa_kernel

import attention_ext as ax
from attention_ext import masks
from attention_ext._ops import library

NO_CUDA = device.no_cuda()
pytestmark = [pytest.mark.once, pytest.mark.skipif(NO_CUDA is not None, reason=str(NO_CUDA))]

CUDA = "cuda"
FLOATS = (torch.float32, torch.bfloat16)


def attention(query, key, value, bias, sinks):
    return ax.attention(query, key, value, mask=masks.Causal(), bias=bias, sinks=sinks)


# One object, so that its table is built once.
TABLE = masks.SlidingWindow(20, 0) | masks.Global(3)


def attention_with_a_table(query, key, value):
    return ax.attention(query, key, value, mask=TABLE)


def attention_with_chosen_blocks(query, key, value):
    """A table that the device makes anew in each call."""
    L = query.shape[2]
    blocks = torch.arange(L, dtype=torch.int32, device=query.device) * 7 % -(-L // 64)
    mask = masks.Selected(torch.stack([blocks, blocks // 2], dim=-1), 64) & masks.Causal()
    return ax.attention(query, key, value, mask=mask)


def linear_attention(query, key, value, decay):
    return ax.linear_attention(query, key, value, causal=True, normalize=False, decay=-decay.abs())


def delta_rule(query, key, value, beta):
    return ax.delta_rule(query, F.normalize(key, dim=-1), value, beta.sigmoid())


# Operators, and the shapes of what they are differentiated by, for B, H, L, D.
CALLS = {
    "attention": (attention, lambda B, H, L, D: [*qkv_sizes(B, H, L, D), (H, 1, L), (H,)]),
    "attention_with_a_table": (attention_with_a_table, lambda B, H, L, D: qkv_sizes(B, H, L, D)),
    "attention_with_chosen_blocks": (attention_with_chosen_blocks, lambda B, H, L, D: qkv_sizes(B, H, L, D)),
    "linear_attention": (linear_attention, lambda B, H, L, D: [(B, H, L, D)] * 3 + [(B, H, L)]),
    "delta_rule": (delta_rule, lambda B, H, L, D: [(B, H, L, D)] * 3 + [(B, H, L)]),
}
every_call = pytest.mark.parametrize("name", CALLS)
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def qkv_sizes(B, H, L, D):
    return [(B, H, L, D), (B, H // 2, L, D), (B, H // 2, L, D)]


def leaves_of(name, *sizes, dtype, on=CUDA):
    made = [torch.randn(size, dtype=dtype, device=on) for size in CALLS[name][1](*sizes)]
    return [t.requires_grad_() for t in made]


def results(name, leaves):
    """out, and the gradients of a sum that weighs its elements."""
    out = CALLS[name][0](*leaves)
    return [out, *torch.autograd.grad((out * out.detach().cos()).sum(), leaves)]


def assert_same_bits(found, expected):
    for n, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(a, b), f"result {n}"


@every_call
def test_gradcheck(name):
    leaves = leaves_of(name, 1, 2, 5, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(CALLS[name][0], leaves)


@every_call
@every_dtype
def test_results_are_those_of_the_cpu(name, dtype):
    leaves = leaves_of(name, 2, 4, 200, 64, dtype=dtype)
    at_home = [t.detach().cpu().requires_grad_() for t in leaves]
    exact = [t.detach().double().requires_grad_() for t in at_home]
    three = results(name, leaves), results(name, exact), results(name, at_home)
    for n, (a, e, p) in enumerate(zip(*three, strict=True)):
        assert_close_to(a.cpu(), e, p, f"result {n}", floor=4 * torch.finfo(dtype).eps)


@every_call
@every_dtype
def test_bits_are_the_same_from_run_to_run(name, dtype):
    leaves = leaves_of(name, 2, 4, 1000, 64, dtype=dtype)
    expected = results(name, leaves)
    for _ in range(5):
        assert_same_bits(results(name, leaves), expected)


def test_dropout_draws_are_those_of_the_cpu():
    seed = torch.tensor(-12345, device="cpu")
    sizes = (2, 3, 70, 131)
    here, there = (library.dropout_keep(seed.to(on), 0.3, *sizes).cpu() for on in ("cpu", CUDA))
    assert torch.equal(here, there)


# streams, graphs, devices


@every_call
@every_dtype
def test_work_runs_on_the_current_stream(name, dtype):
    leaves = leaves_of(name, 1, 4, 200, 64, dtype=dtype)
    expected = results(name, leaves)
    late = [torch.full_like(t, torch.nan).requires_grad_() for t in leaves]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)  # on another stream the operators would see NaN
        with torch.no_grad():
            for t, values in zip(late, leaves, strict=True):
                t.copy_(values)
        found = results(name, late)
    torch.cuda.current_stream().wait_stream(stream)
    assert_same_bits(found, expected)


@every_call
@every_dtype
def test_a_cuda_graph_replays_both_passes(name, dtype):
    leaves = leaves_of(name, 1, 4, 200, 64, dtype=dtype)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            results(name, leaves)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = results(name, leaves)
    for _ in range(2):
        with torch.no_grad():
            for t in leaves:
                t.normal_()
        graph.replay()
        assert_same_bits(found, results(name, leaves))


@every_call
def test_nothing_waits_for_the_device(name):
    leaves = leaves_of(name, 1, 4, 200, 64, dtype=torch.bfloat16)
    results(name, leaves)  # a table is built on the CPU, once
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(name, leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_call
def test_a_device_that_is_not_the_current_one(name):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    leaves = leaves_of(name, 1, 4, 200, 64, dtype=torch.float32)
    away = [t.detach().to("cuda:1").requires_grad_() for t in leaves]
    found = results(name, away)
    assert torch.cuda.current_device() == 0
    assert {t.device for t in found} == {torch.device("cuda:1")}
    for a, b in zip(found, results(name, leaves), strict=True):
        torch.testing.assert_close(a.to(b.device), b)


def test_arguments_on_two_devices_are_named():
    query = torch.randn(1, 2, 5, 8, device=CUDA)
    away = query.cpu()
    place = query.device
    with pytest.raises(ValueError, match=f"^key: expected the device of query, {place}, got cpu"):
        ax.attention(query, away, query)
    with pytest.raises(ValueError, match=f"^bias: expected the device of query, {place}, got cpu"):
        ax.attention(query, query, query, bias=torch.zeros(5, 5, device="cpu"))
    keep = masks.Dense(torch.ones(5, 5, dtype=torch.bool, device="cpu"))
    with pytest.raises(ValueError, match=rf"^mask: .*{place}, got cpu; mask\.to\(device\)"):
        ax.attention(query, query, query, mask=keep)
    with pytest.raises(ValueError, match=f"^beta: expected the device of query, {place}, got cpu"):
        ax.delta_rule(query, query, query, away[..., 0])


# torch.compile, autocast


@every_call
@every_dtype
def test_compile(name, dtype):
    leaves = leaves_of(name, 1, 4, 200, 64, dtype=dtype)
    compiled = torch.compile(CALLS[name][0], fullgraph=True)
    torch.testing.assert_close(compiled(*leaves), CALLS[name][0](*leaves))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    query, key, value = (t.to(CUDA) for t in make_qkv(Shape(1, 4, 2, 70, 90, 64, 64)))
    with torch.autocast(CUDA, dtype):
        out = ax.attention(query, key, value)
    assert out.dtype == dtype
    expected = ax.attention(*(t.to(dtype) for t in (query, key, value)))
    assert torch.equal(out, expected)


# tensor cores


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("D", [64, 80, 128, 200, 256])  # from 128 on shared memory is opted in
def test_as_good_as_sdpa(D, causal, dtype):
    shape = Shape(2, 4, 2, 333, 333, D, D)
    qkv = [t.to(CUDA) for t in make_qkv(shape, dtype)]
    cotangent = torch.randn(2, 4, 333, D, dtype=dtype, device=CUDA)

    def run(function, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in qkv]
        out = function(*leaves)
        return [out, *torch.autograd.grad(out, leaves, cotangent.to(dtype))]

    def sdpa(query, key, value):
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            return F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True)

    mask = masks.Causal() if causal else None
    found = run(lambda *x: ax.attention(*x, mask=mask), dtype)
    exact = run(lambda *x: ax.reference.attention(*x, mask=mask), torch.float64)
    for n, (a, e, p) in enumerate(zip(found, exact, run(sdpa, dtype), strict=True)):
        assert_close_to(a, e, p, f"result {n}")


# memory


@pytest.mark.parametrize("name", ["attention_with_a_table", "attention"])
def test_memory_is_linear_in_length(name):
    needed = {}
    for L in (4096, 16384):
        leaves = leaves_of(name, 1, 4, L, 64, dtype=torch.bfloat16)
        results(name, leaves)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results(name, leaves)
        needed[L] = torch.cuda.max_memory_allocated() - before
    assert needed[16384] < 5 * needed[4096]


def test_offsets_beyond_32_bits():
    L, D, tail, reach = 2**25 + 64, 64, 200, 63
    free = torch.cuda.mem_get_info()[0]
    if free < 44 * 2**30:
        pytest.skip(f"needs 44 GiB of device memory, {free / 2**30:.0f} are free")
    leaves = [torch.randn(1, 1, L, D, dtype=torch.bfloat16, device=CUDA).requires_grad_() for _ in range(3)]
    assert leaves[0].numel() > 2**31

    def run(query, key, value):
        out = ax.attention(query, key, value, mask=masks.SlidingWindow(reach, 0))
        grads = torch.autograd.grad(out[:, :, -tail:].float().sum(), (query, key, value))
        return [t[:, :, -tail:] for t in (out, *grads)]

    found = run(*leaves)
    ends = [t.detach()[:, :, -tail - reach :].clone().requires_grad_() for t in leaves]
    expected = run(*ends)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
