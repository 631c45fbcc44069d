import device
import helpers
import pytest
import torch

helpers.poison_uninitialized_memory()
if not device.missing():
    device.install()


def pytest_collection_modifyitems(items):
    if device.NAME == "cpu":
        return
    reason = device.missing()
    for item in items:
        about_cpu = item.get_closest_marker("cpu_only")
        if reason or about_cpu:
            item.add_marker(pytest.mark.skip(reason=reason or f"on the CPU only: {about_cpu.args[0]}"))


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
