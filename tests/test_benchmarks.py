"""The benchmarks' own rules: no figure without agreement, clocks, verdicts, memory, the table."""

import json
import os
import threading
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from attention_ext import _C
from benchmarks import attention_peers, run, table
from benchmarks.agreement import Disagreement, check_agreement
from benchmarks.attention_peers import on_tensors
from benchmarks.baselines import CONTENDERS
from benchmarks.cases import CAUSAL, Band, Case, Requirement, Shape, plain
from benchmarks.clocks import Sampler, WorkElsewhere, thread_seconds
from benchmarks.contender import Contender, NotHere
from benchmarks.crossover import crossover_of
from benchmarks.effort import QUICK
from benchmarks.figures import judge
from benchmarks.measure import measure_time
from benchmarks.memory import measure_memory
from benchmarks.patterns import Documents
from benchmarks.registry import CASES, operators
from benchmarks.scaling import measure_scaling
from benchmarks.worker import run_apart

pytestmark = [pytest.mark.once, pytest.mark.cpu_only("measures the CPU")]

SHAPE = Shape(1, 2, 1, 24, 24, 8, 8)
TINY = Case("tiny", SHAPE, peers=("matmul",), group="tiny cases", headline=True)
RATIO = Requirement("ratio", 1e-6, "matmul", needs="generic")
SHARE = Requirement("share", 2.0, needs="generic")


def quiet(_):
    pass


# the command


def test_a_quick_run_writes_figures_and_a_plot(monkeypatch, tmp_path, capsys):
    cases = [
        replace(TINY, requirements=(RATIO, SHARE)),
        replace(TINY, name="both", passes="both", peers=("sdpa",)),
        replace(TINY, name="elsewhere", capability="of another machine", requirements=(SHARE,)),
    ]
    monkeypatch.setattr(run, "CASES", cases)
    assert run.main(["--quick", "--op", "attention", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "attention.json").read_text())
    assert result["quick"] is True
    assert result["op"] == "attention"
    assert {"cpu", "cores", "capability", "torch", "compiler"} <= set(result["machine"])
    tiny, both, elsewhere = result["entries"]
    assert tiny["status"] == both["status"] == "measured"
    ours, peer = tiny["contenders"]["ours"], tiny["contenders"]["matmul"]
    assert 0 < ours["seconds_min"] <= ours["seconds_median"] < 1
    assert len(ours["samples"]) == len(peer["samples"]) >= 1
    assert tiny["ratios"]["matmul"]["min"] == pytest.approx(peer["seconds_min"] / ours["seconds_min"])
    assert ours["share"] == pytest.approx(tiny["flops"] / ours["seconds_min"] / tiny["peak_rate"])
    assert [r["verdict"] for r in tiny["requirements"]] == ["met", "missed"]
    assert elsewhere["status"] == "left out"
    assert "contenders" not in elsewhere
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "requirements: 1 met, 1 missed, 1 not judged" in printed
    assert "tiny: share of peak ≥ 200 %" in printed
    assert "MISSED" in printed


def test_an_unknown_case_is_an_error(capsys):
    assert run.main(["--quick", "--case", "no-such-case"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("no case no-such-case; there are: ")
    assert "both-bigbird, both-causal" in told


def scaled(factor):
    def make(case):
        right = attention_peers.matmul(case)
        return lambda q, k, v: right(q, k, v) * factor

    return on_tensors(make)


@pytest.mark.parametrize("factor", [1.01, float("nan"), 0.0])
@pytest.mark.parametrize("kind", ["time", "scaling"])
def test_no_agreement_no_figure(monkeypatch, tmp_path, capsys, factor, kind):
    monkeypatch.setitem(CONTENDERS["attention"], "wrong", Contender("wrong", scaled(factor)))
    # in this process, which knows the wrong peer
    monkeypatch.setattr(run, "run_apart", lambda function, *arguments, capability=None: function(*arguments))
    monkeypatch.setattr(run, "not_here", lambda case: "")
    requirement = replace(RATIO, peer="wrong")
    case = replace(
        TINY,
        peers=("matmul", "wrong"),
        kind=kind,
        threads=1 + (kind == "scaling"),
        requirements=(requirement,),
    )
    monkeypatch.setattr(run, "CASES", [case])
    assert run.main(["--quick", "--output", str(tmp_path)]) == 1
    (entry,) = json.loads((tmp_path / "attention.json").read_text())["entries"]
    assert entry["status"] == "disagrees"
    assert "out differs from wrong by" in entry["reason"]
    assert not {"contenders", "ratios", "scaling"} & set(entry)
    assert entry["requirements"][0]["value"] is None
    assert entry["requirements"][0]["verdict"] == "not judged"
    assert "tiny: DISAGREES, no figure" in capsys.readouterr().out
    assert not (tmp_path / "attention.png").exists()


def test_the_rate_is_that_of_the_work_done():
    case = replace(TINY, mask=CAUSAL, shape=plain(1, 2, 24, 8), peers=("unmasked",))
    contenders = run.measure(case, QUICK)["contenders"]
    ours, unmasked = contenders["ours"], contenders["unmasked"]
    assert ours["rate"] == pytest.approx(case.flops / ours["seconds_min"])
    assert unmasked["rate"] == pytest.approx(replace(case, mask=None).flops / unmasked["seconds_min"])


def test_an_error_is_no_figure(monkeypatch):
    def build(case, inputs):
        raise OSError("no such peer")

    monkeypatch.setitem(CONTENDERS["attention"], "broken", Contender("broken", build))
    entry = run.measure(replace(TINY, peers=("broken",), requirements=(SHARE,)), QUICK)
    assert entry["status"] == "failed"
    assert entry["reason"] == "OSError: no such peer"
    assert "contenders" not in entry


def test_a_peer_that_is_not_here_is_left_out(monkeypatch, tmp_path, capsys):
    def build(case, inputs):
        raise NotHere("it wants another machine")

    monkeypatch.setitem(CONTENDERS["attention"], "absent", Contender("absent", build))
    requirement = replace(RATIO, peer="absent")
    case = replace(TINY, peers=("matmul", "absent"), requirements=(requirement,))
    monkeypatch.setattr(run, "CASES", [case])
    assert run.main(["--quick", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "attention.json").read_text())
    (entry,) = result["entries"]
    assert list(entry["ratios"]) == ["matmul"]
    assert entry["requirements"][0]["verdict"] == "not judged"
    assert entry["requirements"][0]["reason"] == "it wants another machine"
    assert "absent left out: it wants another machine" in capsys.readouterr().out
    assert "absent left out: it wants another machine" in table.page(result)


def test_crossover(monkeypatch, tmp_path, capsys):
    def seconds(*pairs):
        return {2**n: {"ours": ours, "p": peer} for n, (ours, peer) in enumerate(pairs)}

    assert crossover_of(seconds((2, 1), (2, 2), (1, 2)), "p") == 2
    assert crossover_of(seconds((1, 2), (2, 1)), "p") is None
    assert crossover_of(seconds((1, 2), (3, 1), (1, 2)), "p") == 4
    case = replace(TINY, kind="crossover", mask=CAUSAL, shape=plain(1, 1, 64, 8), peers=("sdpa",))
    monkeypatch.setattr(run, "CASES", [case])
    assert run.main(["--quick", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "attention.json").read_text())
    (entry,) = result["entries"]
    assert set(entry["lengths"]) == {"32", "64"}
    assert entry["crossover"] in (None, 32, 64)
    for text in (capsys.readouterr().out, table.page(result)):
        assert "N = 64: " in text


def test_agreement_looks_at_every_result():
    a = {"out": torch.ones(3), "dx": torch.ones(2)}
    assert check_agreement("peer", a, a, "float32") == 0.0
    with pytest.raises(Disagreement, match=r"dx differs from peer by 5\.0e-01"):
        check_agreement("peer", a, a | {"dx": torch.tensor([1.0, 2.0])}, "float32")
    with pytest.raises(Disagreement, match="results out, dx; peer has out"):
        check_agreement("peer", a, {"out": a["out"]}, "float32")
    with pytest.raises(Disagreement, match=r"out is \(3,\), of peer \(1,\)"):
        check_agreement("peer", a, a | {"out": torch.ones(1)}, "float32")


# clocks


def test_work_on_other_threads_is_found():
    def elsewhere():
        thread = threading.Thread(target=_C.fma_work, args=("generic", "float32", 2.0))
        thread.start()
        thread.join()

    with pytest.raises(WorkElsewhere):
        thread_seconds(elsewhere)


def test_a_sample_is_the_time_of_one_call():
    def call():
        _C.fma_work("generic", "float32", 0.01)

    one = min(thread_seconds(call) for _ in range(20))
    sampler = Sampler.calibrated(call, 20 * one)
    assert sampler.repetitions >= 5
    assert_close(min(sampler.sample() for _ in range(5)), one, rtol=0.5, atol=0)


def test_threads_and_grad_mode_are_put_back():
    threads = torch.get_num_threads()
    measure_time(replace(TINY, passes="both"), QUICK, quiet)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_scaling_has_a_control():
    case = replace(TINY, kind="scaling", threads=2, shape=plain(1, 2, 256, 16))
    measured = measure_scaling(case, QUICK, quiet)
    assert set(measured["scaling"]) == {"ours", "matmul", "control"}
    assert all(value > 0 for value in measured["scaling"].values())
    ours = measured["one_thread"]["ours"]["seconds_min"] / measured["contenders"]["ours"]["seconds_min"]
    assert measured["scaling"]["ours"] == ours


def test_growth_is_measured_at_every_length(monkeypatch, tmp_path, capsys):
    requirements = (
        Requirement("growth", 9.0, needs="generic"),
        Requirement("memory_growth", 9.0, needs="generic"),
    )
    case = replace(TINY, kind="growth", peers=(), lengths=(32, 64), mask=CAUSAL, requirements=requirements)
    monkeypatch.setattr(run, "CASES", [case])
    assert run.main(["--quick", "--output", str(tmp_path)]) == 0
    (entry,) = json.loads((tmp_path / "attention.json").read_text())["entries"]
    assert [*entry["growth"]["seconds"]] == ["32", "64"]
    assert [r["verdict"] for r in entry["requirements"]] == ["met", "not judged"]
    assert "time grows as N to the ≤ 9.00" in capsys.readouterr().out
    (line,) = (x for x in table.section(tmp_path).splitlines() if x.startswith("| growth"))
    assert line.count("|") == table.HEADER.count("|")


# verdicts


def entry(**figures):
    return {"capability": "avx2", "tensor_bytes": 100, "contenders": {"ours": {"share": 0.8}}} | figures


def memory(ours, peer):
    return {"contenders": {"ours": {"memory": {"call": ours}}, "p": {"memory": {"call": peer}}}}


@pytest.mark.parametrize(
    ("requirement", "figures", "value", "verdict"),
    [
        (Requirement("ratio", 1.2, "p", "avx2"), {"ratios": {"p": {"min": 1.2}}}, 1.2, "met"),
        (Requirement("ratio", 1.2, "p", "avx2"), {"ratios": {"p": {"min": 1.1}}}, 1.1, "missed"),
        (Requirement("ratio", 1.2, "p", "avx512"), {"ratios": {"p": {"min": 1.1}}}, 1.1, "not judged"),
        (Requirement("ratio", 1.2, "p", "generic"), {"ratios": {"q": {"min": 1.1}}}, None, "not judged"),
        (Requirement("overhead", 3, "p", "generic"), {"ratios": {"p": {"min": 0.5}}}, 2.0, "met"),
        (Requirement("overhead", 3, "p", "generic"), {"ratios": {"p": {"min": 0.25}}}, 4.0, "missed"),
        (Requirement("share", 0.85, needs="avx2"), {}, 0.8, "missed"),
        (Requirement("share", 0.75, needs="avx2"), {}, 0.8, "met"),
        (
            Requirement("scaling", 1.8, None, "generic", 1.95),
            {"scaling": {"ours": 1.9, "control": 1.96}},
            1.9,
            "met",
        ),
        (
            Requirement("scaling", 1.8, None, "generic", 1.95),
            {"scaling": {"ours": 1.7, "control": 1.96}},
            1.7,
            "missed",
        ),
        (
            Requirement("scaling", 1.8, None, "generic", 1.95),
            {"scaling": {"ours": 1.9, "control": 1.9}},
            1.9,
            "not judged",
        ),
        (
            Requirement("ratio", 1.9, "p", "generic", 1.95),
            {"ratios": {"p": {"min": 2.0}}, "scaling": {"ours": 1.9, "control": 1.9}},
            2.0,
            "not judged",
        ),
        (Requirement("memory_ratio", 10, "p", "generic"), memory(100, 1200), 12.0, "met"),
        (Requirement("memory_ratio", 10, "p", "generic"), memory(100, 900), 9.0, "missed"),
        (Requirement("memory_ratio", 10, "p", "generic"), {}, None, "not judged"),
        (
            Requirement("growth", 1.1, needs="generic"),
            {"growth": {"exponents": {"seconds": 1.2}}},
            1.2,
            "missed",
        ),
        (
            Requirement("memory", 3, needs="generic"),
            {"contenders": {"ours": {"memory": {"total": 310}}}},
            3.1,
            "missed",
        ),
    ],
)
def test_verdicts(requirement, figures, value, verdict):
    judged = judge(requirement, entry(**figures))
    assert judged["value"] == value
    assert judged["verdict"] == verdict
    assert bool(judged["reason"]) == (verdict == "not judged")


# memory and other processes


WINDOWED = Case("w", plain(1, 2, 8192, 8), (), ("sdpa_bool_mask",), kind="memory", mask=Band(31, 0))


def test_peak_memory_counts_what_a_call_needs():
    case, N = WINDOWED, WINDOWED.shape.Lq
    ours = run_apart(measure_memory, replace(case, tail=64, passes="both"), "ours")
    masked = run_apart(measure_memory, case, "sdpa_bool_mask")
    if ours is None:
        pytest.skip("this system does not tell peak memory: it has no /proc/self/clear_refs")
    assert 2 * case.tensor_bytes <= ours["total"]
    assert case.tensor_bytes <= ours["call"] < N * N / 2
    assert masked["call"] >= N * N  # the bool mask
    assert 0 <= ours["difference"] < 1e-4


def test_the_backward_with_a_table_takes_what_its_tiles_need():
    case = Case("d", plain(1, 1, 32768, 16), kind="memory", passes="both", mask=Documents(64))
    measured = run_apart(measure_memory, case, "ours")
    if measured is None:
        pytest.skip("this system does not tell peak memory: it has no /proc/self/clear_refs")
    assert measured["call"] < 3 * case.tensor_bytes


def test_a_wrong_tail_is_found(monkeypatch):
    causal = on_tensors(lambda case: attention_peers.ours(replace(case, mask=CAUSAL)))
    monkeypatch.setitem(CONTENDERS["attention"], "ours", Contender("ours", causal))
    with pytest.raises(Disagreement, match=r"out differs from SDPA \+ bool mask"):
        measure_memory(replace(WINDOWED, shape=plain(1, 2, 256, 8), tail=16), "ours")


def test_a_tail_needs_a_window():
    with pytest.raises(ValueError, match="tail needs a causal window"):
        measure_memory(replace(WINDOWED, shape=plain(1, 2, 256, 8), tail=16, mask=Band(31, 1)), "ours")


def test_another_process_has_the_instruction_set_it_was_given():
    for capability in _C.cpu_capabilities()[:2]:
        assert run_apart(_C.cpu_capability, capability=capability) == capability


def test_errors_of_another_process_are_raised_here():
    with pytest.raises(ValueError, match="unknown CPU capability 'avx3'"):
        run_apart(_C.fma_peak, "avx3")
    with pytest.raises(RuntimeError, match="_exit ended with code 3"):
        run_apart(os._exit, 3)


# the README


def test_only_the_section_is_replaced():
    text = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    assert table.replace_section(text, "new") == f"before\n{table.BEGIN}\nnew\n{table.END}\nafter\n"
    with pytest.raises(ValueError, match=r"README\.md needs the lines"):
        table.replace_section("no markers", "new")


def test_the_table_has_every_figure(monkeypatch, tmp_path):
    cases = [
        replace(TINY, requirements=(RATIO, SHARE), peers=("matmul", "sdpa")),
        replace(TINY, name="elsewhere", capability="of another machine", requirements=(SHARE,)),
        replace(TINY, name="threads", kind="scaling", threads=2, group="threads", headline=False),
    ]
    monkeypatch.setattr(run, "CASES", cases)
    monkeypatch.setattr(run, "not_here", lambda case: "no such machine" if case.capability else "")
    assert run.main(["--quick", "--output", str(tmp_path)]) == 0
    lines = table.section(tmp_path).splitlines()
    page = table.page(json.loads((tmp_path / "attention.json").read_text())).splitlines()
    assert [line for line in page if line.startswith("#")] == ["# attention", "## tiny cases", "## threads"]
    shown, every = ([x for x in text if x.startswith("| ") and x != table.HEADER] for text in (lines, page))
    assert len(every) == 4
    assert shown == every[:3]
    assert len({row.count("|") for row in every}) == 1
    assert "matmul + softmax: " in every[0]
    assert "share of peak ≥ 200 %: **missed**" in every[0]
    assert "SDPA: " in every[1]
    assert "missed" not in every[1]
    assert "no figure: no such machine" in every[2]
    assert "FMA loop" in every[3]
    assert "![Ratios and shares of the peak, attention](benchmarks/results/attention.png)" in lines
    assert "All 3 cases: " in lines[-1]
    assert "requirements: 1 met, 1 missed (`tiny`), 1 not judged (`elsewhere`)." in lines[-1]


def test_the_table_is_checked_and_written(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "CASES", [TINY])
    results, readme = tmp_path / "results", tmp_path / "README.md"
    assert run.main(["--quick", "--output", str(results)]) == 0
    readme.write_text(f"{table.BEGIN}\n{table.END}\n")
    monkeypatch.setattr(table, "ROOT", tmp_path)
    monkeypatch.setattr(table, "RESULTS", results)
    assert table.main(["--check"]) == 1
    assert table.main([]) == 0
    assert "matmul + softmax" in readme.read_text()
    assert table.main(["--check"]) == 0
    (results / "attention.md").write_text("old")
    assert table.main(["--check"]) == 1


def test_the_readme_shows_the_committed_results():
    results = {path.stem: json.loads(path.read_text()) for path in table.RESULTS.glob("*.json")}
    assert sorted(results) == operators()
    for op, result in results.items():
        assert not result["quick"]
        assert [e["name"] for e in result["entries"]] == [case.name for case in CASES if case.op == op]
    assert table.main(["--check"]) == 0
