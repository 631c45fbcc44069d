"""The faults that `make mutate-cuda` plants into the CUDA kernels: there are enough, and they fit."""

import importlib
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNELS = HERE.parent / "csrc" / "cuda"

pytestmark = [pytest.mark.once, pytest.mark.cpu_only("reads sources")]


@pytest.fixture
def faults(monkeypatch):
    monkeypatch.syspath_prepend(HERE / "cuda_emulation")
    return importlib.import_module("mutations").all_mutations()


def test_each_family_of_kernels_has_at_least_15(faults):
    count = Counter(fault.name.split(":")[0] for fault in faults)
    assert min(count.values()) >= 15, count


def test_each_file_with_a_kernel_has_some(faults):
    with_kernels = {path.name for path in KERNELS.iterdir() if "__global__" in path.read_text()}
    assert with_kernels <= {fault.file for fault in faults}


def test_each_changes_code_that_is_there(faults):
    for fault in faults:
        assert (KERNELS / fault.file).read_text().count(fault.old) >= fault.occurrence, fault.name
        assert fault.old != fault.new, fault.name
        assert all((KERNELS / f"{name}.cu").is_file() for name in fault.rebuilt), fault.name
