import emulation
import pytest


@pytest.fixture
def kernels():
    if reason := emulation.missing():
        pytest.skip(reason)
    return emulation.kernels()


@pytest.fixture(autouse=True)
def installed(kernels):
    """Every test runs the CUDA kernels, and fails where the emulator's checks find something."""
    before = kernels.calls
    kernels.set_schedule(0)
    with kernels.installed():
        yield
    if findings := kernels.findings():
        pytest.fail("\n".join(findings), pytrace=False)
    assert kernels.calls > before, "the test did not run a CUDA kernel"
