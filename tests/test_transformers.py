"""attention_ext inside Transformers' models, against the models' own eager attention."""

import contextlib
import itertools
import math
import sys

import pytest
import torch
import transformers as tf
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import attention_ext as ax
from attention_ext.integrations import _compact_mask
from attention_ext.integrations import transformers as integration
from attention_ext.integrations._transformers_mask import mask as mask_function_of_ours

pytestmark = [
    pytest.mark.once,
    # what Transformers and dynamo say about themselves
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

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
def _registered_and_on_one_thread():  # the models are too small for more
    integration.register()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def never_dense(monkeypatch):
    """No mask of size Lq x Lk may be made."""

    def refuse(*args, **kwargs):
        raise AssertionError("a dense mask was built")

    monkeypatch.setattr(_compact_mask.CompactMask, "dense", refuse)

    @contextlib.contextmanager
    def active():
        with monkeypatch.context() as patch:
            patch.setattr(masking_utils, "sdpa_mask", refuse)
            yield

    return active


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


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_outputs_equal_eager(name, padding, never_dense):
    model, given = build(name), inputs(name, padding)
    theirs = run(model, "eager", **given)
    with contextlib.nullcontext() if name in DENSE else never_dense(), Calls() as calls:
        ours = run(model, "attention_ext", **given)
    assert calls.forward == CALLS.get(name, 2)
    assert ours.isfinite().all()
    same(ours, theirs, given["attention_mask"])


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss", "gemma2", "bert", "t5"])
def test_parameter_gradients_equal_eager(name):
    model = build(name)
    # a left-padded query sees nothing: eager makes up an average there, so no loss may look at it
    given = inputs(name, "left")
    where = given["attention_mask"].bool()
    weight = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(2)) * where[..., None]

    def gradients(implementation):
        model.zero_grad()
        with Calls() as calls:
            (run(model, implementation, **given) * weight).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, calls

    theirs, _ = gradients("eager")
    ours, calls = gradients("attention_ext")
    assert calls.forward == calls.backward == CALLS.get(name, 2)
    assert ours.keys() == theirs.keys()
    expected = {"gpt_oss": "sinks", "t5": "relative_attention_bias"}.get(name, "q")
    assert any(expected in n and gradient.abs().max() > 1e-3 for n, gradient in ours.items())
    for n, gradient in ours.items():
        torch.testing.assert_close(
            gradient,
            theirs[n],
            rtol=1e-3,
            atol=1e-5 * max(1.0, theirs[n].abs().max().item()),
            msg=lambda m, n=n: f"{n}: {m}",
        )


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss", "gemma3"])
@torch.no_grad()
def test_packed_sequences(name):
    model = build(name)
    given = {
        "input_ids": tokens(1, 9),
        "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]),
        "use_cache": False,
    }
    theirs = run(model, "eager", **given)
    with Calls() as calls:
        ours = run(model, "attention_ext", **given)
    assert calls.forward == 2
    same(ours, theirs)
    if name != "gpt_oss":  # eager or not, it lets packed sequences see each other
        alone = run(model, "attention_ext", input_ids=given["input_ids"][:, 4:], use_cache=False)
        same(ours[:, 4:], alone)


@torch.no_grad()
def test_packed_sequences_by_their_bounds():
    model, ids = build("mistral"), tokens(1, 9)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    theirs = run(model, "eager", input_ids=ids, position_ids=positions, use_cache=False)
    bounds = torch.tensor([0, 4, 9], dtype=torch.int32)
    # without position_ids that restart, only the bounds say that there are two sequences
    embeddings = model.model.rotary_emb
    original = embeddings.forward
    embeddings.forward = lambda x, position_ids: original(x, positions)
    ours = run(
        model, "attention_ext", input_ids=ids, use_cache=False, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds
    )
    same(ours, theirs)
    with pytest.raises(ValueError, match="cu_seq_lens_q: expected the bounds"):
        run(model, "attention_ext", input_ids=ids, use_cache=False, cu_seq_lens_q=bounds[:2])


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gemma3", "gpt_oss"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("padding", ["none", "left"])
@torch.no_grad()
def test_caches(name, cache, padding):
    """A prefill, three tokens, and one at a time: windows are cut, static caches have a tail nobody wrote."""
    model, ids = build(name), tokens(2, 14)
    keep = torch.ones(2, 14, dtype=torch.long)
    if padding == "left":
        keep[1, :3] = 0

    def logits(implementation):
        model.set_attn_implementation(implementation)
        past = (
            tf.StaticCache(config=model.config, max_cache_len=20)
            if cache == "static"
            else tf.DynamicCache(config=model.config)
        )
        out, start = [], 0
        for length in (9, 3, 1, 1):
            mask = None if padding == "none" else keep[:, : start + length]
            chunk = slice(start, start + length)
            given = {"input_ids": ids[:, chunk], "attention_mask": mask}
            positions = torch.arange(start, start + length)[None]
            out.append(model(**given, position_ids=positions, past_key_values=past, use_cache=True).logits)
            start += length
        return torch.cat(out, 1)

    theirs = logits("eager")
    with Calls() as calls:
        ours = logits("attention_ext")
    assert calls.forward == 8
    same(ours, theirs, keep)


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_generation(name):
    model = build(name)
    given = {
        "attention_mask": torch.tensor(PADDING["left"]), "max_new_tokens": 6, "do_sample": False,
        "pad_token_id": 0, "eos_token_id": None,
    }  # fmt: skip
    model.set_attn_implementation("eager")
    theirs = model.generate(tokens(2, 9), **given)
    model.set_attn_implementation("attention_ext")
    with Calls() as calls:
        ours = model.generate(tokens(2, 9), **given)
    assert calls.forward == 2 * 6
    assert ours.tolist() == theirs.tolist()


@torch.no_grad()
def test_chunked_attention_is_dense():
    config = tf.Llama4TextConfig(
        **{**GROUPED, "head_dim": 8}, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=4,
        layer_types=["chunked_attention", "full_attention"], no_rope_layers=[1, 0], pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = tf.Llama4ForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for padding in ("none", "left"):
        given = inputs("llama4", padding)
        theirs = run(model, "eager", **given)
        with Calls() as calls:
            ours = run(model, "attention_ext", **given)
        assert calls.forward == 2
        same(ours, theirs, given["attention_mask"])


@torch.no_grad()
def test_keys_chosen_by_an_indexer():
    config = tf.DeepseekV32Config(
        **SMALL, num_key_value_heads=4, moe_intermediate_size=16, n_routed_experts=2, num_experts_per_tok=1,
        n_group=1, topk_group=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=12, index_n_heads=2, index_head_dim=16, index_topk=3, first_k_dense_replace=2,
        pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = tf.DeepseekV32ForCausalLM(config).eval()
    given = inputs("deepseek", "right")
    theirs = run(model, "eager", **given)
    with Calls() as calls:
        ours = run(model, "attention_ext", **given)
    assert calls.forward == 2
    same(ours, theirs, given["attention_mask"])


@pytest.mark.parametrize("name", ["llama", "mistral"])
@torch.no_grad()
def test_decoder_made_bidirectional(name):
    model, given = build(name), inputs(name, "right")
    theirs = run(model, "eager", **given, is_causal=False)
    ours = run(model, "attention_ext", **given, is_causal=False)
    same(ours, theirs, given["attention_mask"])
    assert not torch.allclose(theirs, run(model, "eager", **given), atol=1e-2)


@pytest.mark.parametrize("kind", ["bool", "additive", "per head"])
@torch.no_grad()
def test_four_dimensional_mask_decides_alone(kind):
    """Also over causality and the window of the layers."""
    model, ids = build("mistral"), tokens(2, 9)
    keep = (
        torch.rand(2, 4 if kind == "per head" else 1, 9, 9, generator=torch.Generator().manual_seed(3)) < 0.6
    )
    keep |= torch.eye(9, dtype=torch.bool)
    additive = torch.where(keep, 0.0, torch.finfo(torch.float32).min)
    theirs = run(model, "eager", input_ids=ids, attention_mask=additive, use_cache=False)
    with Calls() as calls:
        ours = run(
            model,
            "attention_ext",
            input_ids=ids,
            attention_mask=additive if kind == "additive" else keep,
            use_cache=False,
        )
    assert calls.forward == 2
    same(ours, theirs)


def test_gradient_checkpointing():
    model, given = build("mistral"), inputs("mistral", "right")
    model.set_attn_implementation("attention_ext")
    model.train()

    def gradient():
        model.zero_grad()
        with Calls() as calls:
            model(**given, use_cache=False).logits.square().sum().backward()
        return model.model.layers[0].self_attn.k_proj.weight.grad.clone(), calls

    plain, calls = gradient()
    assert calls.forward == 2
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        again, calls = gradient()
        assert calls.forward == 4
        torch.testing.assert_close(again, plain)


@pytest.mark.parametrize("name", ["mistral", "bert"])
@torch.no_grad()
def test_compiled_in_one_graph(name):
    model, given = build(name), inputs(name, "right")
    model.set_attn_implementation("attention_ext")
    extra = {} if name == "bert" else {"use_cache": False}
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    where = given["attention_mask"]
    same(compiled(**given, **extra).logits, model(**given, **extra).logits, where)
    torch.compiler.reset()


# The mask function, against sdpa_mask

FUNCTIONS = {
    "causal": masking_utils.causal_mask_function,
    "bidirectional": masking_utils.bidirectional_mask_function,
    "window": masking_utils.sliding_window_causal_mask_function(3),
    "wide window": masking_utils.sliding_window_causal_mask_function(50),
    "bidirectional window": masking_utils.sliding_window_bidirectional_mask_function(2),
    "window, written otherwise": masking_utils.and_masks(
        masking_utils.causal_mask_function,
        masking_utils.and_masks(
            masking_utils.sliding_window_overlay(5), masking_utils.sliding_window_overlay(2)
        ),
    ),
    "custom": lambda b, h, i, j: (j <= i) & (j != 1),
    "union": masking_utils.or_masks(masking_utils.causal_mask_function, lambda b, h, i, j: j < 2),
    "custom intersection": masking_utils.and_masks(
        masking_utils.causal_mask_function, lambda b, h, i, j: (i + j) % 2 == 0
    ),
    "chunks": masking_utils.chunked_causal_mask_function(3, torch.tensor([0, 1])),
}
UNDERSTOOD = [name for name in FUNCTIONS if "window" in name or name in ("causal", "bidirectional")]
LENGTHS = [  # q_length, kv_length, q_offset, kv_offset
    (7, 7, 0, 0),
    (1, 7, 6, 0),
    (3, 7, 4, 0),
    (3, 12, 4, 0),  # a static cache with a tail
    (7, 12, 0, 0),
    (1, 12, 4, 0),
    (2, 4, 9, 7),  # a sliding cache
    (5, 3, 0, 0),
    (2, 6, 20, 0),
]


def dense_of(mask, causal, q_length, kv_length):
    """What the attention function makes of a mask."""
    query, key = torch.zeros(2, 1, q_length, 4), torch.zeros(2, 1, kv_length, 4)
    made, bias = integration._read_mask(mask, query, key, causal, None)
    assert bias is None
    if made is None:
        return torch.ones(2, 1, q_length, kv_length, dtype=torch.bool)
    return made.dense(q_length, kv_length).expand(2, 1, q_length, kv_length)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_mask_function_equals_sdpa_mask(name):
    function, compact = FUNCTIONS[name], 0
    for lengths, padding, tensor_offset in itertools.product(LENGTHS, (None, "right", "left"), (False, True)):
        q_length, kv_length, q_offset, kv_offset = lengths
        keep = None
        if padding is not None:  # what Transformers hands over: all tokens seen so far, in bool
            keep = torch.ones(2, q_offset + q_length, dtype=torch.bool)
            keep[1, (slice(0, 2) if padding == "left" else slice(-2, None))] = False
        given = {
            "batch_size": 2, "q_length": q_length, "kv_length": kv_length,
            "q_offset": torch.tensor(q_offset) if tensor_offset else q_offset, "kv_offset": kv_offset,
            "mask_function": function, "attention_mask": keep,
        }  # fmt: skip
        expected = masking_utils.sdpa_mask(**given, allow_is_causal_skip=False)
        mask = mask_function_of_ours(**given, allow_is_causal_skip=True, allow_is_bidirectional_skip=True)
        compact += mask is None or isinstance(mask, _compact_mask.CompactMask)
        assert dense_of(mask, name != "bidirectional", q_length, kv_length).equal(expected), lengths
        if mask is not None:
            assert mask.shape == expected.shape
            assert mask.dtype == torch.bool
            assert (mask & True).equal(expected)
    assert (compact > 0) == (name in UNDERSTOOD)


def test_mask_function_makes_nothing_quadratic():
    length = 1_000_000  # a dense mask would take 10^12 bytes
    keep = torch.ones(1, length, dtype=torch.bool)
    for function, padding in itertools.product(
        ("causal", "bidirectional", "window"), (None, keep, keep.clone())
    ):
        if padding is not None and padding is not keep:
            padding[:, :5] = False
        mask = mask_function_of_ours(
            1, length, length, mask_function=FUNCTIONS[function], attention_mask=padding,
            allow_is_causal_skip=True, allow_is_bidirectional_skip=True,
        )  # fmt: skip
        nothing = function != "window" and (padding is None or bool(padding.all()))
        assert (mask is None) == nothing
        if mask is not None:
            assert _compact_mask.as_mask(mask) is not None


def test_mask_function_leaves_nothing_to_a_flag_that_may_differ():
    """Where a skip is not allowed, or the layer may apply the configuration's window, a mask is made."""
    given = {"batch_size": 1, "q_length": 5, "kv_length": 5, "mask_function": FUNCTIONS["causal"]}
    assert mask_function_of_ours(**given) is None
    assert mask_function_of_ours(**given, allow_is_causal_skip=False) is not None
    config = tf.MistralConfig(**WINDOWED)
    mask = mask_function_of_ours(**given, config=config)
    out = [
        integration.attention(torch.nn.Module(), *qkv(1, 5, 5), mask, sliding_window=window)[0]
        for window in (None, 2)
    ]
    assert out[0].equal(out[1])


def test_compact_mask_is_the_dense_one_for_who_computes_with_it():
    keep = torch.tensor([[True, True, False, True, True]])
    mask = mask_function_of_ours(1, 5, 5, mask_function=FUNCTIONS["window"], attention_mask=keep)
    expected = masking_utils.sdpa_mask(1, 5, 5, mask_function=FUNCTIONS["window"], attention_mask=keep)
    assert isinstance(mask, _compact_mask.CompactMask)
    for compute in (
        lambda m: m[:, :, 1:3],
        lambda m: m & ~torch.eye(5, dtype=torch.bool),
        lambda m: torch.cat([m, m], -1),
        lambda m: torch.where(m, 0.0, -1.0),
        lambda m: m.to(torch.float32).sum(),
        lambda m: m.clone(),
    ):
        result = compute(mask)
        assert type(result) is torch.Tensor
        assert result.equal(compute(expected))
    assert "CompactMask" in repr(mask)


def test_compact_mask_written_into_is_read_as_written():
    mask = mask_function_of_ours(1, 5, 5, mask_function=FUNCTIONS["window"])
    before = dense_of(mask, True, 5, 5)
    mask[:, :, 3].fill_(True)
    after = dense_of(mask, True, 5, 5)
    assert not before.equal(after)
    assert after[:, :, 3].all()


# The attention function, by itself


def qkv(batch=2, q_length=5, kv_length=5, heads=4, kv_heads=2, grad=False):
    generator = torch.Generator().manual_seed(4)
    shapes = ((heads, q_length), (kv_heads, kv_length), (kv_heads, kv_length))
    return [
        torch.randn(batch, length, count, 8, generator=generator).transpose(1, 2).requires_grad_(grad)
        for count, length in shapes
    ]


def attend(*args, training=False, is_causal=True, **kwargs):
    module = torch.nn.Module().train(training)
    module.is_causal = is_causal
    out, weights = integration.attention(module, *args, **kwargs)
    assert weights is None
    assert out.is_contiguous()
    return out


@pytest.mark.parametrize("additive", [False, True])
def test_row_that_sees_nothing_is_zero(additive):
    keep = torch.tensor(PADDING["left"])[:, :5].bool()
    mask = mask_function_of_ours(2, 5, 5, mask_function=FUNCTIONS["causal"], attention_mask=keep)
    if additive:
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    tensors = qkv(grad=True)
    out = attend(*tensors, mask)
    assert out.shape == (2, 5, 4, 8)
    assert out[1, :3].eq(0).all()
    assert out[1, 3:].ne(0).all()
    gradients = torch.autograd.grad(out.sum(), tensors)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0][1, :, :3].eq(0).all()
    assert gradients[1][1, :, :3].eq(0).all()


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_flags(is_causal, window, padded):
    """Without a mask function: query i stands at key i + Lk - Lq, and a window counts its own key."""
    query, key, value = qkv(2, 4, 7)
    position, j = torch.arange(4)[:, None] + 3, torch.arange(7)
    allowed = (j <= position) if is_causal else torch.ones(4, 7, dtype=torch.bool)
    if window is not None:
        allowed = allowed & ((position - j).abs() < window)
    allowed = allowed.expand(2, 1, 4, 7)
    keep = None
    if padded:
        keep = torch.tensor([[1] * 9, [1, 1, 1, 1, 0, 1, 1, 0, 1]])  # of two keys more: the last ones count
        allowed = allowed & keep[:, None, None, -7:].bool()
    scores = (query @ key.repeat_interleave(2, 1).mT * 0.5).masked_fill(~allowed, -math.inf)
    expected = scores.softmax(-1).nan_to_num(0.0) @ value.repeat_interleave(2, 1)
    for given in ({"is_causal": is_causal}, {"is_causal": None}):
        module = torch.nn.Module()
        module.is_causal = is_causal
        out, _ = integration.attention(
            module, query, key, value, keep, scaling=0.5, sliding_window=window, **given
        )
        torch.testing.assert_close(out, expected.transpose(1, 2))


def test_dropout_acts_in_training_only():
    tensors = qkv()
    plain = attend(*tensors, None)
    assert attend(*tensors, None, dropout=0.5).equal(plain)
    torch.manual_seed(0)
    dropped = attend(*tensors, None, dropout=0.5, training=True)
    torch.manual_seed(0)
    assert attend(*tensors, None, dropout=0.5, training=True).equal(dropped)
    assert not dropped.equal(plain)


def test_position_bias_joins_an_additive_mask():
    query, key, value = qkv(kv_heads=4)
    bias = torch.randn(1, 4, 5, 5, requires_grad=True)
    mask = torch.where(torch.ones(5, 5).tril().bool(), 0.0, torch.finfo(torch.float32).min)[None, None]
    out = attend(query, key, value, mask, position_bias=bias)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias + mask)
    torch.testing.assert_close(out, expected.transpose(1, 2))
    ours, theirs = (torch.autograd.grad(o.square().sum(), bias)[0] for o in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_one_query_batch_for_many_sequences():
    query, key, value = qkv()
    out = attend(query[:1], key, value, None)
    assert out.equal(attend(query[:1].expand(2, -1, -1, -1), key, value, None))


@pytest.mark.parametrize("argument", ["cache", "sinks", "block_indices"])
def test_what_would_be_wrong_is_refused(argument):
    with pytest.raises(NotImplementedError, match=f"^{argument}: attention_ext does not support"):
        attend(*qkv(), None, **{argument: object()})


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(2, 5, 5), ValueError, r"attention_mask: expected .* got torch.float32 \(2, 5, 5\)"),
        (
            torch.ones(2, 4, dtype=torch.bool),
            ValueError,
            r"attention_mask: expected .* got torch.bool \(2, 4\)",
        ),
        (torch.ones(2, 5), ValueError, r"attention_mask: expected .* got torch.float32 \(2, 5\)"),
        (
            torch.ones(2, 1, 5, 5, dtype=torch.long),
            TypeError,
            "attention_mask: a 4-D mask is bool or floating point",
        ),
        ([1], TypeError, "attention_mask: expected Tensor or None, got list"),
        (torch.ones(2, 1, 5, 6, dtype=torch.bool), ValueError, "mask: expected Dense broadcastable to"),
    ],
)
def test_mask_not_understood_is_an_error(mask, error, message):
    with pytest.raises(error, match=message):
        attend(*qkv(), mask)


def test_output_attentions_warns(caplog, monkeypatch):
    monkeypatch.setattr(tf.utils.logging.get_logger("transformers"), "propagate", True)
    attend(*qkv(), None, output_attentions=True)
    assert "does not support `output_attentions=True`" in caplog.text


# Registration


def test_register_twice_and_under_another_name():
    integration.register()
    integration.register("fused")
    try:
        assert (
            ALL_ATTENTION_FUNCTIONS["fused"]
            is ALL_ATTENTION_FUNCTIONS["attention_ext"]
            is integration.attention
        )
        assert "fused" in masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    finally:
        del tf.AttentionInterface._global_mapping["fused"], tf.AttentionMaskInterface._global_mapping["fused"]
    assert ax.integrations.transformers is integration


@pytest.mark.parametrize(
    "name", ["", "eager", "sdpa", "flash_attention_2", "my_flash", "paged|mine", "me/mine"]
)
def test_register_refuses_names_with_a_meaning(name):
    with pytest.raises(ValueError, match=r"name: .* has a meaning of its own in Transformers"):
        integration.register(name)


def test_register_refuses_a_name_that_is_taken():
    tf.AttentionInterface.register("taken", print)
    try:
        with pytest.raises(
            ValueError, match="name: Transformers already has an implementation called 'taken'"
        ):
            integration.register("taken")
    finally:
        del tf.AttentionInterface._global_mapping["taken"]
    with pytest.raises(TypeError, match="name: expected str, got int"):
        integration.register(3)


def test_register_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"needs transformers >= 5\.4, which is not installed: pip install"):
        integration.register()


def test_register_with_an_old_transformers(monkeypatch):
    monkeypatch.setattr(masking_utils, "sdpa_mask", lambda batch_size, cache_position: None)
    with pytest.raises(ImportError, match=r"needs transformers >= 5\.4, found 5\."):
        integration.register()
