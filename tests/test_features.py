"""ax.features: the draws, the estimates and their error, derivatives, bad input."""

import copy
import math
from itertools import pairwise

import pytest
import torch

import attention_ext as ax
from attention_ext.features import FeatureMap, Learned, Performer, RandomFourier

pytestmark = pytest.mark.once
D = 8
F64 = {"dtype": torch.float64}
MAPS = {
    "softmax": lambda **options: Performer(D, 24, **options),
    "hyperbolic": lambda **options: Performer(D, 24, "hyperbolic", **options),
    "relu": lambda **options: Performer(D, 24, "relu", **options),
    "fourier": lambda **options: RandomFourier(D, 24, **options),
    "learned": lambda **options: Learned(D, 24, num_heads=2, **options),
}
ESTIMATES = {
    "softmax": lambda m: Performer(D, m, **F64),
    "hyperbolic": lambda m: Performer(D, m, "hyperbolic", **F64),
    "fourier": lambda m: RandomFourier(D, m, **F64),
}


def variance(name, q, k, m):
    """Of an estimate of exp(q . k / sqrt(D)) from m columns with independent draws (lemma 2 of FAVOR+)."""
    together, apart = ((q + sign * k).square().sum(-1) / D**0.5 for sign in (1, -1))
    exact = (2 * (q * k).sum(-1) / D**0.5).exp()
    if name == "softmax":
        return exact * together.expm1() / m
    if name == "hyperbolic":
        return exact * together.expm1() * -(-together).expm1() / m
    return together.exp() * (-apart).expm1().square() / exact / m


@pytest.mark.parametrize("name", ESTIMATES)
def test_an_estimate_has_the_kernel_for_mean_and_at_most_the_variance_of_independent_draws(name):
    torch.manual_seed(0)
    q, k = 0.6 * torch.randn(2, 30, D, **F64)
    exact = ((q * k).sum(-1) / D**0.5).exp()
    previous = None
    for m in (16, 64, 256):
        phi, draws = ESTIMATES[name](m), 400
        errors = torch.empty(draws, len(q), **F64)
        for n in range(draws):
            phi.redraw()
            errors[n] = (phi(q) * phi(k)).sum(-1) - exact
        bound = variance(name, q, k, m)
        assert bool((errors.mean(0).abs() < 5 * (bound / draws).sqrt()).all())
        mean_square = (errors.square().mean(0) / bound).mean()
        assert mean_square < 1.1
        if previous is not None:
            assert errors.square().mean() < 0.35 * previous  # a quarter, and room for chance
        previous = errors.square().mean()


@pytest.mark.parametrize("name", ["softmax", "hyperbolic"])
def test_attention_approaches_softmax_attention_as_features_grow(name):
    torch.manual_seed(0)
    q, k, v = (0.4 * torch.randn(2, 2, 40, D, **F64) for _ in range(3))
    exact = ax.attention(q, k, v, mask=ax.masks.Causal())
    errors = []
    for m in (64, 256, 1024):
        phi, squares = ESTIMATES[name](m), []
        for _ in range(20):
            phi.redraw()
            estimate = ax.linear_attention(q, k, v, feature_map=phi, causal=True)
            squares.append((estimate - exact).square().mean())
        errors.append(float(torch.stack(squares).mean().sqrt()))
    assert all(after < 0.6 * before for before, after in pairwise(errors))
    assert errors[-1] < 0.03 * float(exact.square().mean().sqrt())


def test_draws_are_orthogonal_in_groups_and_standard_normal_one_by_one():
    torch.manual_seed(0)
    phi, draws = Performer(D, 20, **F64), []
    for _ in range(500):
        phi.redraw()
        draws.append(phi.projection.clone())
    draws = torch.stack(draws)
    for group in draws.split(D, dim=1):
        products = group @ group.mT
        off_diagonal = products - torch.diag_embed(products.diagonal(dim1=-2, dim2=-1))
        assert float(off_diagonal.abs().max()) < 1e-12
    n = draws[..., 0].numel()
    assert bool((draws.mean((0, 1)).abs() < 5 * n**-0.5).all())
    covariance = torch.einsum("nri,nrj->ij", draws, draws) / n
    assert float((covariance - torch.eye(D, **F64)).abs().max()) < 5 * (2 / n) ** 0.5
    lengths = draws.square().sum(-1)  # chi squared: mean D, variance 2 D
    assert abs(float(lengths.mean()) - D) < 5 * (2 * D / n) ** 0.5
    assert abs(float(lengths.var()) - 2 * D) < 0.2 * 2 * D


def test_draws_follow_the_seed_and_are_saved():
    torch.manual_seed(3)
    first = Performer(D)
    assert first.num_features == 4 * D
    torch.manual_seed(3)
    assert torch.equal(Performer(D).projection, first.projection)
    generator = torch.Generator(torch.get_default_device()).manual_seed(3)
    own = Performer(D, generator=generator)
    assert torch.equal(own.projection, first.projection)
    place = own.projection.data_ptr()
    own.redraw(generator)
    assert own.projection.data_ptr() == place
    assert not torch.equal(own.projection, first.projection)
    own.load_state_dict(first.state_dict())
    assert torch.equal(own.projection, first.projection)
    assert torch.equal(copy.deepcopy(own)(torch.ones(D)), first(torch.ones(D)))
    assert Performer(D, device="meta").projection.is_meta


def test_learned_features_begin_as_the_identity():
    phi, x = Learned(D, **F64), torch.randn(5, D, **F64)
    both = torch.cat((x, -x), -1) * D**-0.25
    torch.testing.assert_close(phi(x), both.softmax(-1))
    weight = Learned(D, 6 * D, num_heads=3, **F64).weight
    assert weight.shape == (3, 3 * D, D)
    torch.testing.assert_close(weight.mT @ weight, torch.eye(D, **F64).expand(3, D, D))
    assert not torch.equal(weight[0], weight[1])


def test_learned_features_learn_the_weights_of_softmax_attention():
    torch.manual_seed(0)
    q, k = 2 * torch.randn(2, 2, 30, D)
    target = (q @ k.mT / D**0.5).softmax(-1)
    phi = Learned(D, num_heads=2)
    optimizer = torch.optim.Adam(phi.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        weights = phi.queries(q) @ phi(k).mT
        weights = weights / weights.sum(-1, keepdim=True)
        loss = -(target * weights.log()).sum(-1).mean() + (target * target.log()).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("kind", Performer.KINDS)
def test_queries_differ_from_features_by_a_factor_for_each_row(kind):
    phi, x = Performer(D, 24, kind, **F64), torch.randn(3, 7, D, **F64)
    factors = phi.queries(x) / phi(x)
    assert bool((factors > 0).all())
    torch.testing.assert_close(factors, factors[..., :1].expand_as(factors))


@pytest.mark.parametrize("dim", [1, 64, 256])
@pytest.mark.parametrize("kind", ["softmax", "hyperbolic"])
def test_features_stay_in_range(kind, dim):
    phi = Performer(dim, 2 * dim, kind)
    draws = phi.projection * dim**0.25  # the worst keys: x' is a draw, or in its direction
    for x in (draws, 1e-3 * draws, 10 * draws, 1e4 * torch.randn(9, dim), torch.zeros(1, dim)):
        for features in (phi(x), phi.queries(x)):
            assert bool(features.isfinite().all())
            assert float(features.max()) < math.exp(61)
        torch.testing.assert_close(phi.queries(x).sum(-1), torch.ones(len(x)))
    q, k = draws[None, None], 2 * draws[None, None]
    v = torch.randn(1, 1, len(draws), 3)
    assert bool(ax.linear_attention(q, k, v, feature_map=phi, causal=True).isfinite().all())


def test_fourier_features_stay_in_range():
    phi = RandomFourier(D, 32)
    assert bool(phi(1e4 * torch.randn(9, D)).isfinite().all())


def test_a_key_has_features_whatever_its_length():
    phi, x = Performer(D, 4 * D, **F64), torch.randn(D, **F64)
    x = x / x.norm() * D**0.25
    longest = phi(8 * x)
    assert float(longest.max()) > 1e-25
    torch.testing.assert_close(
        phi(7.9 * x), (phi.projection @ (7.9 * x / D**0.25) - 7.9**2 / 2).exp() / (4 * D) ** 0.5
    )
    for size in (8.5, 80.0, 1e6):
        torch.testing.assert_close(phi(size * x), longest)


@pytest.mark.parametrize("name", MAPS)
def test_gradcheck(name):
    torch.manual_seed(0)
    phi = MAPS[name](**F64)
    x = torch.randn(2, 3, D, requires_grad=True, **F64)
    parameters = dict(phi.named_parameters())

    def features(x, *values):
        return torch.func.functional_call(phi, dict(zip(parameters, values, strict=True)), x)

    inputs = (x, *parameters.values())
    assert torch.autograd.gradcheck(features, inputs, check_forward_ad=True)
    assert torch.autograd.gradcheck(phi.queries, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(features, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MAPS)
def test_reduced_dtypes_and_autocast_compute_in_float32(name, dtype):
    phi = MAPS[name]()
    x = torch.randn(2, 3, D).to(dtype)
    expected = phi(x.float())
    assert expected.dtype == torch.float32
    assert torch.equal(phi(x), expected)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        assert torch.equal(phi(x), expected)
        assert torch.equal(phi.queries(x), phi.queries(x.float()))


BAD = [
    (lambda: Performer(0), ValueError, "dim: expected a positive int, got 0"),
    (lambda: Performer(8.0), TypeError, "dim: expected a positive int, got float"),
    (lambda: Performer(8, math.inf), TypeError, "num_features: expected a positive int, got float"),
    (lambda: Performer(8, math.nan), TypeError, "num_features: expected a positive int, got float"),
    (lambda: Performer(8, True), TypeError, "num_features: expected a positive int, got bool"),
    (lambda: Performer(8, -4), ValueError, "num_features: expected a positive int, got -4"),
    (
        lambda: Performer(8, 16, "cosine"),
        ValueError,
        "kind: expected one of softmax, hyperbolic, relu, got 'cosine'",
    ),
    (
        lambda: Performer(8, 15, "hyperbolic"),
        ValueError,
        "num_features: expected a multiple of 2, 2 for each draw, got 15",
    ),
    (
        lambda: RandomFourier(8, 15),
        ValueError,
        "num_features: expected a multiple of 2, 2 for each draw, got 15",
    ),
    (lambda: Learned(8, 15), ValueError, "num_features: expected a multiple of 2, got 15"),
    (lambda: Learned(8, num_heads=0), ValueError, "num_heads: expected a positive int, got 0"),
    (
        lambda: Performer(8)(torch.zeros(2, 7)),
        ValueError,
        "x: expected a last dimension of 8, got shape (2, 7)",
    ),
    (
        lambda: Performer(8).queries(torch.tensor(1.0)),
        ValueError,
        "x: expected a last dimension of 8, got shape ()",
    ),
    (
        lambda: RandomFourier(8)(torch.zeros(2, 8).int()),
        TypeError,
        "x: expected a floating point dtype, got torch.int32",
    ),
    (
        lambda: Learned(8, num_heads=3)(torch.zeros(2, 5, 8)),
        ValueError,
        "x: expected shape (..., 3, L, 8), got (2, 5, 8)",
    ),
    (lambda: FeatureMap(3, 0), ValueError, "num_features: expected a positive int, got 0"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message
