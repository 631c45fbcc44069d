"""ax.MultiheadAttention beside torch.nn.MultiheadAttention."""

import copy
import inspect
import io
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.testing._internal.common_modules import (
    module_inputs_torch_nn_MultiheadAttention,
    no_batch_dim_reference_mha,
)
from torch.utils._python_dispatch import TorchDispatchMode

import attention_ext as ax

N, L, S, E, H = 3, 4, 5, 8, 2
KDIM, VDIM = 6, 10
INF = math.inf


@pytest.fixture(autouse=True)
def one_thread(num_threads):
    num_threads(1)  # the tensors are tiny: more would only wait for each other


class Watch(TorchDispatchMode):
    """Names of the ops called inside, and the size of the largest tensor that they made."""

    def __init__(self):
        super().__init__()
        self.ops = []
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.ops.append(func._schema.name)
        views = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)}
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in views:
                self.largest = max(self.largest, tensor.numel())
        return result

    @property
    def attention_calls(self):
        return self.ops.count("attention_ext::_attention_forward")


def both(*args, seed=0, **kwargs):
    """The same module from torch and from us, equal by their seed."""
    kwargs = {"dtype": torch.float64, **kwargs}
    modules = []
    for cls in (nn.MultiheadAttention, ax.MultiheadAttention):
        torch.manual_seed(seed)
        modules.append(cls(*args, **kwargs))
    for module in modules:  # zero biases would hide a forgotten one
        torch.manual_seed(seed + 1)
        for name, parameter in module.named_parameters():
            if "bias" in name:
                nn.init.normal_(parameter)
    return modules


def sample(*shape, requires_grad=True):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=requires_grad)


def sample_inputs(kind, batch_first=False):
    """query, key, value of one object, two, three, or three sizes."""

    def make(length, features):
        return sample(*((N, length) if batch_first else (length, N)), features)

    query = make(L, E)
    if kind == "self":
        return query, query, query
    if kind == "cross":
        return query, (memory := make(S, E)), memory
    if kind == "three":
        return query, make(S, E), make(S, E)
    return query, make(S, KDIM), make(S, VDIM)


def mask_of(kind, shape):
    """A mask that leaves key 0 to everybody. None, bool, float (finite) or hard (float with -inf)."""
    if kind is None:
        return None
    hidden = torch.rand(shape) < 0.4
    hidden[..., 0] = False
    if kind == "bool":
        return hidden
    mask = torch.randn(shape, dtype=torch.float64)
    return (mask if kind == "float" else mask.masked_fill(hidden, -INF)).requires_grad_()


def check_same(expected_module, module, inputs, masks, **options):
    """Output, weights and the gradients of inputs, masks and parameters."""
    results = []
    for m in (expected_module, module):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch, on mixed mask types
            output, weights = m(*inputs, **masks, **options)
        leaves = {id(x): x for x in (*inputs, *masks.values()) if x is not None and x.requires_grad}
        leaves = [*leaves.values(), *m.parameters()]
        torch.manual_seed(5)
        loss = (output * torch.randn(output.shape, dtype=output.dtype)).sum()
        if weights is not None:
            loss = loss + (weights * torch.randn(weights.shape, dtype=weights.dtype)).sum()
        results.append((output, weights, torch.autograd.grad(loss, leaves)))
    (output, weights, grads), (our_output, our_weights, our_grads) = results
    assert_close(our_output, output)
    assert our_output.is_contiguous()
    assert (weights is None) == (our_weights is None)
    if weights is not None:
        assert_close(our_weights, weights)
    for ours, expected in zip(our_grads, grads, strict=True):
        assert_close(ours, expected)


# The module itself.


def test_is_a_subclass_with_the_same_signatures():
    module = ax.MultiheadAttention(E, H)
    assert isinstance(module, nn.MultiheadAttention)
    for method in ("__init__", "forward"):
        ours, theirs = (
            [(p.name, p.default, p.kind) for p in inspect.signature(getattr(cls, method)).parameters.values()]
            for cls in (ax.MultiheadAttention, nn.MultiheadAttention)
        )
        assert ours == theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True}, {"kdim": KDIM}, {"kdim": KDIM, "vdim": VDIM}])
def test_state_dict_and_initial_weights(options, bias):
    torch.manual_seed(3)
    theirs = nn.MultiheadAttention(E, H, bias=bias, **options)
    torch.manual_seed(3)
    ours = ax.MultiheadAttention(E, H, bias=bias, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name

    other = ax.MultiheadAttention(E, H, bias=bias, **options)
    other.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(other.state_dict(), strict=True)
    query = torch.randn(L, E)
    key, value = torch.randn(S, options.get("kdim", E)), torch.randn(S, options.get("vdim", E))
    assert_close(other(query, key, value), theirs(query, key, value))


@pytest.mark.parametrize("clone", ["deepcopy", "pickle", "torch.save"])
def test_copies(clone):
    module = ax.MultiheadAttention(E, H, add_bias_kv=True, batch_first=True).eval()
    if clone == "deepcopy":
        twin = copy.deepcopy(module)
    elif clone == "pickle":
        twin = pickle.loads(pickle.dumps(module))
    else:
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert type(twin) is ax.MultiheadAttention
    assert twin.in_proj_weight is not module.in_proj_weight
    x = torch.randn(N, L, E)
    assert torch.equal(twin(x, x, x)[0], module(x, x, x)[0])


# The same as torch.


MODULE_INPUTS = module_inputs_torch_nn_MultiheadAttention(None, "cpu", torch.float64, True, False)


@pytest.mark.parametrize("index", range(len(MODULE_INPUTS)))
def test_torch_module_inputs(index):
    case = MODULE_INPUTS[index]
    theirs, ours = both(**case.constructor_input.kwargs)
    args, kwargs = case.forward_input.args, case.forward_input.kwargs
    for training in (True, False):
        theirs.train(training)
        ours.train(training)
        for need_weights, average in [(False, True), (True, True), (True, False)]:
            options = {"need_weights": need_weights, "average_attn_weights": average}
            if training:
                check_same(theirs, ours, args, kwargs, **options)
            else:
                assert_close(ours(*args, **kwargs, **options), theirs(*args, **kwargs, **options))
    options = {} if ours.batch_first else {"batch_first": False}
    batched = no_batch_dim_reference_mha(ours, None, *args, **kwargs, **options)
    assert_close(ours(*args, **kwargs), batched)


ATTN_MASKS = [None, "bool", "float", "hard", "bool heads", "float heads"]
PADDING_MASKS = [None, "bool", "float", "hard"]


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("padding", PADDING_MASKS)
@pytest.mark.parametrize("attn", ATTN_MASKS)
@pytest.mark.parametrize("kind", ["self", "cross", "three", "sizes"])
def test_same_as_torch(kind, attn, padding, need_weights):
    """Every kind of input with every pair of masks; layouts and appended keys take turns."""
    turn = ATTN_MASKS.index(attn) + PADDING_MASKS.index(padding)
    options = [
        {"batch_first": True},
        {"add_bias_kv": True},
        {"batch_first": True, "add_bias_kv": True, "add_zero_attn": True, "bias": False},
        {"add_zero_attn": True},
        {"bias": False},
    ][turn % 5]
    keys = L if kind == "self" else S
    shape = (N * H, L, keys) if attn and "heads" in attn else (L, keys)
    masks = {
        "attn_mask": mask_of(attn and attn.split()[0], shape),
        "key_padding_mask": mask_of(padding, (N, keys)),
    }
    sizes = {"kdim": KDIM, "vdim": VDIM} if kind == "sizes" else {}
    check_same(
        *both(E, H, **options, **sizes),
        sample_inputs(kind, options.get("batch_first", False)),
        masks,
        need_weights=need_weights,
        average_attn_weights=turn % 2 == 0,
    )


@pytest.mark.parametrize("need_weights", [True, False])
def test_eval_without_gradients_equals_torchs_fast_path(need_weights):
    theirs, ours = (m.eval() for m in both(E, H, batch_first=True))
    x = sample(N, L, E, requires_grad=False)
    with torch.no_grad():
        assert_close(ours(x, x, x, need_weights=need_weights), theirs(x, x, x, need_weights=need_weights))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("padding", [None, "bool", "float"])
@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}])
@pytest.mark.parametrize("masked", [True, -INF])
def test_is_causal_with_the_causal_mask(masked, options, padding, need_weights):
    theirs, ours = both(E, H, **options)
    x = sample(L, N, E)
    causal = torch.ones(L, L, dtype=torch.bool).triu(1)
    attn_mask = causal if masked is True else sample(L, L).detach().masked_fill(causal, masked)
    masks = {"attn_mask": attn_mask, "key_padding_mask": mask_of(padding, (N, L))}
    # Torch's is_causal hides the appended keys when it drops the mask; without the hint it is right.
    output, weights = ours(x, x, x, is_causal=True, need_weights=need_weights, **masks)
    check_same(theirs, ours, (x, x, x), masks, need_weights=need_weights)
    expected = ours(x, x, x, need_weights=need_weights, **masks)
    assert_close((output, weights) if need_weights else output, expected if need_weights else expected[0])


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_is_causal_honours_another_mask(kind, padded, need_weights):
    """Both the mask and the causal one, on every path."""
    theirs, ours = both(E, H)
    x = sample(L, N, E)
    attn_mask = mask_of(kind, (L, L)).detach()
    causal = torch.ones(L, L, dtype=torch.bool).triu(1)
    together = attn_mask | causal if kind == "bool" else attn_mask.masked_fill(causal, -INF)
    padding = torch.arange(L) >= torch.tensor([L, L - 1, L - 2])[:, None] if padded else None
    options = {"key_padding_mask": padding, "need_weights": need_weights}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs(x, x, x, attn_mask=together, **options)
    output, weights = ours(x, x, x, attn_mask=attn_mask, is_causal=True, **options)
    assert_close(output, expected[0])
    if need_weights:
        assert_close(weights, expected[1])


@pytest.mark.parametrize("sizes", [(0, L, S), (N, 0, S)])
def test_empty_inputs(sizes):
    n, queries, keys = sizes
    theirs, ours = both(E, H, batch_first=True)
    query, memory = sample(n, queries, E), sample(n, keys, E)
    check_same(theirs, ours, (query, memory, memory), {}, need_weights=False)
    output, weights = ours(query, memory, memory)
    assert output.shape == (n, queries, E)
    assert weights.shape == (n, queries, keys)


def test_no_keys_at_all():
    ours = both(E, H, batch_first=True)[1]
    output, weights = ours(sample(N, L, E), *[sample(N, 0, E)] * 2)
    assert torch.equal(output, ours.out_proj.bias.expand(N, L, E))
    assert weights.shape == (N, L, 0)


# What differs from torch.


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
    hidden = ~(allowed.tril() if is_causal else allowed)
    padding = torch.arange(9) >= torch.tensor([9, 8, 8])[:, None] if padded else None
    options = {"key_padding_mask": padding, "need_weights": need_weights}
    expected = theirs(x, x, x, attn_mask=hidden, **options)
    output, weights = ours(x, x, x, attn_mask=window, is_causal=is_causal, **options)
    assert_close(output, expected[0])
    if need_weights:
        assert_close(weights, expected[1])


# Memory and copies.


@pytest.mark.parametrize("masks", ["none", "padding", "window", "head row"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_without_weights_nothing_quadratic_is_made(masks, batch_first):
    length, e = 1024, 16
    module = ax.MultiheadAttention(e, 2, batch_first=batch_first, dropout=0.1)
    x = torch.randn(*((1, length) if batch_first else (length, 1)), e)
    padding = torch.arange(length)[None] > 1000
    arguments = {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "window": {"attn_mask": ax.masks.SlidingWindow(20, 0), "key_padding_mask": padding},
        "head row": {"key_padding_mask": torch.zeros(1, length).masked_fill(padding, -INF)},
    }[masks]
    with Watch() as watch:
        module(x, x, x, need_weights=False, **arguments)[0].sum().backward()
    assert watch.attention_calls == 1
    assert "attention_ext::_attention_backward" in watch.ops
    assert watch.largest <= 3 * e * length  # the packed projection


@pytest.mark.parametrize("attn", ["bool", "hard"])
@pytest.mark.parametrize("padding", ["bool", "hard"])
def test_two_masks_make_nothing_larger_than_they_are(attn, padding):
    """Neither (N, L, S) nor (N·H, L, S) comes out of an (L, S) and an (N, S) mask."""
    n, length = 8, 256
    module = ax.MultiheadAttention(E, H, batch_first=True)
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    pad = torch.arange(length) >= torch.arange(length - n, length)[:, None]
    if attn == "hard":
        hidden = torch.zeros(length, length).masked_fill(hidden, -INF)
    if padding == "hard":
        pad = torch.zeros(n, length).masked_fill(pad, -INF)
    x = torch.randn(n, length, E)
    with Watch() as watch:
        module(x, x, x, attn_mask=hidden, key_padding_mask=pad, need_weights=False)
    assert watch.attention_calls == 1
    assert watch.largest <= length * length


def test_peak_memory_without_weights():
    """The whole process, kernels included: the weights of one head alone would be 256 MiB."""
    length = 8192
    module = ax.MultiheadAttention(16, 2, batch_first=True)
    x = torch.randn(1, length, 16)
    mask = ax.masks.SlidingWindow(63, 0)
    module(x, x, x, attn_mask=mask, need_weights=False)[0].sum().backward()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts at what is resident now
    before = peak_kib()
    module(x, x, x, attn_mask=mask, need_weights=False)[0].sum().backward()
    assert peak_kib() - before < 64 * 1024


def peak_kib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


@pytest.mark.parametrize(("kind", "products"), [("self", 2), ("cross", 3), ("three", 4)])
@pytest.mark.parametrize(("batch_first", "copies"), [(True, 0), (False, 1)])
def test_views_only(batch_first, copies, kind, products):
    """Packed projections and no copy of a tensor, but for (L, N, E) the one that torch makes too."""
    module = both(E, H, batch_first=batch_first)[1]
    inputs = sample_inputs(kind, batch_first)
    with torch.no_grad(), Watch() as watch:
        module(*inputs, need_weights=False)
    assert (
        sum(op in ("aten::clone", "aten::copy_", "aten::_to_copy", "aten::cat") for op in watch.ops) == copies
    )
    assert sum(op in ("aten::addmm", "aten::mm", "aten::bmm", "aten::linear") for op in watch.ops) == products


# Transforms.


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
        with torch.autocast("cpu", dtype=torch.bfloat16), warnings.catch_warnings():
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


# Errors.


def bool_mask(*shape):
    return torch.zeros(*shape, dtype=torch.bool)


X = torch.randn(N, L, E)
ERRORS = {
    "query rank": (ValueError, (X[None], X, X), {}, "query: expected 2 dimensions"),
    "key rank": (ValueError, (X, X[0], X), {}, "key: expected 3 dimensions"),
    "value rank": (ValueError, (X[0], X[0], X), {}, "value: expected 2 dimensions"),
    "query features": (ValueError, (X[..., :4], X, X), {}, "query: expected a last dimension of 8"),
    "key features": (ValueError, (X, X[..., :4], X[..., :4]), {}, "key: expected a last dimension of 8"),
    "value features": (ValueError, (X, X, X[..., :4]), {}, "value: expected a last dimension of 8"),
    "value length": (ValueError, (X, X, X[:, :2]), {}, "value: expected the length and batch size of key"),
    "value batch": (ValueError, (X, X, X[:2]), {}, "value: expected the length and batch size of key"),
    "key batch": (ValueError, (X, X[:2], X[:2]), {}, "key: expected the batch size of query, 3"),
    "query dtype": (TypeError, (X.double(), X, X), {}, "query: expected torch.float32"),
    "key dtype": (TypeError, (X, X.double(), X), {}, "key: expected torch.float32"),
    "causal": (ValueError, (X, X, X), {"is_causal": True}, "is_causal: expected an attn_mask"),
    "padding rank": (
        ValueError,
        (X, X, X),
        {"key_padding_mask": bool_mask(L)},
        "key_padding_mask: expected shape",
    ),
    "padding shape": (
        ValueError,
        (X, X, X),
        {"key_padding_mask": bool_mask(N, 2)},
        r"shape \(3, 4\), got \(3, 2\)",
    ),
    "padding unbatched": (
        ValueError,
        (X[0],) * 3,
        {"key_padding_mask": bool_mask(1, L)},
        r"expected shape \(4,\)",
    ),
    "padding dtype": (
        TypeError,
        (X, X, X),
        {"key_padding_mask": bool_mask(N, L).int()},
        "key_padding_mask: expected",
    ),
    "mask dtype": (TypeError, (X, X, X), {"attn_mask": bool_mask(L, L).int()}, "got torch.int32"),
    "mask float64": (TypeError, (X, X, X), {"attn_mask": bool_mask(L, L).double()}, "got torch.float64"),
    "mask type": (TypeError, (X, X, X), {"attn_mask": [[False]]}, "attn_mask: expected a tensor, got list"),
    "mask rank": (ValueError, (X, X, X), {"attn_mask": bool_mask(N, H, L, L)}, "attn_mask: expected shape"),
    "mask shape": (
        ValueError,
        (X, X, X),
        {"attn_mask": bool_mask(L, S)},
        r"\(4, 4\) or \(6, 4, 4\), got \(4, 5\)",
    ),
    "mask heads": (ValueError, (X, X, X), {"attn_mask": bool_mask(N, L, L)}, "attn_mask: expected shape"),
    "mask unbatched": (
        ValueError,
        (X[0],) * 3,
        {"attn_mask": bool_mask(1, L, L)},
        "attn_mask: expected shape",
    ),
}


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("case", ERRORS)
def test_errors(case, need_weights):
    error, inputs, masks, message = ERRORS[case]
    theirs, ours = both(E, H, batch_first=True, dtype=torch.float32)
    arguments = {**masks, "need_weights": need_weights}
    with pytest.raises(Exception):  # noqa: B017, PT011 - any: torch has no rule
        theirs(*inputs, **arguments)
    with pytest.raises(error, match=message):
        ours(*inputs, **arguments)


def test_constructor_errors_are_torchs():
    with pytest.raises(ValueError, match="greater than 0"):
        ax.MultiheadAttention(0, 1)
    with pytest.raises(AssertionError, match="divisible by num_heads"):
        ax.MultiheadAttention(8, 3)


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_a_mask_with_appended_keys_is_an_error(option):
    module = ax.MultiheadAttention(E, H, **{option: True})
    with pytest.raises(ValueError, match="attn_mask: expected a tensor with add_bias_kv or add_zero_attn"):
        module(X, X, X, attn_mask=ax.masks.Causal())


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_an_error(layout):
    module = ax.MultiheadAttention(E, H, batch_first=True).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch, on nested tensors being a prototype
        nested = torch.nested.nested_tensor([X[0], X[1, :2]], layout=layout)
    with torch.no_grad(), pytest.raises(TypeError, match="query: expected a padded tensor"):
        module(nested, nested, nested, need_weights=False)


def test_a_layer_that_goes_round_it_warns():
    layer = nn.TransformerEncoderLayer(E, H, batch_first=True).eval()
    layer.self_attn = ax.MultiheadAttention(E, H, batch_first=True).eval()
    with torch.no_grad(), Watch() as watch, pytest.warns(UserWarning, match="replace_attention"):
        layer(X)
    assert watch.attention_calls == 0
