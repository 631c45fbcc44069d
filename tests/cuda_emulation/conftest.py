import json
import os

import cuda_code
import emulation
import pytest


@pytest.fixture
def kernels():
    if reason := emulation.missing():
        pytest.skip(reason)
    return emulation.kernels()


def pytest_generate_tests(metafunc):
    if emulation.MODE == "ptx":
        folders = emulation.PTX or [None]
        metafunc.parametrize("ptx", folders, ids=lambda f: f.name if f else "none", indirect=True)


@pytest.fixture
def ptx(request, kernels):
    """The folder whose PTX the kernels are run from; None in the other modes."""
    folder = getattr(request, "param", None)
    if folder:
        kernels.load_ptx(folder)
        kernels.set_architecture(int(folder.name.removeprefix("sm_")))
    return folder


@pytest.fixture(autouse=True)
def installed(kernels, ptx):
    """Every test runs the CUDA kernels, and fails where the emulator's checks find something."""
    before = kernels.calls
    kernels.set_schedule(0)
    with kernels.installed():
        yield
    if findings := kernels.findings():
        pytest.fail("\n".join(findings), pytrace=False)
    assert kernels.calls > before, "the test did not run a CUDA kernel"


@pytest.fixture(scope="session", autouse=True)
def launches_keep_to_the_budget():
    """Of threads and shared memory, at the end. They are kept too, for `tests/cuda_code.py --write`."""
    yield
    if emulation.missing() or not (launches := emulation.kernels().launches()):
        return
    folder = emulation.PATH.parent / "launches"
    folder.mkdir(exist_ok=True)
    (folder / f"{os.getpid()}.json").write_text(json.dumps(launches))
    budgets = cuda_code.read_budget()
    for name, (threads, shared) in launches.items():
        if budget := budgets.get(name):  # test_cuda_code.py asks for an entry of each
            assert threads == budget["threads"], name
            assert shared <= budget["shared"], name


def pytest_sessionfinish():
    """In ptx mode each process leaves the names of the kernels it has run, for ptx_kernels.py."""
    if emulation.MODE == "ptx" and emulation.kernels.cache_info().currsize:
        emulation.PTX_RUN.mkdir(exist_ok=True)
        names = "".join(f"{name}\n" for name in emulation.kernels().kernels_run())
        (emulation.PTX_RUN / f"{os.getpid()}.txt").write_text(names)
