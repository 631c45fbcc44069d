"""Feature maps with parameters or random draws, for `feature_map=` of `attention_ext.linear_attention`.

Linear attention weighs a pair by phi(query) . phi(key). The maps here make that an estimate of
exp(query . key / sqrt(dim)), the weight of softmax attention, or learn it.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["FeatureMap", "Learned", "Performer", "RandomFourier"]

# In units of dim**0.25; at this length the relative variance of an estimate is beyond exp(64).
_LONGEST_KEY = 8.0
# exp(60) leaves float32 sums over any number of tokens finite. Up to this dimension exponents end near 80
# by themselves.
_LARGEST_EXPONENT = 60.0
_SAFE_DIM = 128


class FeatureMap(torch.nn.Module):
    """A map phi from rows (..., dim) to rows (..., num_features), in float32 or float64.

    A map of your own derives from this one and defines `forward`.

    Args:
        dim: size D of the head dimension.
        num_features: Dphi, the number of columns that phi returns.

    Attributes:
        eps_factor: what the `eps` of normalised linear attention is multiplied by; other than 1 where
            `queries` scales its rows.

    Raises:
        TypeError: dim or num_features is no int.
        ValueError: one of them is less than 1.
    """

    eps_factor = 1.0

    def __init__(self, dim: int, num_features: int) -> None:
        super().__init__()
        self.dim = _positive_int("dim", dim)
        self.num_features = _positive_int("num_features", num_features)

    def forward(self, x: Tensor) -> Tensor:
        """phi of rows x (..., dim): of keys, and of queries where linear attention isn't normalised."""
        raise NotImplementedError

    def queries(self, x: Tensor) -> Tensor:
        """phi of rows x, each times a positive number of its own, which cancels in a normalised output."""
        return self(x)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_features={self.num_features}"

    def _rows(self, x: Tensor) -> Tensor:
        """x in the dtype of features, after checks."""
        if x.dim() == 0 or x.shape[-1] != self.dim:
            raise ValueError(f"x: expected a last dimension of {self.dim}, got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x: expected a floating point dtype, got {x.dtype}")
        return x if x.dtype == torch.float64 else x.float()


class _RandomProjection(FeatureMap):
    """Features of x / dim**0.25 projected on random directions, the rows of the buffer `projection`."""

    projection: Tensor

    def __init__(
        self,
        dim: int,
        num_features: int | None,
        columns: int,
        generator: torch.Generator | None,
        device: Any,
        dtype: Any,
    ) -> None:
        if num_features is None:
            num_features = 4 * _positive_int("dim", dim)
        super().__init__(dim, num_features)
        if num_features % columns:
            raise ValueError(
                f"num_features: expected a multiple of {columns}, {columns} for each draw, got {num_features}"
            )
        empty = torch.empty(num_features // columns, dim, device=device, dtype=dtype)
        self.register_buffer("projection", empty)
        self.redraw(generator)

    @torch.no_grad()
    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draws the projection anew, in place, from `generator` or else torch's own."""
        self.projection.copy_(_orthogonal_normal(*self.projection.shape, self.projection, generator))

    def _project(self, x: Tensor) -> Tensor:
        """The products of rows x with the draws."""
        return x @ (self.projection.to(x.dtype) * self.dim**-0.25).mT

    def _half_square(self, x: Tensor) -> Tensor:
        """Half the squared length of each row of x / dim**0.25, (..., 1)."""
        return x.square().sum(-1, keepdim=True) * (0.5 * self.dim**-0.5)


class Performer(_RandomProjection):
    r"""Positive random features, FAVOR+ (Choromanski et al. 2020, https://arxiv.org/abs/2009.14794).

    With x' = x / dim**0.25 and draws w_1 ... w_m, each standard normal, orthogonal in groups of dim::

        phi(x) = exp(-|x'|^2 / 2) exp(w_i . x') / sqrt(m)                          "softmax"
        phi(x) = exp(-|x'|^2 / 2) [exp(w_i . x'), exp(-w_i . x')] / sqrt(2 m)      "hyperbolic"
        phi(x) = (relu(w_i . x') + 0.001) / sqrt(m)                                "relu"

    phi(query) . phi(key) has the mean exp(query . key / sqrt(dim)) for the first two, and with
    s = |query' + key'|^2 a relative variance of at most (exp(s) - 1) / m, for "hyperbolic"
    (exp(s) - 1) (1 - exp(-s)) / (2 m). "relu" estimates a kernel of its own.

    Exponentials stay in range without a look at other tokens, so that what is past doesn't depend on what
    comes, and states can be taken up again. Queries of normalised attention are softmax(w_i . x'), which
    differs by a factor that the quotient cancels; eps then counts 2**-80 times. A key with |x'| > 8, whose
    features would vanish, counts as one of that length, and beyond dim 128, where features might overflow,
    they end at exp(60).

    Args:
        dim: size D of the head dimension.
        num_features: number of columns; None is 4 dim.
        kind: "softmax", "hyperbolic" (num_features is even) or "relu".
        generator: of the draws; None is torch's own.
        device, dtype: of the buffer `projection` (draws, dim). Features are computed in float32, or float64
            for float64 rows.

    Raises:
        TypeError: dim or num_features is no int.
        ValueError: one of them is less than 1, an odd number of hyperbolic features, or an unknown kind.
    """

    KINDS = ("softmax", "hyperbolic", "relu")

    def __init__(
        self,
        dim: int,
        num_features: int | None = None,
        kind: str = "softmax",
        *,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if kind not in self.KINDS:
            raise ValueError(f"kind: expected one of {', '.join(self.KINDS)}, got {kind!r}")
        super().__init__(dim, num_features, 2 if kind == "hyperbolic" else 1, generator, device, dtype)
        self.kind = kind
        self.eps_factor = 1.0 if kind == "relu" else 2.0**-80

    def forward(self, x: Tensor) -> Tensor:
        x = self._rows(x)
        with _full_precision(x):
            if self.kind == "relu":
                return (self._project(x).relu_() + 0.001) * self.num_features**-0.5
            half_square, largest = self._half_square(x), 0.5 * _LONGEST_KEY**2
            a = self._exponents(x * (largest / half_square.clamp(min=largest)).sqrt())
            a.sub_(half_square.clamp(max=largest) + 0.5 * math.log(self.num_features))
            if self.dim > _SAFE_DIM:
                a = a.clamp(max=_LARGEST_EXPONENT)
            return a.exp_()

    def queries(self, x: Tensor) -> Tensor:
        if self.kind == "relu":
            return self(x)
        x = self._rows(x)
        with _full_precision(x):
            return self._exponents(x).softmax(-1)

    def _exponents(self, x: Tensor) -> Tensor:
        a = self._project(x)
        return torch.cat((a, -a), dim=-1) if self.kind == "hyperbolic" else a

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kind={self.kind!r}"


class RandomFourier(_RandomProjection):
    r"""Random Fourier features, as in RFA (Peng et al. 2021, https://arxiv.org/abs/2103.02143).

    With x' = x / dim**0.25 and draws w_1 ... w_m as in :class:`Performer`::

        phi(x) = exp(|x'|^2 / 2) [sin(w_i . x'), cos(w_i . x')] / sqrt(m)

    phi(query) . phi(key) has the mean exp(query . key / sqrt(dim)). Features have either sign: far from
    any key a sum of weights may come near 0, or below. RFA keeps rows at length 1, as
    :class:`attention_ext.nn.RandomFeatureAttention` does. Queries of normalised attention go without the
    exponential, which cancels; that of a key ends at exp(60).

    Args:
        dim: size D of the head dimension.
        num_features: number of columns, even: m is half of it. None is 4 dim.
        generator, device, dtype: as in :class:`Performer`.

    Raises:
        TypeError: dim or num_features is no int.
        ValueError: one of them is less than 1, or num_features is odd.
    """

    def __init__(
        self,
        dim: int,
        num_features: int | None = None,
        *,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(dim, num_features, 2, generator, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self._rows(x)
        with _full_precision(x):
            return self._waves(x) * self._half_square(x).clamp(max=_LARGEST_EXPONENT).exp()

    def queries(self, x: Tensor) -> Tensor:
        x = self._rows(x)
        with _full_precision(x):
            return self._waves(x)

    def _waves(self, x: Tensor) -> Tensor:
        a = self._project(x)
        return torch.cat((a.sin(), a.cos()), dim=-1) * (self.num_features // 2) ** -0.5


class Learned(FeatureMap):
    r"""Features learned to act as softmax attention does, Hedgehog (Zhang et al. 2024,
    https://arxiv.org/abs/2402.04347).

    With x' = x / dim**0.25::

        phi(x) = softmax([W x' + b, -(W x' + b)])

    over the features, which keeps them at most 1; for a query that is a factor, which a normalised output
    cancels. W begins as the identity where num_features is 2 dim, else with orthogonal rows or columns.

    Args:
        dim: size D of the head dimension.
        num_features: number of columns, even; None is 2 dim.
        num_heads: for rows (..., num_heads, L, dim), a W of each head; None is one for all.
        bias: whether there is a b; it begins at 0.
        generator: of W where it is drawn; None is torch's own.
        device, dtype: of the parameters `weight` (num_features / 2, dim) and `bias`, which have the
            dimension num_heads in front if it is given.

    Raises:
        TypeError: dim, num_features or num_heads is no int.
        ValueError: one of them is less than 1, or num_features is odd.
    """

    def __init__(
        self,
        dim: int,
        num_features: int | None = None,
        *,
        num_heads: int | None = None,
        bias: bool = True,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if num_features is None:
            num_features = 2 * _positive_int("dim", dim)
        super().__init__(dim, num_features)
        if num_features % 2:
            raise ValueError(f"num_features: expected a multiple of 2, got {num_features}")
        self.num_heads = None if num_heads is None else _positive_int("num_heads", num_heads)
        heads = () if num_heads is None else (num_heads,)
        rows = num_features // 2
        self.weight = torch.nn.Parameter(torch.empty(*heads, rows, dim, device=device, dtype=dtype))
        self.bias = (
            torch.nn.Parameter(torch.empty(*heads, rows, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """The weights of a new map."""
        rows = self.weight.shape[-2]
        for w in self.weight.unbind(0) if self.num_heads is not None else (self.weight,):
            if rows == self.dim:
                torch.nn.init.eye_(w)
            else:
                torch.nn.init.orthogonal_(w, generator=generator)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = self._rows(x)
        if self.num_heads is not None and (x.dim() < 3 or x.shape[-3] != self.num_heads):
            raise ValueError(
                f"x: expected shape (..., {self.num_heads}, L, {self.dim}), got {tuple(x.shape)}"
            )
        with _full_precision(x):
            a = x @ (self.weight.to(x.dtype) * self.dim**-0.25).mT
            if self.bias is not None:
                a = a + self.bias.to(x.dtype).unsqueeze(-2)
            return torch.cat((a, -a), dim=-1).softmax(-1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_heads={self.num_heads}, bias={self.bias is not None}"


def apply_map(
    feature_map: FeatureMap,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    normalize: bool,
    causal: bool = True,
    key_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of query and key, and value in their dtype.

    Padded rows become 0 before, since a gradient of 0 is no gradient where a feature is NaN.
    """
    if key_lengths is not None:
        live = torch.arange(key.shape[-2], device=key.device) < key_lengths[:, None]
        live = live[:, None, :, None][(0,) * (4 - key.dim())]
        key = torch.where(live, key, 0.0)
        query = torch.where(live, query, 0.0) if causal else query
    phi_query = feature_map.queries(query) if normalize else feature_map(query)
    phi_key = feature_map(key)
    return phi_query, phi_key, value.to(phi_key.dtype)


def _orthogonal_normal(rows: int, dim: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """(rows, dim): directions orthogonal in groups of dim, lengths those of standard normal rows."""
    options = {
        "generator": generator,
        "device": like.device if generator is None else generator.device,
        "dtype": torch.float64 if like.dtype == torch.float64 else torch.float32,
    }
    q, r = torch.linalg.qr(torch.randn(-(-rows // dim), dim, dim, **options))
    # With the signs of r's diagonal, q is distributed as a random rotation.
    directions = (q * r.diagonal(dim1=-2, dim2=-1).sgn().unsqueeze(-2)).mT.flatten(0, 1)[:rows]
    return directions * torch.randn(rows, dim, **options).norm(dim=1, keepdim=True)


def _full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """In which products of x stay in its dtype, under autocast too."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _positive_int(name: str, x: Any) -> int:
    if not isinstance(x, int) or isinstance(x, bool):
        raise TypeError(f"{name}: expected a positive int, got {type(x).__name__}")
    if x < 1:
        raise ValueError(f"{name}: expected a positive int, got {x}")
    return x
