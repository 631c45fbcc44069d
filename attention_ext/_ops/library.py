"""Loads the operator library and names its ops."""

from pathlib import Path

import torch

_PATH = Path(__file__).parent.parent / "libattention_ext.so"
if not _PATH.exists():
    raise ImportError(
        f"attention_ext was not built: {_PATH} is missing (run `pip install .` in the source tree)"
    )
torch.ops.load_library(str(_PATH))

_ops = torch.ops.attention_ext
forward = _ops._attention_forward.default
backward = _ops._attention_backward.default
pack_mask_bits = _ops._pack_mask_bits.default
build_block_table = _ops._build_block_table.default
dense_block_table = _ops._dense_block_table.default
attention = _ops.attention.default
attention_map = _ops.attention_map.default
dropout_keep = _ops._dropout_keep.default
select_blocks = _ops.select_blocks.default
linear_forward = _ops._linear_attention_forward.default
linear_backward = _ops._linear_attention_backward.default
linear_attention = _ops.linear_attention.default
linear_step = _ops._linear_attention_step.default
delta_forward = _ops._delta_rule_forward.default
delta_backward = _ops._delta_rule_backward.default
delta_rule = _ops.delta_rule.default
delta_step = _ops._delta_rule_step.default
