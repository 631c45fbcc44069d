"""Pictures of attention maps, with matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

COLORS = "Blues"
ACCENT = "#1f5a96"
MOST_LABELS = 40  # tokens along an axis that can be read


def plot_map(
    map_: Tensor,
    *,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    lengths: tuple[int, int] | None = None,
    title: str = "",
    label: str = "attention weight",
    vmax: float | None = None,
    gamma: float = 1.0,
    colorbar: bool = True,
    ax: Any = None,
) -> Any:
    """Draws one map: a row for each query, a column for each key.

    Args:
        map_: (Lq, Lk) weights, or a binned map, or a rollout.
        queries, keys: the tokens, written along the axes; None writes positions.
        lengths: (Lq, Lk) of what a binned map stands for; None is its own size.
        title, label: of the picture, and of its colours.
        vmax: the weight that has the darkest colour; None is the largest one.
        gamma: colours follow weight ** gamma: below 1, small weights show beside large ones.
        colorbar: whether to draw one.
        ax: matplotlib axes to draw on; None makes a figure.

    Returns the axes. Raises ValueError where sizes don't fit, ImportError without matplotlib.
    """
    from matplotlib import colors, pyplot

    if map_.dim() != 2:
        raise ValueError(f"map_: expected (Lq, Lk), got shape {tuple(map_.shape)}")
    Lq, Lk = map_.shape if lengths is None else lengths
    _check_tokens("queries", queries, map_.shape[0])
    _check_tokens("keys", keys, map_.shape[1])
    if ax is None:
        ax = pyplot.subplots(figsize=(7, 6), layout="constrained")[1]
    top = float(map_.max()) if vmax is None else vmax
    image = ax.imshow(
        map_.detach().float().cpu().numpy(),
        cmap=COLORS,
        norm=colors.PowerNorm(gamma, vmin=0, vmax=top or 1.0),
        extent=(-0.5, Lk - 0.5, Lq - 0.5, -0.5),
        interpolation="nearest",
        aspect="auto" if queries is None and keys is None else "equal",
    )
    ax.spines[:].set_color("0.75")
    ax.tick_params(length=2, color="0.75")
    _label(ax.xaxis, keys, rotation=50, ha="right", rotation_mode="anchor")
    _label(ax.yaxis, queries)
    ax.set(xlabel="key: what is looked at", ylabel="query: what looks", title=title)
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label=label, shrink=0.8, pad=0.02)
    return ax


def plot_heads(
    maps: Tensor | Sequence[Tensor],
    *,
    tokens: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    lengths: tuple[int, int] | None = None,
    title: str = "",
    label: str = "attention weight",
    gamma: float = 1.0,
    columns: int | None = None,
) -> Any:
    """Draws maps side by side, in one scale of colours: the heads of a layer, or the layers of a rollout.

    Args:
        maps: (n, Lq, Lk), or n of (Lq, Lk).
        tokens: along the left and the lower edge of the grid; None writes positions.
        titles: of the maps; None is "head 1", "head 2" ...
        lengths, title, label, gamma: as in :func:`plot_map`.
        columns: of the grid; None makes it a little wider than high.

    Returns the matplotlib figure. Raises as :func:`plot_map` does.
    """
    from matplotlib import pyplot

    maps = [*maps]
    if not maps:
        raise ValueError("maps: expected at least one, got none")
    titles = [f"head {n + 1}" for n in range(len(maps))] if titles is None else [*titles]
    if len(titles) != len(maps):
        raise ValueError(f"titles: expected {len(maps)}, one for each map, got {len(titles)}")
    columns = columns or math.ceil(math.sqrt(1.3 * len(maps)))
    rows = math.ceil(len(maps) / columns)
    size = 2.1 if tokens is None else max(2.1, 0.16 * min(len(tokens), MOST_LABELS))
    figure, grid = pyplot.subplots(
        rows,
        columns,
        figsize=(columns * size + 2, rows * size + 1.6),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    top = max(float(m.max()) for m in maps)
    for n, axes in enumerate(grid.flat):
        if n >= len(maps):
            axes.remove()
            continue
        plot_map(
            maps[n],
            queries=tokens,
            keys=tokens,
            lengths=lengths,
            vmax=top,
            gamma=gamma,
            colorbar=False,
            ax=axes,
        )
        axes.set_title(titles[n], fontsize=10)
        axes.set(xlabel="", ylabel="")
        axes.tick_params(labelbottom=n + columns >= len(maps), labelleft=n % columns == 0, labelsize=8)
        if tokens is not None:
            axes.tick_params(axis="x", labelrotation=90)
            pyplot.setp(axes.get_xticklabels(), ha="center", rotation_mode="default")
    figure.supxlabel("key: what is looked at", fontsize=11)
    figure.supylabel("query: what looks", fontsize=11)
    figure.suptitle(title, fontsize=13)
    drawn = grid.flat[: len(maps)]
    figure.colorbar(drawn[0].images[0], ax=drawn, label=label, shrink=0.7, pad=0.02)
    return figure


def plot_column_sums(
    sums: Tensor,
    *,
    tokens: Sequence[str] | None = None,
    named: int = 8,
    title: str = "",
    label: str = "attention received from all queries",
    ax: Any = None,
) -> Any:
    """Draws how much attention each key gets.

    Args:
        sums: (Lk,).
        tokens: written under the bars, or, where they are many, beside the `named` highest.
        title, label: of the picture, and of its vertical axis.
        ax: matplotlib axes to draw on; None makes a figure.

    Returns the axes. Raises as :func:`plot_map` does.
    """
    from matplotlib import pyplot

    if sums.dim() != 1:
        raise ValueError(f"sums: expected (Lk,), got shape {tuple(sums.shape)}")
    _check_tokens("tokens", tokens, len(sums))
    if ax is None:
        ax = pyplot.subplots(figsize=(9, 3.5), layout="constrained")[1]
    heights = sums.detach().double().cpu().numpy()
    ax.bar(range(len(sums)), heights, width=1.0 if len(sums) > MOST_LABELS else 0.8, color=ACCENT)
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(x=0.01)
    if tokens is not None and len(tokens) <= MOST_LABELS:
        _label(ax.xaxis, tokens, rotation=50, ha="right", rotation_mode="anchor")
    elif tokens is not None:
        for j in sums.topk(min(named, len(sums))).indices.tolist():
            ax.annotate(
                tokens[j], (j, heights[j]), (2, 1), textcoords="offset points", fontsize=8, rotation=35
            )
    ax.set(xlabel="key", ylabel=label, title=title)
    return ax


def _check_tokens(name: str, tokens: Sequence[str] | None, length: int) -> None:
    if tokens is not None and len(tokens) != length:
        raise ValueError(f"{name}: expected {length}, got {len(tokens)}")


def _label(axis: Any, tokens: Sequence[str] | None, **options: Any) -> None:
    """Every token that there is room for."""
    if tokens is not None:
        step = math.ceil(len(tokens) / MOST_LABELS)
        places = range(0, len(tokens), step)
        axis.set_ticks(places, [_shown(tokens[n]) for n in places], fontsize=9, **options)


def _shown(token: str) -> str:
    # To matplotlib a pair of dollars is a formula.
    return token.replace("$", r"\$")
