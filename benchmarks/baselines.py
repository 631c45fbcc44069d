"""Ours and the peers of every operator."""

from __future__ import annotations

from . import attention_peers, layer_peers, linear_peers, map_peers, onnxruntime_peers
from .contender import Contender

__all__ = ["CONTENDERS", "REFERENCE"]

CONTENDERS: dict[str, dict[str, Contender]] = {
    "attention": attention_peers.CONTENDERS | onnxruntime_peers.CONTENDERS,
    "attention_map": map_peers.CONTENDERS,
    "delta_rule": linear_peers.DELTA_RULE,
    "linear_attention": linear_peers.LINEAR_ATTENTION,
    "multihead_attention": layer_peers.CONTENDERS,
}
# Of each operator, what ours under other conditions is compared with.
REFERENCE = {
    "attention": "sdpa",
    "attention_map": "softmax",
    "delta_rule": "chunks_64",
    "linear_attention": "chunks_64",
    "multihead_attention": "torch",
}
