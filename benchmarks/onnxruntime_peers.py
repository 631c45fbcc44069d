"""onnxruntime's attention operators, each in a model of one node, on one thread."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .attention_peers import Forward, on_tensors
from .cases import CAUSAL, Case
from .contender import Contender

__all__ = ["CONTENDERS"]

DOMAIN = "com.microsoft"
IR_VERSION = 10  # onnx writes newer ones than onnxruntime reads
LENGTHS = ("seqlens_k", "total_sequence_length")


def session(case: Case, node: str, inputs: list[str], outputs: list[str], **attributes: int) -> Any:
    """A session of one node; every tensor but the lengths is float32."""
    import onnx
    import onnxruntime

    def info(name: str) -> Any:
        number = onnx.TensorProto.INT32 if name in LENGTHS else onnx.TensorProto.FLOAT
        return onnx.helper.make_tensor_value_info(name, number, None)

    attributes["num_heads"] = case.shape.H
    made = onnx.helper.make_node(node, inputs, outputs, domain=DOMAIN, **attributes)
    named = [info(name) for name in inputs if name]
    graph = onnx.helper.make_graph([made], node, named, [info(name) for name in outputs])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid(DOMAIN, 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(session: Any, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
    """Reads the tensors and writes into the others where they lie: no copies."""
    binding = session.io_binding()
    for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
        for name, x in tensors.items():
            number = "int32" if x.dtype == torch.int32 else "float32"
            bind(name, "cpu", 0, number, tuple(x.shape), x.data_ptr())
    session.run_with_iobinding(binding)


def hidden(x: Tensor) -> Tensor:
    """(B, L, H * D), of a view (B, H, L, D) of a tensor that lies so."""
    return x.transpose(1, 2).flatten(2)


def check(case: Case, causal: bool) -> None:
    s = case.shape
    plain = s.Lq == s.Lk and s.Dv == s.D and case.layout == "BLHD" and case.dtype == "float32"
    if not plain or case.grad or case.mask != (CAUSAL if causal else None):
        raise ValueError(f"{case.name}: not a case for this operator of onnxruntime")


def multi_head(case: Case) -> Forward:
    check(case, causal=False)
    node = session(case, "MultiHeadAttention", ["query", "key", "value"], ["out"])

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        run(node, {"query": hidden(q), "key": hidden(k), "value": hidden(v)}, {"out": hidden(out)})
        return out

    return forward


def grouped_query(case: Case) -> Forward:
    """It is causal, and copies key and value into a cache."""
    check(case, causal=True)
    s = case.shape
    inputs = ["query", "key", "value", "", "", *LENGTHS]
    outputs = ["out", "present_key", "present_value"]
    node = session(case, "GroupQueryAttention", inputs, outputs, kv_num_heads=s.Hkv)
    last = torch.full((s.B,), s.Lk - 1, dtype=torch.int32)
    lengths = dict(zip(LENGTHS, (last, torch.tensor(s.Lk, dtype=torch.int32)), strict=True))
    caches = {name: torch.empty(s.B, s.Hkv, s.Lk, s.D) for name in outputs[1:]}

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        tensors = {"query": hidden(q), "key": hidden(k), "value": hidden(v)} | lengths
        run(node, tensors, {"out": hidden(out)} | caches)
        return out

    return forward


CONTENDERS = {
    "onnxruntime": Contender("onnxruntime MultiHeadAttention", on_tensors(multi_head)),
    "onnxruntime_grouped": Contender("onnxruntime GroupQueryAttention", on_tensors(grouped_query)),
}
