"""A canary for each private function of torch: that it is there, and means what _ops/transforms.py says."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch._subclasses.fake_tensor import FakeTensorMode

import attention_ext as ax
from attention_ext._ops import transforms


@pytest.fixture(scope="module")
def canary():
    """An op x -> 2x whose Autograd kernel notes what it sees, and the notes."""
    name, notes = "attention_ext_canary::double", []
    library = torch.library.Library("attention_ext_canary", "DEF")
    library.define("double(Tensor x) -> Tensor")
    op = torch.ops.attention_ext_canary.double.default

    def autograd(keyset, x):
        notes.append(transforms.transforms_active())
        return op.redispatch(transforms.after_autograd(keyset), x)

    library.impl("double", lambda x: 2 * x, "CPU")
    library.impl("double", autograd, "Autograd", with_keyset=True)
    torch.library.register_vmap(name, lambda info, in_dims, x: (op(x), in_dims[0]), lib=library)
    yield op, notes
    library._destroy()


def test_watch_ops():
    seen = []
    x = torch.ones(2, requires_grad=True)
    with transforms.watch_ops(lambda op, args: seen.append(op)):
        y = x.exp().sum()
        y.backward()
        with transforms.below_autograd():
            torch.add(x, 1)
    x.exp()
    ran = [op for op in seen if op in (torch.ops.aten.exp.default, torch.ops.aten.sum.default)]
    assert ran == [torch.ops.aten.exp.default, torch.ops.aten.sum.default]
    assert seen[-1] == torch.ops.aten.add.Tensor
    torch.testing.assert_close(x.grad, torch.ones(2).exp())


def test_transforms_active():
    seen = []

    def note(x):
        seen.append(transforms.transforms_active())
        return x.sum()

    x = torch.ones(2)
    note(x)
    torch.func.grad(note)(x)
    torch.func.vmap(note)(x)
    torch.func.jvp(note, (x,), (x,))
    note(x)
    assert seen == [False, True, True, True, False]


def test_transforms_active_in_an_autograd_kernel(canary):
    op, notes = canary
    x = torch.ones(2)

    def noted(f):
        notes.clear()
        f()
        return list(notes)

    total = lambda x: op(x).sum()  # noqa: E731
    assert noted(lambda: op(x)) == [False]
    assert noted(lambda: torch.func.vmap(op)(x)) == [False]
    assert noted(lambda: torch.func.vmap(torch.func.vmap(op))(x[None])) == [False]
    # Once at the level that differentiates, once below.
    assert noted(lambda: torch.func.grad(total)(x)) == [True, False]
    assert noted(lambda: torch.func.jvp(op, (x,), (x,))) == [True, False]
    assert noted(lambda: torch.func.vmap(torch.func.grad(total))(x[None])) == [True, False]
    assert noted(lambda: torch.func.grad(lambda x: torch.func.vmap(op)(x).sum())(x)) == [True, False]


def test_forward_mode_active():
    seen = []

    def note(x):
        seen.append(transforms.forward_mode_active())
        return x

    x = torch.ones(2)
    note(x)
    with forward_ad.dual_level():
        note(x)
    torch.func.jvp(note, (x,), (x,))
    torch.func.vmap(note)(x)
    torch.func.grad(lambda x: note(x).sum())(x)
    note(x)
    assert seen == [False, True, True, False, False, False]


def test_below_autograd_and_after_autograd(canary):
    op, notes = canary
    x = torch.ones(2)
    notes.clear()
    assert op(x).tolist() == [2, 2]  # after_autograd: the kernel came to the CPU's, once
    assert notes == [False]
    with transforms.below_autograd():
        assert op(x).tolist() == [2, 2]
    assert notes == [False]
    op(x)
    assert notes == [False, False]


def test_is_fake():
    seen = []

    def note(x):
        seen.append(transforms.is_fake(x))
        return x.sum()

    real = torch.ones(2)
    for x in (real, FakeTensorMode().from_tensor(real)):
        note(x)
        torch.func.grad(note)(x)
        torch.func.vmap(note)(x[None])
        torch.func.jvp(torch.func.grad(note), (x,), (x,))
    assert seen == [False] * 4 + [True] * 4


def test_schema_of():
    schema = transforms.schema_of(torch.ops.aten.sin.default)
    assert schema == "aten::sin(Tensor self) -> Tensor"


def test_wrapper_subclass():
    class Two(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            return torch.full(args[0].shape, 2)

    shape = transforms.wrapper_subclass(Two, (3, 10**9), torch.bool, torch.device("cpu"))
    assert (type(shape), tuple(shape.shape), shape.dtype) == (Two, (3, 10**9), torch.bool)
    small = transforms.wrapper_subclass(Two, (2,), torch.bool, torch.device("cpu"))
    assert small.logical_not().tolist() == [2, 2]


def test_register_pytree_class():
    class Pair:
        def __init__(self, a, b):
            self.a, self.b = a, b

    transforms.register_pytree_class(
        Pair, lambda p: ([p.a], [p.b]), lambda children, rest: Pair(*children, *rest), lambda p: ["a"]
    )
    twice = torch.utils._pytree.tree_map(lambda x: 2 * x, Pair(torch.ones(2), 3))
    assert (twice.a.tolist(), twice.b) == ([2, 2], 3)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (torch._C, "_are_functorch_transforms_active", lambda q: ax.attention(q, q, q)),
        (forward_ad, "_current_level", lambda q: ax.attention(q, q, q)),
        (torch._C, "_AutoDispatchBelowAutograd", lambda q: ax.attention(q, q, q)),
        (torch._C, "_after_autograd_keyset", lambda q: transforms.after_autograd(None)),
        (object, "_make_wrapper_subclass", lambda q: transforms.wrapper_subclass(object, (), None, None)),
        (torch._subclasses.fake_tensor, "is_fake", lambda q: transforms.is_fake(q)),
        (torch.utils, "_pytree", lambda q: transforms.register_pytree_class(Exception, None, None, None)),
        (torch._ops.OpOverload, "_schema", lambda q: transforms.schema_of(object())),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_missing_one_raises(owner, name, call, monkeypatch):
    if name not in ("_schema", "_make_wrapper_subclass"):  # there the call gives an object without it
        monkeypatch.delattr(owner, name)
    with pytest.raises(RuntimeError, match=f"needs .*{name}, which torch .* does not have"):
        call(torch.randn(1, 1, 2, 4))
