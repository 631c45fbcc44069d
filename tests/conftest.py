import device
import helpers
import pytest
import torch

helpers.poison_uninitialized_memory()


def pytest_configure():
    if reason := device.missing():
        pytest.exit(f"no tests on {device.NAME}: {reason}", returncode=0)
    device.install()


def pytest_collection_modifyitems(items):
    if device.NAME == "cpu":
        return
    for item in items:
        if about_cpu := item.get_closest_marker("cpu_only"):
            item.add_marker(pytest.mark.skip(reason=f"on the CPU only: {about_cpu.args[0]}"))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    device.poison_freed_memory()


@pytest.fixture
def num_threads():
    """A function that sets torch's number of threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
