"""Seeing what a model attends to: recording, rollout, pictures.

    with ax.visualize.record(model, rows="all", bins=64) as recording:
        model(**inputs)
    ax.visualize.plot_heads(recording[3].weights[0], tokens=tokens, title=recording.names[3])
    ax.visualize.plot_map(ax.visualize.rollout(recording.weights())[-1], queries=tokens, keys=tokens)

The pictures need matplotlib (`pip install 'attention_ext[plot]'`), which is imported when one is drawn.
"""

from ._bertviz import for_bertviz
from ._plots import plot_column_sums, plot_heads, plot_map
from ._record import Recording, record
from ._rollout import rollout

__all__ = [
    "Recording",
    "for_bertviz",
    "plot_column_sums",
    "plot_heads",
    "plot_map",
    "record",
    "rollout",
]
