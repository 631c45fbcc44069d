"""Modules, inputs and masks for the tests of ax.MultiheadAttention, and a watch on what is called."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close
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

    @property
    def around(self):
        """Ops that compute attention without ours."""
        return [op for op in self.ops if op in ATTENTION_OF_TORCH]


ATTENTION_OF_TORCH = {
    "aten::_transformer_encoder_layer_fwd",
    "aten::_native_multi_head_attention",
    "aten::_nested_tensor_from_mask",
    "aten::_softmax",
}


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
