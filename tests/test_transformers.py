"""attention_ext inside Transformers' models, against the models' own eager attention."""

import contextlib

import pytest
import torch
import transformers as tf
from transformers import masking_utils
from transformers_models import (
    CALLS,
    DECODERS,
    DENSE,
    GROUPED,
    MODELS,
    PADDING,
    SMALL,
    Calls,
    build,
    inputs,
    registered_and_on_one_thread,  # noqa: F401  a fixture
    run,
    same,
    tokens,
)

from attention_ext.integrations import _compact_mask

pytestmark = [
    pytest.mark.once,
    # what Transformers and dynamo say about themselves
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def seeded(number):
    return torch.Generator(torch.get_default_device()).manual_seed(number)


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
    weight = torch.randn(2, 9, 64, generator=seeded(2)) * where[..., None]

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
    keep = torch.rand(2, 4 if kind == "per head" else 1, 9, 9, generator=seeded(3)) < 0.6
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
