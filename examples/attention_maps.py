"""Draw what a real model looks at: one head, all heads of a layer, all layers, and a long text."""

from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from reference_text import passages

from attention_ext import visualize

SENTENCE = "The animal did not cross the street because it was too tired."
LAYER, HEAD = 3, 1  # counted from 0: here "it" finds what it stands for
LONG = 512  # tokens, all that the model takes
ACCENT = "#d1495b"


@torch.inference_mode()
def record(encoder, text: str, longest: int, **what):
    """The tokens of a text, and the maps of all layers."""
    encoder.model.set_attn_implementation("attention_ext")
    inputs = encoder.tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
    with visualize.record(encoder.model, **what) as recording:
        encoder.model(**inputs)
    return encoder.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]), recording


def draw(encoder, folder: Path) -> dict[str, str]:
    """Write the pictures; returns what is to be seen in each, by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens, recording = record(encoder, SENTENCE, LONG, rows="all")
    weights = recording.weights()
    long_tokens, long = record(encoder, " ".join(p.text for p in passages()[:12]), LONG, bins=64)
    return {
        "attention_head.png": one_head(tokens, weights[LAYER][HEAD], folder / "attention_head.png"),
        "attention_heads.png": all_heads(tokens, weights[LAYER], folder / "attention_heads.png"),
        "attention_rollout.png": all_layers(tokens, weights, folder / "attention_rollout.png"),
        "attention_long_text.png": long_text(long_tokens, long, folder / "attention_long_text.png"),
    }


def one_head(tokens, weights, path: Path) -> str:
    row = tokens.index("it")
    column = int(weights[row, 1:].argmax()) + 1  # the first token is where heads rest
    axes = plt.subplots(figsize=(8, 6.6), layout="constrained")[1]
    visualize.plot_map(weights, queries=tokens, keys=tokens, vmax=1, ax=axes)
    for i, j in (weights >= 0.1).nonzero().tolist():
        weight = weights[i, j].item()
        color = "white" if weight > 0.5 else "#1b2a41"
        axes.text(j, i, f"{weight:.1f}".lstrip("0"), ha="center", va="center", fontsize=9, color=color)
    axes.add_patch(
        plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=ACCENT, linewidth=2.5)
    )
    seen = f'"it" looks at "{tokens[column]}"'
    axes.set_title(f"Layer {LAYER + 1} of all-MiniLM-L6-v2, head {HEAD + 1}: {seen}", color=ACCENT)
    save(axes.figure, path)
    return f"in head {HEAD + 1} of layer {LAYER + 1}, {seen} (weight {weights[row, column]:.2f})"


def all_heads(tokens, weights, path: Path) -> str:
    title = f'All heads of layer {LAYER + 1} of all-MiniLM-L6-v2:  "{SENTENCE}"'
    save(visualize.plot_heads(weights, tokens=tokens, title=title), path)
    resting = weights[:, :, [0, -1]].sum(-1).mean(-1)
    return f"of {len(weights)} heads, {int((resting > 0.5).sum())} rest mostly on [CLS] and [SEP]"


def all_layers(tokens, weights, path: Path) -> str:
    rollout = visualize.rollout(weights)
    figure = visualize.plot_heads(
        rollout,
        tokens=tokens,
        titles=[f"layers 1 to {n + 1}" if n else "layer 1" for n in range(len(rollout))],
        title="Attention rollout: how much of each token has come to each position",
        label="share of the token",
        gamma=0.5,
        columns=3,
    )
    save(figure, path)
    own = rollout[-1].diagonal().mean()
    return f"after {len(rollout)} layers, {own:.0%} of a position is still its own token"


def long_text(tokens, recording, path: Path) -> str:
    last = recording[-1]
    L = len(tokens)
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 5.6), width_ratios=(1, 1.4), layout="constrained")
    visualize.plot_map(
        last.binned[0].mean(0),
        lengths=(L, L),
        gamma=0.5,
        title="64 x 64 tiles, mean of the heads",
        label="mean attention weight of a tile",
        ax=left,
    )
    sums = last.column_sums[0].mean(0)
    visualize.plot_column_sums(sums, tokens=tokens, title="what each token gets", ax=right)
    figure.suptitle(f"Last layer of all-MiniLM-L6-v2 on {L} tokens of Python's language reference")
    save(figure, path)
    most = tokens[int(sums.argmax())]
    effective = last.entropy[0].mean().exp()
    return f'"{most}" gets most; a query spreads over {effective:.0f} of {L} tokens'


def save(figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)
