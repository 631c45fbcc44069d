"""``torch.nn.MultiheadAttention`` on the fused attention operator."""

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional
from .._ops import library
from ..masks import Dense, KeyPadding, Mask


class MultiheadAttention(torch.nn.MultiheadAttention):
    """Multi-head attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762), a drop-in for torch's.

    A subclass of :class:`torch.nn.MultiheadAttention`: the same constructor, the same ``forward`` arguments,
    the same ``state_dict`` keys in the same order, the same initial weights for the same seed. Masks keep
    torch's meaning: in a bool mask ``True`` means *masked out*; a float mask is added to the scores and gets
    a gradient when it requires one.

    With ``need_weights=False`` no memory grows with L·S beyond that of the masks given, with one exception:
    the sum of a float ``attn_mask`` and a float ``key_padding_mask`` that holds more than 0 and -inf (one per
    batch row; torch makes one per head). ``need_weights=True``, torch's default, costs the L·S weights.

    What differs from torch:

    - A query whose keys are all masked gets an attention of zero (so the output is ``out_proj``'s bias),
      weights of zero and gradients of zero, on every path, and per head where only one head is masked. Torch
      answers NaN or zero, depending on ``need_weights``, on training and on autograd.
    - Projected keys and values that are masked out never reach the result, even if they are NaN or inf, nor
      the gradients of other projected rows. (The gradient of a projection's weight still is a product with
      every row of its input.)
    - ``is_causal=True`` is a hint about ``attn_mask``, and the mask is what applies, on every path. Torch
      takes the hint and drops the mask, or the other way round, depending on ``need_weights`` and on
      ``key_padding_mask``. Without an ``attn_mask`` it is an error, as in torch.
    - Dropout is drawn from Philox, with a seed from torch's generator: ``torch.manual_seed`` rules it, but
      the draws are not torch's. As in torch, the returned weights carry the draw that made the output.
    - Bad arguments raise ``ValueError`` or ``TypeError`` where torch raises ``AssertionError`` or
      ``RuntimeError``. Mixing a bool and a float mask gives no warning, and a float mask may be float32
      whatever the query's dtype.
    - ``attn_mask`` may also be an :class:`attention_ext.masks.Mask`, which says what *may* be attended, such
      as ``masks.SlidingWindow(255, 0)``: an extension, with which no L×S tensor exists at all. Not with
      ``add_bias_kv`` or ``add_zero_attn``.
    - There is no separate path for eval ("fast path"), and nested tensors are not served. In an
      ``nn.TransformerEncoderLayer`` or ``nn.TransformerEncoder`` put together by hand, torch's own fast path
      goes round this class in eval: :func:`attention_ext.replace_attention` switches it off.
    - ``torch.jit.script`` is not supported; ``torch.compile`` and ``torch.export`` are. For
      ``torch.fx.symbolic_trace`` it is not one of torch's own leaf modules.
    - With ``batch_first=True`` the output is contiguous.

    Args:
        embed_dim: size E of the model; each head has ``embed_dim // num_heads``.
        num_heads: number of heads H; divides ``embed_dim``.
        dropout: probability of dropping an attention weight in training.
        bias: whether the projections have biases.
        add_bias_kv: append one learned key and value to the sequence.
        add_zero_attn: append one key and value of zeros to the sequence.
        kdim, vdim: features of key and value; default E.
        batch_first: batched inputs and outputs are (N, L, E) rather than (L, N, E).
        device, dtype: of the parameters.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | Mask | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from ``query`` to ``key`` and ``value``.

        Args:
            query: (L, N, E), (N, L, E) with ``batch_first``, or (L, E) unbatched.
            key: (S, N, kdim), (N, S, kdim) or (S, kdim).
            value: (S, N, vdim), (N, S, vdim) or (S, vdim).
            key_padding_mask: (N, S), or (S) unbatched; bool, True = masked out, or float, added to
                the scores.
            need_weights: also return the attention weights, which takes memory quadratic in the lengths.
            attn_mask: (L, S) or (N·H, L, S); bool, True = masked out, or float, added to the scores; or an
                :class:`attention_ext.masks.Mask` of what may be attended.
            average_attn_weights: return the mean of the heads' weights.
            is_causal: a hint that ``attn_mask``, which it needs, is causal; the mask is what applies.

        Returns:
            The output, shaped as ``query``, and the weights after dropout, (N, L, S), (N, H, L, S) for
            ``average_attn_weights=False`` (without N if unbatched), or None. S grows by one for each of
            ``add_bias_kv`` and ``add_zero_attn``.

        Raises:
            TypeError: a wrong dtype, or a nested tensor.
            ValueError: a wrong shape, or ``is_causal`` without ``attn_mask``.
        """
        return self._forward(
            query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        )

    def _forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        need_weights: bool,
        attn_mask: Tensor | Mask | None,
        average_attn_weights: bool,
        is_causal: bool,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """forward; `options` go to `_attention`."""
        batched = self._check_arguments(query, key, value, key_padding_mask, attn_mask, is_causal)
        if not batched:
            # One object stays one object: the projections look at identities.
            unique = {id(x): x.unsqueeze(0) for x in (query, key, value)}
            query, key, value = (unique[id(x)] for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        batch_first = self.batch_first or not batched

        attended, weights = self._attention(
            query, key, value, key_padding_mask, attn_mask, need_weights, batch_first, **options
        )
        if weights is not None:
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)

        output = self._join_heads(attended, batch_first)
        return (output if batched else output.squeeze(0)), weights

    def _join_heads(self, attended: Tensor, batch_first: bool) -> Tensor:
        """The out-projection of (N, H, L, D)."""
        # (N, H, L, D) to (N, L, E) is a view, to (L, N, E) a copy, which torch's contiguous output needs.
        n, _, length, _ = attended.shape
        if batch_first:
            attended = attended.transpose(1, 2).reshape(n, length, self.embed_dim)
        else:
            attended = attended.permute(2, 0, 1, 3).reshape(length, n, self.embed_dim)
        return F.linear(attended, self.out_proj.weight, self.out_proj.bias)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | Mask | None,
        need_weights: bool,
        batch_first: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """What the heads give, (N, H, L, D), and their weights (N, H, L, S) if wanted."""
        q, k, v = self._project(query, key, value, batch_first)
        k, v = self._extend(k, v)
        mask, bias = self._masks(q, k, key_padding_mask, attn_mask)
        return self._attend(q, k, v, mask, bias, need_weights)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, bias: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The operator with the layer's dropout: (N, H, L, D), and the weights (N, H, L, S) if wanted."""
        dropout_p = float(self.dropout) if self.training else 0.0
        seed = None
        if need_weights and dropout_p > 0.0:
            seed = torch.randint(2**63 - 1, (), dtype=torch.int64, device=q.device)
        options = {"mask": mask, "bias": bias, "dropout_p": dropout_p, "dropout_seed": seed}
        if not need_weights:
            return functional.attention(q, k, v, **options), None
        attended, lse = functional.attention(q, k, v, return_lse=True, **options)
        return attended, _weights(q, k, mask, bias, lse, dropout_p, seed)

    def merge_masks(self, attn_mask, key_padding_mask, query):
        """As in torch. Only the fast path of ``nn.TransformerEncoderLayer`` calls it, on its way round us."""
        warnings.warn(
            "nn.TransformerEncoderLayer takes its fast path, which never calls this MultiheadAttention; "
            "attention_ext.replace_attention(model) switches the fast path off",
            stacklevel=2,
        )
        return super().merge_masks(attn_mask, key_padding_mask, query)

    def _project(self, query: Tensor, key: Tensor, value: Tensor, batch_first: bool):
        """The in-projections as (N, H, L, D) views, in as few products as the inputs' identities allow."""
        e, w, b = self.embed_dim, self.in_proj_weight, self.in_proj_bias
        if w is not None and key is value:
            if query is key:
                q, k, v = F.linear(query, w, b).unflatten(-1, (3, e)).unbind(-2)
            else:
                b_q, b_kv = (None, None) if b is None else b.split([e, 2 * e])
                q = F.linear(query, w[:e], b_q)
                k, v = F.linear(key, w[e:], b_kv).unflatten(-1, (2, e)).unbind(-2)
        else:
            if w is not None:
                w_q, w_k, w_v = w.chunk(3)
            else:
                w_q, w_k, w_v = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
            b_q, b_k, b_v = (None, None, None) if b is None else b.chunk(3)
            q, k, v = F.linear(query, w_q, b_q), F.linear(key, w_k, b_k), F.linear(value, w_v, b_v)
        return tuple(self._heads(x, batch_first) for x in (q, k, v))

    def _heads(self, x: Tensor, batch_first: bool) -> Tensor:
        """(N, L, E), or (L, N, E), as a view (N, H, L, D)."""
        order = (0, 2, 1, 3) if batch_first else (1, 2, 0, 3)
        return x.unflatten(-1, (self.num_heads, self.head_dim)).permute(order)

    @property
    def _extra_keys(self) -> int:
        return (self.bias_k is not None) + bool(self.add_zero_attn)

    def _extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the learned key and value of ``add_bias_kv`` and the zeros of ``add_zero_attn``."""
        if not self._extra_keys:
            return k, v
        n, heads, _, dim = k.shape

        def extend(x: Tensor, learned: Tensor | None) -> Tensor:
            parts = [x]
            if learned is not None:
                parts.append(learned.to(x.dtype).view(1, heads, 1, dim).expand(n, -1, -1, -1))
            if self.add_zero_attn:
                parts.append(x.new_zeros(n, heads, 1, dim))
            return torch.cat(parts, dim=2)

        return extend(k, self.bias_k), extend(v, self.bias_v)

    def _masks(self, q, k, key_padding_mask, attn_mask) -> tuple[Mask | None, Tensor | None]:
        """The arguments as one mask of what may be attended and one bias, avoiding new L×S tensors."""
        n, heads = q.shape[:2]
        extra = self._extra_keys
        mask = bias = None
        if isinstance(attn_mask, Mask):
            mask = attn_mask
        elif attn_mask is not None:
            by_head = attn_mask.unflatten(0, (n, heads)) if attn_mask.dim() == 3 else attn_mask[None, None]
            if extra:
                by_head = F.pad(by_head, (0, extra))
            if by_head.dtype == torch.bool:
                mask = Dense(~by_head)
            else:
                bias = _bias_dtype(by_head, q)
        if key_padding_mask is None:
            return mask, bias

        padding = F.pad(key_padding_mask, (0, extra)) if extra else key_padding_mask
        if padding.dtype == torch.bool:
            keep, padding_bias = ~padding, None
        else:
            keep = padding != -math.inf
            padding_bias = None if only_hides(padding, keep) else _bias_dtype(padding, q)[:, None, None, :]
        if isinstance(attn_mask, Tensor) and attn_mask.dtype == torch.bool:
            # Two bit masks would join in one as large as (N, 1, L, S); a row of -inf per batch is linear.
            if padding_bias is None:
                padding_bias = q.new_zeros(padding.shape).masked_fill(~keep, -math.inf)[:, None, None, :]
        else:
            mask = _both(KeyPadding(keep), mask)
        if padding_bias is not None:
            bias = padding_bias if bias is None else bias + padding_bias
        return mask, bias

    def _check_arguments(self, query, key, value, key_padding_mask, attn_mask, is_causal) -> bool:
        """Raise for what can't be computed; return whether the inputs are batched."""
        inputs = {"query": query, "key": key, "value": value}
        for name, x in inputs.items():
            if x.is_nested:
                raise TypeError(
                    f"{name}: expected a padded tensor with a key_padding_mask, got a nested tensor "
                    "(nn.TransformerEncoder makes them in eval unless enable_nested_tensor=False; "
                    "attention_ext.replace_attention switches that off)"
                )
        rank = query.dim()
        if rank not in (2, 3):
            raise ValueError(f"query: expected 2 dimensions (unbatched) or 3, got shape {_shape(query)}")
        batched = rank == 3
        widths = {"query": self.embed_dim, "key": self.kdim, "value": self.vdim}
        weight = self.q_proj_weight if self.in_proj_weight is None else self.in_proj_weight
        for name, x in inputs.items():
            if x.dim() != rank:
                raise ValueError(f"{name}: expected {rank} dimensions, as query has, got shape {_shape(x)}")
            if x.shape[-1] != widths[name]:
                raise ValueError(
                    f"{name}: expected a last dimension of {widths[name]}, got shape {_shape(x)}"
                )
            if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
                raise TypeError(f"{name}: expected {weight.dtype}, the weights' dtype, got {x.dtype}")
        if key.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                f"value: expected the length and batch size of key, shape {_shape(key)}, got {_shape(value)}"
            )
        batch_first = self.batch_first and batched
        length_dim = 1 if batch_first else 0
        queries, keys = query.shape[length_dim], key.shape[length_dim]
        n = query.shape[1 - length_dim] if batched else 1
        if batched and key.shape[1 - length_dim] != n:
            raise ValueError(f"key: expected the batch size of query, {n}, got shape {_shape(key)}")

        if is_causal and attn_mask is None:
            raise ValueError("is_causal: expected an attn_mask with is_causal=True, got None")
        if key_padding_mask is not None:
            _check_mask_dtype("key_padding_mask", key_padding_mask, query)
            expected = (n, keys) if batched else (keys,)
            if key_padding_mask.shape != expected:
                raise ValueError(
                    f"key_padding_mask: expected shape {expected}, got {_shape(key_padding_mask)}"
                )
        if isinstance(attn_mask, Mask):
            if self._extra_keys:
                raise ValueError("attn_mask: expected a tensor with add_bias_kv or add_zero_attn, got a Mask")
        elif attn_mask is not None:
            _check_mask_dtype("attn_mask", attn_mask, query)
            expected = (queries, keys), (n * self.num_heads, queries, keys)
            if attn_mask.shape not in expected:
                raise ValueError(
                    f"attn_mask: expected shape {expected[0]} or {expected[1]}, got {_shape(attn_mask)}"
                )
        return batched


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)


def _check_mask_dtype(name: str, mask: Tensor, query: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(mask).__name__}")
    if mask.dtype in (torch.bool, torch.float32, query.dtype):
        return
    if not (mask.is_floating_point() and torch.is_autocast_enabled(query.device.type)):
        raise TypeError(f"{name}: expected torch.bool, torch.float32 or {query.dtype}, got {mask.dtype}")


def _bias_dtype(mask: Tensor, q: Tensor) -> Tensor:
    """The float mask in a dtype that the operator takes beside q (another one comes under autocast only)."""
    return mask if mask.dtype in (torch.float32, q.dtype) else mask.to(q.dtype)


def _both(first: Mask, second: Mask | None) -> Mask:
    return first if second is None else first & second


def only_hides(padding: Tensor, keep: Tensor, *, wait: bool = False) -> bool:
    """Whether a float padding mask is known to hold only 0 and -inf, as torch's layers make of a bool one.

    wait: also where reading a value means to wait for the device.
    """
    near = padding.device.type == "cpu" or wait
    if padding.requires_grad or not near or torch.compiler.is_compiling():
        return False
    try:
        return not bool(padding.masked_fill(~keep, 0.0).any())
    except RuntimeError:  # under vmap or a tracer there is no value to look at
        return False


def _weights(
    q: Tensor,
    k: Tensor,
    mask: Mask | None,
    bias: Tensor | None,
    lse: Tensor,
    dropout_p: float,
    seed: Tensor | None,
) -> Tensor:
    """The attention weights (N, H, L, S), after dropout, from the scores and their saved log-sum-exp."""
    shape = (*q.shape[:3], k.shape[2])
    scale = q.shape[-1] ** -0.5
    with torch.autocast(q.device.type, enabled=False):
        q_scaled, keys = q.to(lse.dtype) * scale, k.to(lse.dtype)
        if mask is None and bias is None:
            scores = q_scaled @ keys.transpose(-2, -1)
        else:
            # Non-finite keys are left out of the product, whose gradient would spread them to every query.
            broken = ~keys.isfinite().all(-1, keepdim=True)
            scores = q_scaled @ keys.masked_fill(broken, 0.0).transpose(-2, -1)
            scores = scores if bias is None else scores + bias
            hidden = scores == -math.inf
            if mask is not None:
                hidden = hidden | ~mask.dense(shape[2], shape[3]).to(q.device)
            scores = scores.masked_fill(broken.transpose(-2, -1), math.nan).masked_fill(hidden, -math.inf)
        empty = lse == -math.inf
        weights = torch.exp(scores - lse.masked_fill(empty, 0.0).unsqueeze(-1))
        if dropout_p > 0.0:
            keep = library.dropout_keep(seed, dropout_p, *shape)
            weights = torch.where(keep, weights * (1.0 / (1.0 - dropout_p) if dropout_p < 1.0 else 0.0), 0.0)
    return weights.to(q.dtype)
