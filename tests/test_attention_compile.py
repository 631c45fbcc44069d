"""Attention under torch.compile, torch.export and opcheck."""

import pytest
import torch
from torch.func import grad, hessian, jvp, vmap
from torch.utils.checkpoint import checkpoint

import attention_ext as ax
from attention_ext._ops import library
from attention_ext._ops.attention_schema import Call

# Graphs do not depend on the instruction set.
pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore::attention_ext.UnfusedWarning")]

M = ax.masks


@pytest.fixture(autouse=True)
def reset():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def leaf(*sizes, dtype=torch.float32):
    return torch.randn(sizes, dtype=dtype, requires_grad=True)


def inputs(Lk=5, B=2):
    """query, key, value, bias, sinks, slopes."""
    return [leaf(B, 4, 3, 8), leaf(B, 2, Lk, 8), leaf(B, 2, Lk, 6), leaf(1, 4, 1, Lk), leaf(4), leaf(4)]


def copies(tensors):
    return [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]


def attend(query, key, value, bias, sinks, slopes, keep):
    mask = M.Causal() & M.Dense(keep)
    return ax.attention(
        2 * query,
        key,
        value,
        mask=mask,
        bias=bias,
        sinks=sinks,
        alibi_slopes=slopes,
        softcap=5.0,
        return_lse=True,
    )


def assert_same(f, g, tensors, *others, exact=True):
    """Equal outputs and gradients of f and g, to the last bit unless exact is False."""
    tolerance = {"rtol": 0, "atol": 0} if exact else {}
    results = []
    for function in (f, g):
        arguments = copies(tensors)
        outputs = function(*arguments, *others)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        value = sum(t.sin().sum() for t in outputs)
        results.append((outputs, torch.autograd.grad(value, arguments)))
    torch.testing.assert_close(*results, **tolerance)


# opcheck


def call(options, heads_last=False):
    q, k, v, bias, sinks, slopes = (t.detach() for t in inputs())
    if heads_last:
        q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v))
    if not options:
        return Call(q, k, v, *M.NO_MASK, None, None, None, 0.3, 0.0, 0.0, None)
    mask = M.Causal() & M.KeyLengths([2, 5]) & M.Dense(torch.rand(2, 1, 3, 5) > 0.3)
    lowered = mask.lower(2, 4, 3, 5, q.device)
    lowered = lowered._replace(band_offset=torch.tensor([0, 1]))
    return Call(q, k, v, *lowered, bias, sinks, slopes, 0.3, 2.0, 0.5, torch.tensor(5))


@pytest.mark.parametrize("heads_last", [False, True])
@pytest.mark.parametrize("options", [False, True])
def test_opcheck(options, heads_last):
    arguments = call(options, heads_last)
    torch.library.opcheck(library.forward, arguments)
    torch.library.opcheck(library.attention, arguments._replace(scale=None))
    differentiable = {
        name: t.requires_grad_()
        for name, t in call(options, heads_last)._asdict().items()
        if isinstance(t, torch.Tensor) and t.is_floating_point()
    }
    torch.library.opcheck(library.attention, arguments._replace(**differentiable))
    out, lse = library.forward(*arguments)
    for grad_lse, needs in [(torch.randn_like(lse), [True] * 6), (None, [True, False] * 3)]:
        backward = (torch.randn_like(out), grad_lse, *arguments[:3], out, lse, *arguments[3:], needs)
        torch.library.opcheck(library.backward, backward)


def test_opcheck_of_pack_mask_bits():
    keep = torch.rand(2, 3, 70) > 0.5
    torch.library.opcheck(library.pack_mask_bits, (keep,))
    torch.library.opcheck(library.pack_mask_bits, (keep.transpose(0, 2),))


@pytest.mark.parametrize(
    "sizes", [(0, 2, 3, 4), (2, 1, 3, 4), (2, 2, 1, 4), (2, 2, 0, 4), (2, 2, 3, 1)], ids=str
)
@pytest.mark.parametrize("heads_last", [False, True])
def test_fake_strides(sizes, heads_last):
    B, H, L, D = sizes
    q, k = (
        torch.randn(B, n, h, D).transpose(1, 2) if heads_last else torch.randn(B, h, n, D)
        for h, n in ((H, L), (1, 5))
    )
    rest = (*M.NO_MASK, None, None, None, 0.3, 0.0, 0.0, None)

    def run(q, k):
        out, lse = library.forward(q, k, k, *rest)
        grads = library.backward(out, lse, q, k, k, out, lse, *rest, [True] * 6)
        return [(t.shape, t.stride(), t.dtype) for t in (out, lse, *grads)]

    # Not .to("meta"), which tidies strides up.
    fake = [torch.empty_strided(t.shape, t.stride(), device="meta") for t in (q, k)]
    assert run(*fake) == run(q, k)


# torch.compile


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile(backend):
    compiled = torch.compile(attend, fullgraph=True, backend=backend)
    assert_same(compiled, attend, inputs(), torch.rand(2, 1, 3, 5) > 0.3, exact=backend != "inductor")


def test_compile_with_dynamic_shapes_does_not_recompile():
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=True)
    # A graph made for one word of mask bits (Lk <= 64) is not the one for more.
    for n, Lk in enumerate((70, 130, 90)):
        keep = torch.rand(2, 1, 3, Lk) > 0.3
        with torch._dynamo.config.patch(error_on_recompile=n > 0):
            assert_same(compiled, attend, inputs(Lk), keep)


def test_compile_without_gradient_and_with_a_dynamic_head_dim():
    compiled = torch.compile(ax.attention, fullgraph=True, backend="aot_eager", dynamic=True)
    for n, D in enumerate((11, 13, 32)):
        q, k, v = torch.randn(2, 4, 3, D), torch.randn(2, 2, 5, D), torch.randn(2, 2, 5, D)
        with torch._dynamo.config.patch(error_on_recompile=n > 0):
            torch.testing.assert_close(compiled(q, k, v), ax.attention(q, k, v), rtol=0, atol=0)


def test_the_graph_holds_one_node():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    torch.compile(attend, fullgraph=True, backend=backend)(*inputs(), torch.rand(3, 5) > 0.3)
    (graph,) = graphs
    targets = [node.target for node in graph.graph.nodes if "attention_ext" in str(node.target)]
    assert [str(t).removesuffix(".default") for t in targets] == [
        "attention_ext._pack_mask_bits",
        "attention_ext.attention",
    ]


def test_compile_dropout():
    q, k, v, *_ = inputs()

    def f(q, k, v, seed=None):
        return ax.attention(q, k, v, dropout_p=0.5, dropout_seed=seed)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    assert_same(compiled, f, [q, k, v], torch.tensor(7))
    assert_same(compiled, f, [q, k, v], 7)
    first, second = compiled(q, k, v), compiled(q, k, v)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    first = compiled(q, k, v)
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(q, k, v), first, rtol=0, atol=0)


def test_compile_checkpoint_with_dropout():
    def f(q, k, v):
        return ax.attention(2 * q, k, v, dropout_p=0.5)

    def run(q, k, v):
        torch.manual_seed(3)
        return compiled(q, k, v)

    def expected(q, k, v):
        torch.manual_seed(3)
        return f(q, k, v)

    compiled = torch.compile(
        lambda *x: checkpoint(f, *x, use_reentrant=False), fullgraph=True, backend="aot_eager"
    )
    assert_same(run, expected, inputs()[:3])


TRANSFORMS = {
    "grad": lambda f: grad(f, (0, 1, 2)),
    "jvp": lambda f: lambda *x: jvp(f, x, x),
    "vmap": lambda f: lambda *x: vmap(f)(*(t.expand(3, *t.shape) for t in x)),
    "vmap_grad": lambda f: lambda *x: vmap(grad(f))(*(t.expand(3, *t.shape) for t in x)),
    "hessian": hessian,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_compile_func(name):
    arguments = [t.detach() for t in (leaf(1, 2, 2, 3), leaf(1, 1, 3, 3), leaf(1, 1, 3, 3))]
    f = TRANSFORMS[name](lambda q, k, v: ax.attention(q, k, v, mask=M.Causal()).square().sum())
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), f(*arguments))
    if name != "vmap":  # and around a compiled function
        compiled = torch.compile(
            lambda q, k, v: ax.attention(q, k, v, mask=M.Causal()).square().sum(), backend="aot_eager"
        )
        torch.testing.assert_close(TRANSFORMS[name](compiled)(*arguments), f(*arguments))


def test_double_backward_of_a_compiled_function_is_right_or_an_error():
    q, k, v, *_ = inputs()

    def second(f):
        (g,) = torch.autograd.grad(f(q, k, v).square().sum(), q, create_graph=True)
        return torch.autograd.grad(g.square().sum(), k)

    expected = second(ax.attention)
    torch.testing.assert_close(second(torch.compile(ax.attention, backend="eager")), expected)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        second(torch.compile(ax.attention, backend="aot_eager"))


def test_compiled_autograd():
    q, k, v, *_ = inputs()
    expected = torch.autograd.grad(ax.attention(q, k, v).square().sum(), (q, k, v))
    value = ax.attention(q, k, v).square().sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        value.backward()
    torch.testing.assert_close((q.grad, k.grad, v.grad), expected, rtol=0, atol=0)


def test_errors_keep_their_words():
    q = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"^key: expected the head dimension of query, 3, got shape"):
        torch.compile(ax.attention, backend="eager")(q, torch.randn(4, 5), torch.randn(4, 5))


# torch.export


class Attention(torch.nn.Module):
    def forward(self, query, key, value, lengths):
        return ax.attention(query, key, value, mask=M.Causal() & M.KeyLengths(lengths))


def exported(strict):
    batch, keys = torch.export.Dim("batch", max=64), torch.export.Dim("keys", min=2, max=512)
    q, k, v, *_ = (t.detach() for t in inputs())
    shapes = ({0: batch}, {0: batch, 2: keys}, {0: batch, 2: keys}, {0: batch})
    return torch.export.export(
        Attention(), (q, k, v, torch.tensor([2, 5])), dynamic_shapes=shapes, strict=strict
    )


def attention_nodes(program):
    return [str(node.target) for node in program.graph.nodes if "attention_ext" in str(node.target)]


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    program = exported(strict)
    assert attention_nodes(program) == ["attention_ext.attention.default"]
    decomposed = program.run_decompositions()
    assert attention_nodes(decomposed) == ["attention_ext.attention.default"]
    arguments, lengths = inputs(Lk=9, B=3)[:3], torch.tensor([2, 0, 9])
    for module in (program.module(), decomposed.module()):
        assert_same(module, Attention(), arguments, lengths)


def test_an_exported_program_is_differentiable_like_the_function():
    module, lengths = exported(strict=False).module(), torch.tensor([2, 5])
    q, k, v, *_ = (t.detach() for t in inputs())

    def derivatives(f):
        def g(q):
            return f(q, k, v, lengths).square().sum()

        return hessian(g)(q), jvp(g, (q,), (q.cos(),)), vmap(grad(g))(q[None])

    torch.testing.assert_close(derivatives(module), derivatives(Attention()))
