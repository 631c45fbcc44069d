"""One token on the states of linear attention: ours, and plain torch; both write to states of their own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

import attention_ext as ax

from .cases import Case
from .contender import Contender, Inputs, Work

__all__ = ["LINEAR_ATTENTION_STEP"]

Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # query, key, value, decay, state


def on_states(step: Step) -> Callable[[Case, Inputs], Work]:
    """For Contender.build: from a call to the next the states go on."""

    def build(case: Case, inputs: Inputs) -> Work:
        *tokens, decay, state = inputs.tensors.values()
        query, key, value = (t[:, :, 0] for t in tokens)
        own = state.clone()
        return Work(lambda: step(query, key, value, decay[:, :, 0], own), {})

    return build


def ours(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> Tensor:
    return ax.linear_attention_step(
        q, k, v, state, feature_map="identity", normalize=False, scale=q.shape[-1] ** -0.5, decay=decay
    )


def torch_in_place(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> Tensor:
    state.mul_(decay.exp()[..., None, None])
    state.flatten(0, 1).baddbmm_(k.flatten(0, 1)[..., None], v.flatten(0, 1)[:, None])
    return (q[:, :, None] @ state)[:, :, 0] * q.shape[-1] ** -0.5


LINEAR_ATTENTION_STEP = {
    "ours": Contender("attention_ext", on_states(ours)),
    "torch": Contender("torch, in place", on_states(torch_in_place)),
}
