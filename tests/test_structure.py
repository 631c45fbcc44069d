"""The rules of the source tree: who may include whom, sizes, and what each operator must bring along."""

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

import attention_ext as ax

pytestmark = pytest.mark.cpu_only("about the source")

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "attention_ext"
CXX_SUFFIXES = {".h", ".cpp", ".inl", ".cu", ".cuh"}
MAX_LINES = 450

# core <- cpu, cuda <- bindings
MAY_INCLUDE = {
    "core": {"core"},
    "cpu": {"core", "cpu"},
    "cuda": {"core", "cuda"},
    "bindings": {"core", "cpu", "cuda", "bindings"},
}
TORCH_HEADER = re.compile(r"(torch|ATen|c10|caffe2|pybind11)/|Python\.h")
# A header of the C++ standard library, or one of C's under its C++ name: no folder, no ".h".
STANDARD_HEADER = re.compile(r"[a-z_0-9]+")


def cxx_files(*folders: Path) -> list[Path]:
    return sorted(f for folder in folders for f in folder.rglob("*") if f.suffix in CXX_SUFFIXES)


def includes(path: Path) -> Iterator[tuple[str, str]]:
    """("<" or '"', name) of each include."""
    yield from re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', path.read_text(), re.MULTILINE)


@cache
def project_files() -> list[Path]:
    """The project's own text files: neither built nor installed ones."""
    skip = {"build", "dist", "__pycache__", "demo_output"}
    files = []
    for folder, folders, names in os.walk(ROOT):
        hidden = {f for f in folders if f.startswith(".") and f != ".ci"}
        folders[:] = [f for f in folders if f not in skip | hidden and not f.endswith(".egg-info")]
        files += [Path(folder, n) for n in names if n != ".git" and not n.endswith((".so", ".png"))]
    return files


@pytest.mark.parametrize("path", cxx_files(CSRC), ids=lambda p: str(p.relative_to(CSRC)))
def test_layers_include_only_what_is_below(path):
    layer = path.relative_to(CSRC).parts[0]
    for kind, name in includes(path):
        if kind == '"':
            assert name.split("/")[0] in MAY_INCLUDE[layer], f"{layer} includes {name}"
            assert (CSRC / name).is_file(), f'"{name}" is not a file of csrc: use <>'
        elif layer != "bindings":
            assert not TORCH_HEADER.match(name), f"{layer} includes <{name}>: torch belongs to bindings"
            assert layer != "core" or STANDARD_HEADER.fullmatch(name), f"core includes <{name}>"


@pytest.mark.parametrize("header", cxx_files(CSRC / "core"), ids=lambda p: p.name)
@pytest.mark.parametrize("compiler", ["g++", "nvcc"])
def test_core_headers_compile_alone(compiler, header, tmp_path):
    if shutil.which(compiler) is None:
        assert compiler != "g++"
        pytest.skip("nvcc is not installed")
    source = tmp_path / "alone.cu"
    source.write_text(f'#include "core/{header.name}"\n')
    language = {"g++": ["-x", "c++", "-Wall", "-Wextra", "-Werror"], "nvcc": ["-arch=sm_80"]}[compiler]
    command = [
        compiler,
        *language,
        "-std=c++20",
        f"-I{CSRC}",
        "-c",
        str(source),
        "-o",
        str(tmp_path / "alone.o"),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_files_are_short():
    sizes = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in project_files()
        if path.suffix in CXX_SUFFIXES | {".py", ".pyi"}
    }
    assert sizes
    assert {name: size for name, size in sizes.items() if size > MAX_LINES} == {}


def test_no_machine_paths():
    # In two parts each, or this file would be found.
    home = re.compile(
        "|".join(["/ho" + "me/", "/ro" + "ot/", "/wo" + "rk/", "/Us" + "ers/", "/opt/con" + "da"])
    )
    found = []
    for path in project_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {m.group()}" for m in home.finditer(text)]
    assert found == []


# torch's private names


def private_torch_names(source: str) -> list[str]:
    """Names with a part in leading underscore, reached through an import from torch."""
    tree = ast.parse(source)
    aliases, found = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "torch":
                    aliases[name.asname or "torch"] = name.name if name.asname else "torch"
                    found.append(name.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            for name in node.names:
                aliases[name.asname or name.name] = f"{node.module}.{name.name}"
                found.append(f"{node.module}.{name.name}")
    for node in ast.walk(tree):
        parts, base = [], node
        while isinstance(base, ast.Attribute):
            parts.append(base.attr)
            base = base.value
        if parts and isinstance(base, ast.Name) and base.id in aliases:
            found.append(".".join([aliases[base.id], *reversed(parts)]))
    # torch.ops.attention_ext._x is ours.
    foreign = {name for name in found if not name.startswith("torch.ops.attention_ext.")}
    return sorted(name for name in foreign if re.search(r"\._(?!_)", name))


def test_the_search_for_private_names_finds_them():
    source = "import torch\nfrom torch import nn as x\nx.functional._y(1)\ntorch.nn.z\nfrom torch._C import q"
    assert private_torch_names(source) == ["torch._C.q", "torch.nn.functional._y"]
    assert private_torch_names("import torch\ntorch.ops.attention_ext._attention_forward(1).__class__") == []


def test_torch_private_names_are_in_one_module():
    used = {
        str(path.relative_to(PACKAGE)): names
        for path in sorted(PACKAGE.rglob("*.py"))
        if (names := private_torch_names(path.read_text()))
    }
    used.pop("_ops/transforms.py", None)
    assert used == {}


# what each operator brings along


def public_operators() -> list[str]:
    names = torch._C._dispatch_get_all_op_names()
    ours = (
        name.removeprefix("attention_ext::").split(".")[0]
        for name in names
        if name.startswith("attention_ext::")
    )
    return sorted({name for name in ours if not name.startswith("_")})


def test_every_operator_has_reference_test_and_benchmark():
    operators = public_operators()
    assert "attention" in operators
    registry = "".join(p.read_text() for p in (ROOT / "benchmarks" / "registry").glob("*.py"))
    for name in operators:
        assert callable(getattr(ax.reference, name, None)), f"attention_ext.reference has no {name}"
        assert list((ROOT / "tests").glob(f"test_{name}*.py")), f"no tests/test_{name}*.py"
        assert f'"{name}' in registry, f"benchmarks/registry has no {name}"
