"""The benchmarks of the GPU, as far as they run without one: cases, peers, agreement, what is written."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import attention_ext as ax
from benchmarks.agreement import Disagreement, check_agreement
from benchmarks.cases import Band
from benchmarks.contender import make_call
from benchmarks.cuda import clock, gpu, measure, peers, run
from benchmarks.cuda.cases import CASES, LENGTHS, is_quick
from benchmarks.cuda.measure import FULL, check_small, entry_of, inputs_of, results_of_peers, small
from benchmarks.cuda.report import draw
from benchmarks.files import write
from benchmarks.report import summary_text

pytestmark = [pytest.mark.once, pytest.mark.cpu_only("checks the benchmarks themselves")]

# One of each kind of work, and the same in float32, whose tolerance shows more.
KINDS = {(c.op, type(c.mask), c.variant, c.passes, c.shape.Hkv != c.shape.H): c for c in reversed(CASES)}
FLOAT32 = [replace(case, dtype="float32") for case in KINDS.values()]


def case_named(name, dtype="float32"):
    (case,) = (case for case in CASES if case.name == name)
    return replace(case, dtype=dtype)


def test_cases_are_well_formed():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    for case in CASES:
        assert set(case.peers) < set(peers.CONTENDERS[case.op])
        assert {r.peer for r in case.requirements} <= set(case.peers)
        assert case.kind == "time"
        assert case.tensor_bytes < 4 * 2**30
    dense = {c.shape.Lq for c in CASES if c.group == "forward, dense"}
    assert dense == set(LENGTHS) == {512, 1024, 2048, 4096, 8192, 16384, 32768}
    assert {case.op for case in CASES if is_quick(case)} == set(peers.CONTENDERS) == set(peers.FORMULAS)


@pytest.mark.parametrize("case", FLOAT32, ids=lambda case: case.name)
def test_ours_agrees_with_the_formula(case):
    assert check_small(case, "cpu") < 5e-5


def test_a_wrong_formula_is_noticed(monkeypatch):
    build = peers.on_device(lambda case, device: lambda q, k, v: q)
    wrong = replace(peers.FORMULAS["attention"], build=build)
    monkeypatch.setitem(peers.FORMULAS, "attention", wrong)
    with pytest.raises(Disagreement, match="out differs from the formula in float64"):
        check_small(case_named("forward-dense-bf16-d64-512"), "cpu")


def peers_of(case):
    """What results_of_peers says of a small relative of the case on the CPU."""
    case = small(case)
    inputs = inputs_of(case, "cpu")
    with torch.set_grad_enabled(case.grad):
        ours = make_call(case, peers.CONTENDERS[case.op]["ours"], inputs)()
        return results_of_peers(case, inputs, ours, FULL)


@pytest.mark.parametrize("name", ["forward-causal-bf16-d64-512", "backward-dense-bf16-d64-512", "decode-512"])
def test_peers_that_the_cpu_has(name):
    case = case_named(name)
    calls, differences, left_out = peers_of(replace(case, peers=("sdpa_flash", "sdpa_math", "flash_attn")))
    assert set(calls) == set(differences) >= {"sdpa_math"}
    assert left_out["flash_attn"].startswith("flash_attn can't be imported")


@pytest.mark.parametrize("name", ["forward-window-d64-4096", "both-bigbird-d64-4096"])
def test_masks_as_tensors(name):
    calls, _, _ = peers_of(replace(case_named(name), peers=("sdpa_bool_mask",)))
    assert set(calls) == {"sdpa_bool_mask"}


def test_weights_that_would_not_fit_are_not_written():
    case = case_named("forward-dense-bf16-d64-32768", "bfloat16")
    inputs = SimpleNamespace(leaves=lambda: {"query": torch.zeros(1)})
    with pytest.raises(peers.NotHere, match="its weights take 64 GiB"):
        peers.CONTENDERS["attention"]["sdpa_math"].build(case, inputs)


# Packages that need a GPU, as their documentation has them: (B, L, H, D).


def attend(q, k, v, causal=False, window_size=(-1, -1)):
    left, right = (None if n == -1 else n for n in window_size)
    mask = ax.masks.SlidingWindow(left, 0 if causal else right)
    return ax.attention(*(t.transpose(1, 2) for t in (q, k, v)), mask=mask).transpose(1, 2)


def plain_linear(q, k, v, g=None, **options):
    return ax.reference.linear_attention(q, k, v, decay=g, causal=True, feature_map="identity", **options)


def simple_gla(q, k, v, g, scale):
    return plain_linear(q, k, v, g, scale=scale, normalize=False)


def gated_delta_rule(q, k, v, g, beta):
    return ax.reference.delta_rule(q, k, v, beta, decay=g)


def lengths_first(name, function):
    def call(*tensors, **options):
        out = function(*(t.transpose(1, 2) for t in tensors), **options)
        return out.transpose(1, 2), None

    return SimpleNamespace(**{name: call})


PACKAGES = {
    "flash_attn": SimpleNamespace(flash_attn_func=attend),
    "fla.ops.linear_attn": lengths_first("chunk_linear_attn", plain_linear),
    "fla.ops.simple_gla": lengths_first("chunk_simple_gla", simple_gla),
    "fla.ops.delta_rule": lengths_first("chunk_delta_rule", ax.reference.delta_rule),
    "fla.ops.gated_delta_rule": lengths_first("chunk_gated_delta_rule", gated_delta_rule),
}
WITH_PACKAGES = [
    *(case for case in FLOAT32 if "fla" in case.peers),
    *(case for case in FLOAT32 if case.op == "attention" and isinstance(case.mask, Band | None)),
]


@pytest.mark.parametrize("case", WITH_PACKAGES, ids=lambda case: case.name)
def test_packages_are_called_as_documented(case, monkeypatch):
    monkeypatch.setattr(peers, "package", PACKAGES.__getitem__)
    name = "fla" if "fla" in case.peers else "flash_attn"
    calls, _, left_out = peers_of(replace(case, peers=(name,)))
    assert (set(calls), left_out) == ({name}, {})


def test_a_peer_that_disagrees_takes_the_figures_away(monkeypatch):
    wrong = SimpleNamespace(flash_attn_func=lambda q, k, v, **_: q)
    monkeypatch.setattr(peers, "package", lambda name: wrong)
    with pytest.raises(Disagreement, match="flash-attn"):
        peers_of(replace(case_named("forward-dense-bf16-d64-512"), peers=("flash_attn",)))


# what is written, of figures that nobody measured


def invented(case, seconds):
    """An entry as if ours had taken `seconds`, and each peer one."""
    times = {"ours": seconds} | dict.fromkeys(case.peers, 1.0)
    return entry_of(
        case,
        {
            "differences": {},
            "left_out": {"flash_attn": "not installed"},
            "contenders": {name: measure.summary([t]) | {"memory": {"call": 0}} for name, t in times.items()},
        },
        peak_rate=1e15,
    )


MACHINE = {
    "gpu": "No GPU (invented)",
    "compute_capability": "0.0",
    "memory_bytes": 0,
    "driver": "0",
    "torch": "0",
    "attention_ext": "0",
    "kernels": "none",
}


def test_json_plot_and_verdicts(tmp_path, capsys):
    cases = [case_named(f"{p}-dense-bf16-d64-{L}") for p in ("forward", "backward") for L in (512, 1024)]
    cases += map(case_named, ("forward-window-d64-4096", "decode-512", "both-delta_rule-1024"))
    entries = [invented(case, seconds=1.5) for case in cases]
    entries.append(measure.no_entry(cases[0], "disagrees", "out differs"))
    result = {"date": "never", "machine": MACHINE, "quick": True, "entries": entries}
    folder = run.folder_of(result, tmp_path)
    assert folder == tmp_path / "no-gpu-invented"
    written = write(result, folder, draw)
    names = {f"{op}.{kind}" for op in ("attention", "delta_rule") for kind in ("json", "png")}
    assert {path.name for path in written} == names
    assert (folder / "attention.png").read_bytes().startswith(b"\x89PNG")
    read = json.loads((folder / "attention.json").read_text())["entries"]
    # 1.3 times flash's forward, 1.7 times its backward, faster than FlexAttention.
    verdicts = [[r["verdict"] for r in entry["requirements"]] for entry in read]
    assert verdicts == [["missed"], ["missed"], ["met"], ["met"], ["missed"], [], ["not judged"]]
    assert read[0]["ratios"]["sdpa_flash"]["min"] == pytest.approx(1 / 1.5)
    assert "contenders" not in read[-1]
    print(*(run.case_text(entry) for entry in entries), summary_text(entries), sep="\n")
    told = capsys.readouterr().out
    assert "requirements: 2 met, 3 missed, 1 not judged" in told
    assert "DISAGREES, no figure: out differs" in told
    assert "flash_attn left out: not installed" in told


# without a GPU


def test_without_a_gpu_nothing_is_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.main(["--output", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"nothing measured, {len(CASES)} cases skipped: torch ")
    assert told.endswith("finds no CUDA device\n")
    assert list(tmp_path.iterdir()) == []


def test_kernels_that_are_not_built(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ax, "build_info", lambda: {"cuda": "not built: nvcc was not found"})
    assert gpu.missing() == "the CUDA kernels of attention_ext were not built: nvcc was not found"


def test_an_unknown_case_is_an_error(capsys):
    assert run.main(["--case", "no-such-case"]) == 2
    assert "no case has no-such-case in its name" in capsys.readouterr().err


def test_clocks_without_nvidia_smi(monkeypatch):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    assert gpu.clocks() == {}


def test_an_error_of_ours_is_no_figure(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(measure, "check_small", lambda case, device: F.nonsense)
    entry = measure.measure(case_named("forward-dense-bf16-d64-512"), FULL, lambda dtype: 1.0)
    assert entry["status"] == "failed"
    assert entry["reason"].startswith("AttributeError")
    capsys.readouterr()


def test_samples_are_taken_in_turn(monkeypatch):
    order, calls = [], [lambda: None, lambda: None, lambda: None]
    monkeypatch.setattr(clock, "buffer_to_flush", lambda: None)
    monkeypatch.setattr(clock, "sample", lambda call, flush: order.append(calls.index(call)) or 0.25)
    samples = clock.interleaved(calls, seconds=1.5, least=1, most=9)
    assert samples == [[0.25, 0.25]] * 3
    assert order == [0, 1, 2, 2, 1, 0, 0, 1, 2]
    assert [len(s) for s in clock.interleaved(calls, seconds=100, least=1, most=4)] == [4, 4, 4]


def test_results_of_another_size_disagree():
    with pytest.raises(Disagreement, match="out is"):
        check_agreement("a peer", {"out": torch.ones(2)}, {"out": torch.ones(3)}, "float32")
