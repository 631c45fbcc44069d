"""Runs of PTX notice what is wrong in it: the text that nvcc made of a kernel, with a fault planted."""

import re

import emulation
import pytest
import torch
from helpers import Shape, make_qkv

import attention_ext as ax

if emulation.MODE != "ptx":
    pytest.skip("of the ptx mode alone", allow_module_level=True)

# What is replaced, everywhere, by what; and "values", or the error that is expected.
ROWS = "ldmatrix.sync.aligned.m8n8.x4.shared"
COLUMNS = "ldmatrix.sync.aligned.m8n8.x4.trans.shared"
FAULTS = {
    "columns for rows": (ROWS, COLUMNS, "values"),
    "rows for columns": (COLUMNS, ROWS, "values"),
    "elements of another kind": (".f32.f16.f16.f32", ".f32.bf16.bf16.f32", "values"),
    "halves of a pair swapped": (r"(cvt.rn.f16x2.f32 %r\d+), (%f\d+), (%f\d+)", r"\1, \3, \2", "values"),
    "left operands swapped": (r"(mma\S+\s+{[^}]*}, {%r\d+), (%r\d+), (%r\d+)", r"\1, \3, \2", "values"),
    "right operands swapped": (r"(mma[^}]*}, {[^}]*}), {(%r\d+), (%r\d+)", r"\1, {\3, \2", "values"),
    "another place to copy to": (r"(cp.async.cg.shared.global) \[(%r\d+)\]", r"\1 [\2+16]", "shared bounds"),
    "no barrier": (r"bar.red.or.pred\s+(%p\d+), 0, (%p\d+)", r"mov.pred \1, \2", "values"),
    "copies not waited for": (r"cp.async.wait_group\s+0", "cp.async.wait_group 4", "still in flight"),
    "copies in no group": (r"cp.async.commit_group", "cp.async.wait_group 4", "still in flight"),
    "an unknown instruction": ("mma.sync.aligned", "wgmma.sync.aligned", "unknown instruction wgmma"),
}


def results():
    torch.manual_seed(3)
    return ax.attention(*make_qkv(Shape(1, 1, 1, 70, 139, 64, 64), torch.float16))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_ptx_is_noticed(fault, kernels, ptx, tmp_path):
    right = results()
    old, new, noticed = FAULTS[fault]
    text, changes = re.subn(old, new, (ptx / "attention_half.ptx").read_text())
    assert changes
    (tmp_path / "attention_half.ptx").write_text(text)
    kernels.load_ptx(tmp_path)
    if noticed != "values":
        with pytest.raises(RuntimeError, match=noticed):
            results()
        return
    assert not torch.allclose(results(), right, rtol=0.1, atol=0.1)
