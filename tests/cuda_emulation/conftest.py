import emulation
import pytest


@pytest.fixture
def emulator():
    if not emulation.PATH.exists():
        pytest.skip("the emulated kernels are not built: `make test-cuda-emulation` does it")
    return emulation.emulator()


@pytest.fixture(autouse=True)
def emulated(emulator):
    """Every test runs the emulated kernels, and fails where their checks find something."""
    before = emulator.calls
    emulator.set_schedule(0)
    with emulator.installed():
        yield
    assert emulator.findings() == []
    assert emulator.calls > before, "the test did not run an emulated kernel"
