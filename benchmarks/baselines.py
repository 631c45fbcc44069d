"""Ours and the peers of every operator."""

from __future__ import annotations

from . import attention_peers, layer_peers, onnxruntime_peers
from .contender import Contender

__all__ = ["CONTENDERS", "REFERENCE"]

CONTENDERS: dict[str, dict[str, Contender]] = {
    "attention": attention_peers.CONTENDERS | onnxruntime_peers.CONTENDERS,
    "multihead_attention": layer_peers.CONTENDERS,
}
# Of each operator, what ours under other conditions is compared with.
REFERENCE = {"attention": "sdpa", "multihead_attention": "torch"}
