"""Tiny models of Transformers with random weights, and what their tests share."""

import pytest
import torch
import transformers as tf
from torch.utils._python_dispatch import TorchDispatchMode

from attention_ext.integrations import transformers as integration

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
WINDOWED = {**GROUPED, "head_dim": 8, "sliding_window": 4}
MIXED = {**WINDOWED, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}

DECODERS = {
    "llama": lambda **kw: tf.LlamaForCausalLM(tf.LlamaConfig(**GROUPED, **kw)),
    "mistral": lambda **kw: tf.MistralForCausalLM(tf.MistralConfig(**WINDOWED, **kw)),
    "gpt_oss": lambda **kw: tf.GptOssForCausalLM(
        tf.GptOssConfig(**MIXED, num_local_experts=2, num_experts_per_tok=1, **kw)
    ),
    "gemma2": lambda **kw: tf.Gemma2ForCausalLM(
        tf.Gemma2Config(**MIXED, query_pre_attn_scalar=8, attn_logit_softcapping=2.0, **kw)
    ),
    "gemma3": lambda **kw: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**MIXED, query_pre_attn_scalar=8, **kw)),
    "qwen3": lambda **kw: tf.Qwen3ForCausalLM(tf.Qwen3Config(**GROUPED, head_dim=8, **kw)),
    # a window that the mask function knows and the attention function is never told
    "qwen2_moe": lambda **kw: tf.Qwen2MoeForCausalLM(
        tf.Qwen2MoeConfig(
            **{**GROUPED, "sliding_window": 4, "layer_types": MIXED["layer_types"]},
            **EXPERTS,
            shared_expert_intermediate_size=16,
            use_sliding_window=True,
            **kw,
        )
    ),
}
ENCODERS = {
    "bert": lambda: tf.BertForMaskedLM(tf.BertConfig(**SMALL)),
    "modernbert": lambda: tf.ModernBertForMaskedLM(
        tf.ModernBertConfig(
            **SMALL, local_attention=6, layer_types=MIXED["layer_types"], pad_token_id=0, bos_token_id=1,
            eos_token_id=2, cls_token_id=1, sep_token_id=2,
        )
    ),
    "gemma3_bidirectional": lambda: tf.Gemma3TextModel(
        tf.Gemma3TextConfig(
            **{**MIXED, "sliding_window": 6}, query_pre_attn_scalar=8, use_bidirectional_attention=True
        )
    ),
    "t5": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(
            vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0,
            decoder_start_token_id=0, attn_implementation="eager",
        )
    ),
}  # fmt: skip
MODELS = {**DECODERS, **ENCODERS}
DENSE = {"gemma3_bidirectional"}  # writes its mask functions itself
CALLS = {"t5": 6}  # two layers each: encoder, decoder, decoder to encoder; the others call twice

PADDING = {
    "none": None,
    "right": [[1] * 9, [1] * 6 + [0] * 3],
    "left": [[1] * 9, [0] * 3 + [1] * 6],
    "holes": [[1, 1, 0, 1, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0, 1, 1, 1]],
}


class Calls(TorchDispatchMode):
    """Counts what reaches our operators."""

    def __init__(self):
        super().__init__()
        self.forward = self.backward = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "attention_ext":
            self.forward += func._opname in ("attention", "_attention_forward")
            self.backward += func._opname == "_attention_backward"
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True, scope="module")
def registered_and_on_one_thread():  # the models are too small for more
    integration.register()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(name, **config):
    """A model with weights large enough that wrong attention shows."""
    torch.manual_seed(0)
    model = (MODELS[name](**config) if config else MODELS[name]()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.dim() > 1 else 0.5)
    return model


def tokens(*shape):
    return torch.randint(3, 64, shape, generator=torch.Generator().manual_seed(1))


def inputs(name, padding="none"):
    ids = tokens(2, 9)
    given = {
        "input_ids": ids,
        "attention_mask": None if PADDING[padding] is None else torch.tensor(PADDING[padding]),
    }
    if name == "t5":
        given["decoder_input_ids"] = ids
    return given


def run(model, implementation, **given):
    model.set_attn_implementation(implementation)
    out = model(**given)
    return out.last_hidden_state if "last_hidden_state" in out else out.logits


def same(ours, theirs, where=None):
    """Equal but for the order of float32 sums, at the positions that are not padding."""
    if where is not None:
        ours, theirs = ours[where.bool()], theirs[where.bool()]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5 * max(1.0, theirs.abs().max().item()))


def qkv(batch=2, q_length=5, kv_length=5, heads=4, kv_heads=2, grad=False):
    generator = torch.Generator().manual_seed(4)
    shapes = ((heads, q_length), (kv_heads, kv_length), (kv_heads, kv_length))
    return [
        torch.randn(batch, length, count, 8, generator=generator).transpose(1, 2).requires_grad_(grad)
        for count, length in shapes
    ]
