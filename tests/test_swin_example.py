"""examples/swin_windows.py, on small maps."""

from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.once, pytest.mark.cpu_only("an example on the CPU")]


@pytest.fixture
def swin(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "examples")
    import swin_windows

    monkeypatch.setattr(swin_windows, "SIDE", 14)
    monkeypatch.setattr(swin_windows, "DIM", 12)
    return swin_windows


def test_the_example_agrees_with_the_plain_formula(swin, capsys):
    assert swin.main()
    assert capsys.readouterr().out.count("(within 1e-05); our kernels ran: (1, 1)") == 2


def test_the_example_finds_a_difference(swin, monkeypatch):
    plain = swin.plain
    monkeypatch.setattr(swin, "plain", lambda *inputs: 1.01 * plain(*inputs))
    assert not swin.main()


def test_a_partition_is_a_rectangle_of_the_map(swin):
    layer = swin.ShiftedWindowAttention(12, 3, 7, 14, 3)
    ids = layer.whole((layer.ids + 100 * torch.arange(4)[:, None])[..., None].float()).roll((3, 3), (1, 2))
    stripe = (torch.arange(14) + 4) // 7
    expected = 3 * stripe[:, None] + stripe
    same = ids.flatten()[:, None] == ids.flatten()
    assert torch.equal(same, expected.flatten()[:, None] == expected.flatten())
