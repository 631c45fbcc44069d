"""The benchmarks' cases and contenders: well-formed, counted right, and in agreement."""

from dataclasses import replace

import pytest
import torch

from benchmarks import attention_peers, fla_peers, linear_peers, onnxruntime_peers, sparse_peers
from benchmarks.agreement import Disagreement
from benchmarks.attention_peers import on_tensors
from benchmarks.baselines import CONTENDERS, REFERENCE
from benchmarks.cases import CAUSAL, Band, Case, Holes, Shape, plain
from benchmarks.contender import NotHere, make_call, make_inputs
from benchmarks.growth import exponent
from benchmarks.layer_peers import layer_of
from benchmarks.mask_forms import dense_mask, mask_of
from benchmarks.measure import check_peer
from benchmarks.patterns import BigBird, Documents, Grid, Longformer, Table
from benchmarks.registry import CASES, operators

pytestmark = [pytest.mark.once, pytest.mark.cpu_only("measures the CPU")]

TINY = Case("tiny", Shape(1, 2, 1, 24, 24, 8, 8))


def small(case: Case) -> Case:
    """The case with few positions, and its window in proportion."""
    s, N = case.shape, 256  # two of the longest chunks of plain torch, and a square
    shape = replace(s, B=min(s.B, 2), H=min(s.H, 4), Hkv=min(s.Hkv, 2), Lq=min(s.Lq, N), Lk=min(s.Lk, N))
    shape = replace(shape, Hkv=shape.H) if s.Hkv == s.H else shape
    return replace(case, shape=shape, mask=case.mask and case.mask.shrunk(N))


def test_names_are_unique():
    names = [case.name for case in CASES]
    assert sorted(set(names)) == sorted(names)
    assert operators() == sorted(CONTENDERS)
    for op, reference in REFERENCE.items():
        assert CONTENDERS[op][reference].instead is None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_is_well_formed(case):
    s = case.shape
    assert min(vars(s).values()) > 0
    assert s.H % s.Hkv == 0
    assert set(case.peers) < set(CONTENDERS[case.op])
    assert bool(case.lengths) == (case.kind == "growth")
    assert case.peers or case.kind in ("growth", "scaling")
    assert "ours" not in case.peers
    assert case.group
    assert case.kind == "scaling" or case.threads == 1
    assert case.kind != "scaling" or case.threads > 1
    assert case.kind != "memory" or case.tail > 0
    assert case.kind != "crossover" or (len(case.peers) == 1 and not case.requirements)
    assert 0 < case.flops < 1e13
    assert case.tensor_bytes > 0
    kinds = {
        "ratio": ("time", "scaling"),
        "overhead": ("time",),
        "share": ("time",),
        "scaling": ("scaling",),
        "memory": ("memory",),
        "memory_ratio": ("time",),
        "growth": ("growth",),
        "memory_growth": ("growth",),
    }
    for requirement in case.requirements:
        assert case.kind in kinds[requirement.figure]
        assert requirement.bound > 0
        compares = requirement.figure in ("ratio", "overhead", "memory_ratio")
        assert (requirement.peer in case.peers) == compares
        assert (requirement.control is not None) == (case.kind == "scaling")
        assert case.memory or requirement.figure != "memory_ratio"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ours_and_the_peers_agree(case):
    case = small(case)
    inputs = make_inputs(case)
    with torch.set_grad_enabled(case.grad):
        ours = make_call(case, CONTENDERS[case.op]["ours"], inputs)()
        weights = 4 if case.op == "multihead_attention" else 0
        weights += 4 if isinstance(case.mask, Longformer) and weights else 0
        assert len(ours) == 1 + case.grad * (len(inputs.tensors) + weights)
        for name in case.peers:
            peer = CONTENDERS[case.op][name]
            # The others are compiled, for half a minute; a complete run compares them as well.
            if not peer.quick or case.kind == "crossover":
                continue
            try:
                call = make_call(case, peer, inputs)
            except NotHere:
                continue
            check_peer(case, peer, ours, call(), inputs)


MASKS = [
    *(Band(None, 0), Band(3, 0), Band(2, 1), Band(None, None), Band(0, None)),
    *(Holes(3), Holes(5), Holes(20), Holes(3, keys_only=True)),
    *(Documents(4), Longformer(2, 1), Longformer(1, 3), Table(Band(3, 0)), Table(Holes(5))),
]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("Lq", "Lk"), [(9, 9), (4, 7), (7, 4)])
def test_masks_count_their_pairs(mask, Lq, Lk):
    keep = dense_mask(mask, Lq, Lk)
    assert mask.pairs(Lq, Lk) == keep.sum()
    if Lq == Lk:
        ours = mask_of(replace(TINY, shape=plain(1, 1, Lq, 4), mask=mask))
        assert torch.equal(keep, ours.dense(Lq, Lk)[0, 0].expand(Lq, Lk))


@pytest.mark.parametrize(("mask", "N"), [(BigBird(2, 2), 24), (Grid(5, 3), 25), (Grid(4, 4), 16)])
def test_patterns_of_one_length_count_their_pairs(mask, N):
    keep = dense_mask(mask, N, N)
    assert mask.pairs(N, N) == keep.sum()
    ours = mask_of(replace(TINY, shape=plain(1, 1, N, 4), mask=mask))
    assert torch.equal(keep, ours.dense(N, N)[0, 0])


def test_the_exponent_is_that_of_the_power():
    assert exponent({2: 12.0, 4: 48.0, 16: 768.0}) == pytest.approx(2.0)
    assert exponent({10: 5.0, 100: 5.0}) == pytest.approx(0.0)


def test_operations_and_bytes():
    case = Case("c", Shape(2, 6, 3, 5, 5, 4, 8), mask=CAUSAL, dtype="float64")
    assert case.flops == 2 * 2 * 6 * 15 * (4 + 8)
    assert case.tensor_bytes == 8 * 2 * (6 * 5 * (4 + 8) + 3 * 5 * (4 + 8))
    both = replace(case, passes="both")
    assert both.flops == 3.5 * case.flops
    assert both.flops == case.flops + replace(case, passes="backward").flops
    assert both.tensor_bytes == 2 * case.tensor_bytes
    assert replace(case, pair_bias=True).tensor_bytes == case.tensor_bytes + 8 * 6 * 5 * 5


def test_operations_and_bytes_of_the_linear_family():
    case = Case("c", plain(2, 3, 5, 4), op="linear_attention", mask=CAUSAL)
    assert case.flops == 2 * 3 * 5 * 2 * (2 * 4 * 4)
    assert replace(case, passes="both").flops == 3 * case.flops
    step = replace(case, op="linear_attention_step", shape=plain(2, 3, 1, 4))
    assert step.flops == case.flops / 5
    assert step.tensor_bytes == 2 * (2 * 3 * 4 * 4 * 4)


def test_operations_and_bytes_of_the_layer():
    case = Case("c", plain(2, 3, 5, 4), op="multihead_attention")
    layer = CONTENDERS[case.op]["ours"].build(case, make_inputs(case)).leaves
    assert layer["x"].shape == (2, 5, 12)
    attention = replace(case, op="attention").flops
    assert case.flops == attention + 2 * 2 * 5 * (3 * 12 * 12 + 12 * 12)
    assert case.tensor_bytes == 4 * (layer["x"].numel() + sum(t.numel() for t in layer.values()))
    assert replace(case, passes="both").flops == 3.5 * attention + 3 * (case.flops - attention)


REFUSED = replace(TINY, mask=Band(3, 1))


@pytest.mark.parametrize(
    ("build", "case"),
    [
        *((on_tensors(make), REFUSED) for make in (attention_peers.sdpa, attention_peers.sdpa_blocks)),
        (on_tensors(attention_peers.matmul), REFUSED),
        *((on_tensors(make), REFUSED) for make in (sparse_peers.gathered_blocks, sparse_peers.as_band)),
        (on_tensors(onnxruntime_peers.multi_head), replace(REFUSED, layout="BLHD")),
        *(
            (on_tensors(make), replace(TINY, mask=CAUSAL, shape=plain(1, 2, 64, 8), variant="plain"))
            for make in (linear_peers.linear_attention_in_chunks(64), fla_peers.simple_gla)
        ),
        (on_tensors(onnxruntime_peers.multi_head), TINY),
        (on_tensors(onnxruntime_peers.grouped_query), replace(TINY, layout="BLHD")),
        (layer_of(torch.nn.MultiheadAttention), REFUSED),
    ],
)
def test_a_peer_refuses_what_it_would_ignore(build, case):
    with pytest.raises(ValueError, match="tiny"):
        build(case, make_inputs(case))


def test_views_have_the_numbers_of_contiguous_tensors():
    case = replace(TINY, layout="BLHD", shape=plain(2, 3, 5, 4), passes="both")
    views, copies = make_inputs(case), make_inputs(replace(case, layout="BHLD"))
    for name, view in (views.tensors | {"grad_out": views.grad_out}).items():
        assert view.transpose(1, 2).is_contiguous()
        copy = (copies.tensors | {"grad_out": copies.grad_out})[name]
        assert copy.is_contiguous()
        assert torch.equal(view, copy)


def test_backward_alone_is_the_backward_of_both():
    case = replace(TINY, passes="both")
    ours = CONTENDERS["attention"]["ours"]
    both = make_call(case, ours, make_inputs(case))()
    alone = make_call(replace(case, passes="backward"), ours, make_inputs(case))
    for results in (alone(), alone()):
        assert list(results) == ["out", "dquery", "dkey", "dvalue"]
        assert all(torch.equal(results[name], both[name]) for name in both)


def test_ours_under_other_conditions_is_checked_as_well():
    case = replace(TINY, mask=CAUSAL, shape=plain(1, 2, 24, 8))
    inputs = make_inputs(case)
    unmasked = CONTENDERS["attention"]["unmasked"]
    results = make_call(case, unmasked, inputs)()
    ours = make_call(case, CONTENDERS["attention"]["ours"], inputs)()
    check_peer(case, unmasked, ours, results, inputs)
    with pytest.raises(Disagreement, match="out differs from SDPA, of ours without the mask"):
        check_peer(case, unmasked, ours, ours, inputs)
