"""Draw what the heads of one layer of a real model look at."""

from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import attention_ext as ax

SENTENCE = "The animal did not cross the street because it was too tired."
LAYER, HEAD = 3, 1  # counted from 0: here "it" finds what it stands for


@torch.inference_mode()
def weights(encoder, sentence: str, layer: int):
    """The words and the weights (heads, words, words) of a layer, from the layer's own queries and keys."""
    tokens = encoder.tokens([sentence])
    encoder.model.set_attn_implementation("attention_ext")
    states = encoder.model(**tokens, output_hidden_states=True).hidden_states[layer]
    attention = encoder.model.encoder.layer[layer].attention.self
    query, key = (
        part(states).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
        for part in (attention.query, attention.key)
    )
    words = encoder.tokenizer.convert_ids_to_tokens(tokens["input_ids"][0])
    return words, ax.reference.attention_weights(query, key)[0]


def draw(encoder, path: Path) -> str:
    """Write the picture; returns a sentence on what is to be seen in it."""
    words, maps = weights(encoder, SENTENCE, LAYER)
    figure = plt.figure(figsize=(15, 7.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.0, 1.0), wspace=0.03)
    figure.suptitle(f'Attention in all-MiniLM-L6-v2, layer {LAYER + 1}:  "{SENTENCE}"', fontsize=15)

    axis = left.subplots()
    image = _map(axis, maps[HEAD])
    axis.set_xticks(range(len(words)), words, fontsize=11, rotation=50, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(words)), words, fontsize=11)
    for row, column in (maps[HEAD] >= 0.1).nonzero().tolist():
        weight = maps[HEAD, row, column].item()
        axis.text(
            column, row, f"{weight:.1f}"[1 if weight < 0.95 else 0 :], ha="center", va="center", fontsize=9,
            color="white" if weight > 0.5 else "#1b2a41",
        )  # fmt: skip
    row = words.index("it")
    column = int(maps[HEAD, row, 1:].argmax()) + 1  # the first token is where heads rest
    axis.add_patch(
        plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#d1495b", linewidth=2.5)
    )
    axis.set_title(f'head {HEAD + 1}: "it" looks at "{words[column]}"', fontsize=13, color="#d1495b")
    axis.set_ylabel("this word looks ...", fontsize=11)
    axis.set_xlabel("... at this word", fontsize=11)

    for head, (axis, map_) in enumerate(zip(right.subplots(3, 4).flat, maps, strict=True)):
        _map(axis, map_)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(f"head {head + 1}", fontsize=10, color="#d1495b" if head == HEAD else "black")
    right.suptitle(f"all {len(maps)} heads of the layer, same words in the same order", fontsize=13)
    figure.colorbar(image, ax=right.axes, shrink=0.6, pad=0.02, label="weight (each row adds up to 1)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    weight = maps[HEAD, row, column].item()
    return f'in head {HEAD + 1} of layer {LAYER + 1}, "it" looks at "{words[column]}" (weight {weight:.2f})'


def _map(axis, map_):
    axis.spines[:].set_color("0.75")
    axis.tick_params(length=0)
    return axis.imshow(map_, cmap="Blues", vmin=0, vmax=1)
