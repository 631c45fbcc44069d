"""What the layers of causal self-attention with a state have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import check_self_attention, check_token, refuse_weights
from .padding import packing


class RecurrentAttention(torch.nn.Module):
    """The base of the recurrent layers: projections, packing of padded tokens, states and steps.

    A token sees itself and those before it, through a state of constant size. A derived layer gives
    ``_attend``, ``_attend_step`` and ``_finish``.

    Args:
        embed_dim: size E of the model.
        num_heads: number of heads of queries and keys; divides ``key_dim``.
        num_value_heads: number of heads of values and states, a multiple of ``num_heads``; divides
            ``value_dim``. None is ``num_heads``.
        key_dim, value_dim: width of all heads of keys, and of values.
        gate: whether there is an output gate, ``g_proj``.
        bias: whether the projections have biases.
        batch_first: batched inputs and outputs are (N, L, E) rather than (L, N, E).
        device, dtype: of the parameters.

    Raises ValueError for sizes that aren't positive or don't divide.
    """

    # torch's encoder layers ask for these before they take a fast path that never calls the layer.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_value_heads: int | None = None,
        key_dim: int,
        value_dim: int,
        gate: bool,
        bias: bool,
        batch_first: bool,
        device: Any,
        dtype: Any,
    ) -> None:
        super().__init__()
        num_value_heads = num_heads if num_value_heads is None else num_value_heads
        sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "num_value_heads": num_value_heads}
        for name, size in {**sizes, "key_dim": key_dim, "value_dim": value_dim}.items():
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        for name, size, parts in (
            ("key_dim", key_dim, num_heads),
            ("value_dim", value_dim, num_value_heads),
            ("num_value_heads", num_value_heads, num_heads),
        ):
            if size % parts != 0:
                raise ValueError(f"{name}: expected a multiple of {parts} heads, got {size}")
        self.embed_dim, self.num_heads, self.num_value_heads = embed_dim, num_heads, num_value_heads
        self.key_dim, self.value_dim, self.batch_first = key_dim, value_dim, batch_first
        options = {"bias": bias, "device": device, "dtype": dtype}
        self.q_proj = torch.nn.Linear(embed_dim, key_dim, **options)
        self.k_proj = torch.nn.Linear(embed_dim, key_dim, **options)
        self.v_proj = torch.nn.Linear(embed_dim, value_dim, **options)
        self.g_proj = torch.nn.Linear(embed_dim, value_dim, **options) if gate else None
        self.out_proj = torch.nn.Linear(value_dim, embed_dim, **options)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.g_proj, self.out_proj):
            if projection is not None:
                torch.nn.init.xavier_uniform_(projection.weight)
                if bias:
                    torch.nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        initial_state: Any = None,
        return_state: bool = False,
    ) -> tuple[Tensor, Any]:
        """Self-attention; the arguments are those of ``nn.MultiheadAttention.forward``.

        Args:
            query: (L, N, E), (N, L, E) with ``batch_first``, or (L, E) unbatched.
            key, value: expected to be query itself, or None.
            key_padding_mask: (N, L), or (L) unbatched; bool, True = masked out, or 0 and -inf. What is left
                of a row comes out as if the padded tokens weren't there, states included; the output at
                those means nothing.
            need_weights: expected to be False, the default here.
            attn_mask: expected to be None, but with ``is_causal``.
            average_attn_weights: without effect.
            is_causal: that ``attn_mask``, if there is one, is causal, as the layer is: it is not looked at.
            initial_state: the state before the first token, of batch size 1 if unbatched; None is that of
                :meth:`new_state`.
            return_state: also return the last state.

        Returns:
            The output, shaped as ``query``, and the state, or None. Both are differentiable.

        Raises:
            TypeError: a wrong dtype, or a state of another layer.
            ValueError: a wrong shape, or an argument that this layer can't honour.
        """
        refuse_weights(self, True, need_weights, attn_mask, is_causal)
        batched = check_self_attention(self, query, key, value, key_padding_mask)
        x = query if batched else query.unsqueeze(0)
        if batched and not self.batch_first:
            x = x.transpose(0, 1)
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask.unsqueeze(0)

        packed = packing(key_padding_mask)
        lengths = None
        if packed is not None:
            # Zeros: the derivative of a silu at a padded NaN times a gradient of 0 would be NaN.
            x = packed.pack(x.masked_fill(packed.hidden[..., None], 0.0), 1)
            lengths = packed.lengths
        heads, state = self._attend(x, lengths, initial_state)
        output = self._output(heads, x)
        output = output if packed is None else packed.unpack(output, 1)
        if not batched:
            output = output.squeeze(0)
        elif not self.batch_first:
            output = output.transpose(0, 1)
        return output, state if return_state else None

    def new_state(self, batch_size: int = 1) -> Any:
        """The state before the first token."""
        with torch.no_grad():
            none = self.out_proj.weight.new_zeros(batch_size, 0, self.embed_dim)
            return self._attend(none, None, None)[1]

    def step(self, x: Tensor, state: Any) -> Tensor:
        """One more token: its output, the state brought up to date in place, in constant time and memory.

        Args:
            x: (N, E). As there are no derivatives, inside ``torch.no_grad()``.
            state: from :meth:`new_state` or :meth:`forward`. Written to.

        Returns the output (N, E).

        Raises:
            RuntimeError: an input or a weight that requires a derivative.
            TypeError: a state of another layer.
            ValueError: a wrong shape.
        """
        check_token(self, x)
        heads = self._attend_step(x[:, None], state)
        return self._output(heads[:, :, None], x[:, None])[:, 0]

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, key_dim={self.key_dim}, value_dim={self.value_dim}"

    def _attend(self, x: Tensor, lengths: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """The heads (N, H, L, Dv) for x (N, L, E), of which `lengths` tokens count, and the last state."""
        raise NotImplementedError

    def _attend_step(self, x: Tensor, state: Any) -> Tensor:
        """The heads (N, H, Dv) for one token (N, 1, E), the state brought up to date."""
        raise NotImplementedError

    def _finish(self, heads: Tensor) -> Tensor:
        """The norm of the heads (N, L, H, Dv)."""
        raise NotImplementedError

    def _output(self, heads: Tensor, x: Tensor) -> Tensor:
        heads = self._finish(heads.transpose(1, 2)).flatten(2)
        if self.g_proj is not None:
            heads = heads * torch.nn.functional.silu(self.g_proj(x))
        return self.out_proj(heads)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, L, H·D) as (N, H, L, D)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def norm_heads(heads: Tensor, norm: torch.nn.RMSNorm) -> Tensor:
    """The norm in the dtype of the heads, which under autocast is not its weight's."""
    weight = norm.weight.to(heads.dtype)
    return torch.nn.functional.rms_norm(heads, norm.normalized_shape, weight, norm.eps)


def check_state_type(state: Any, expected: type) -> None:
    if not isinstance(state, expected):
        raise TypeError(f"state: expected a {expected.__name__}, got {type(state).__name__}")
