"""Ours and the peers of every operator."""

from __future__ import annotations

from . import (
    attention_peers,
    fast_transformers_peer,
    features_peers,
    fla_peers,
    layer_peers,
    learned_peers,
    linear_peers,
    linear_step_peers,
    map_peers,
    onnxruntime_peers,
    sparse_peers,
)
from .contender import Contender

__all__ = ["CONTENDERS", "REFERENCE"]

CONTENDERS: dict[str, dict[str, Contender]] = {
    "attention": attention_peers.CONTENDERS | onnxruntime_peers.CONTENDERS | sparse_peers.CONTENDERS,
    "attention_map": map_peers.CONTENDERS,
    "delta_rule": linear_peers.DELTA_RULE | fla_peers.DELTA_RULE,
    "linear_attention": (
        linear_peers.LINEAR_ATTENTION | fla_peers.LINEAR_ATTENTION | fast_transformers_peer.LINEAR_ATTENTION
    ),
    "linear_attention_step": linear_step_peers.LINEAR_ATTENTION_STEP,
    "multihead_attention": layer_peers.CONTENDERS,
    "native_sparse": learned_peers.CONTENDERS,
    "performer": features_peers.PERFORMER,
    "select_blocks": learned_peers.CONTENDERS,
}
# Of each operator, what ours under other conditions is compared with.
REFERENCE = {
    "attention": "sdpa",
    "attention_map": "softmax",
    "delta_rule": "chunks_64",
    "linear_attention": "chunks_64",
    "linear_attention_step": "torch",
    "multihead_attention": "torch",
    "native_sparse": "sdpa_bool_mask",
    "performer": "performer_pytorch",
    "select_blocks": "sdpa_bool_mask",
}
