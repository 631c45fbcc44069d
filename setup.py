"""Builds the two compiled files of attention_ext; everything declarative stands in pyproject.toml.

attention_ext/libattention_ext.so   the operators, on torch's stable ABI: no Python, no libtorch_python,
                                    loaded by torch.ops.load_library or by a C++ program
attention_ext/_C*.so                pybind11 (the copy that torch ships): build and CPU information, no torch

No file has flags of its own: csrc/cpu/isa_*.cpp choose their instruction set by a target pragma, and the rest
is the baseline of the architecture, so that one build serves every machine.

Environment: ATTENTION_EXT_CUDA=auto|0|1, TORCH_CUDA_ARCH_LIST, MAX_JOBS. ninja and ccache are used if there.
Without TORCH_CUDA_ARCH_LIST a development build (editable or in place) takes one CUDA architecture, the
GPU's or sm_80, any other build those of ARCHITECTURES.
"""

import os
import re
import subprocess
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, setup

try:
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    sys.exit(f"attention_ext: building needs torch >= 2.10 ({error}): install it, or use build isolation")

ROOT = Path(__file__).resolve().parent
os.chdir(ROOT)

# The oldest torch whose stable ABI has everything the operators use; as in pyproject.toml.
TORCH_TARGET_VERSION = "0x020a000000000000"
FLAGS = [
    "-O3",
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-g0",
]
# g++'s false alarms: vectors as arguments (of functions that are always inlined), and its AVX-512 headers.
FLAGS += ["-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
# Messages quote __FILE__: without the folder of the machine that built them.
FLAGS += [f"-ffile-prefix-map={folder}/=" for folder in (ROOT, Path(torch.__file__).parent.parent)]
MODULE = "csrc/bindings/module.cpp"
# They measure this machine, for the benchmarks; the operators don't need them.
PROBES = ["csrc/cpu/fma_peak.cpp", "csrc/cpu/bandwidth.cpp"]
LIBRARY = "attention_ext.libattention_ext"
# sm_75 for the plain kernels; PTX of the last two families for what comes after them.
ARCHITECTURES = "7.5;8.0;9.0+PTX;10.0;12.0+PTX"
OLDEST_CUDA = (12, 8)  # whose nvcc knows them all
DEVELOPMENT = bool({"editable_wheel", "develop", "--inplace"} & set(sys.argv))


def architectures() -> str | None:
    """What TORCH_CUDA_ARCH_LIST has to be: torch fails without it or a GPU to ask. None: ask the GPU."""
    if given := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return given
    if not DEVELOPMENT:
        return ARCHITECTURES
    return None if torch.cuda.is_available() else "8.0+PTX"


def cuda_missing() -> str | None:
    """What is missing to compile CUDA sources, if anything: one line."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    home = cpp_extension.CUDA_HOME
    if home is None or not Path(home, "bin", "nvcc").is_file():
        return "nvcc was not found (put it on PATH or set CUDA_HOME)"
    told = subprocess.run([Path(home, "bin", "nvcc"), "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", told)
    if release is None:
        return f"{home}/bin/nvcc does not tell its version"
    version, found = tuple(map(int, release.groups())), f"nvcc is of CUDA {release[1]}.{release[2]}"
    if version < OLDEST_CUDA:
        return f"{found}, and {OLDEST_CUDA[0]}.{OLDEST_CUDA[1]} is the oldest"
    if version[0] != int(torch.version.cuda.partition(".")[0]):
        fitting = "put one of the same major version on PATH or set CUDA_HOME"
        return f"{found}, but torch of {torch.version.cuda}: {fitting}"
    return None


def cuda_status(sources: list[str]) -> tuple[bool, str]:
    """Whether to compile CUDA sources, and one line that says why (not)."""
    mode = os.environ.get("ATTENTION_EXT_CUDA", "auto").strip().lower()
    if mode not in ("auto", "0", "1"):
        sys.exit(f"attention_ext: ATTENTION_EXT_CUDA must be auto, 0 or 1, got {mode!r}")
    if mode == "0":
        return False, "not built: ATTENTION_EXT_CUDA=0"
    missing = cuda_missing()
    if missing and mode == "1":
        sys.exit(f"attention_ext: ATTENTION_EXT_CUDA=1, but {missing}")
    if missing:
        return False, f"not built: {missing}"
    if not sources:
        return False, "not built: this version has no CUDA kernels"
    return True, f"built for torch's CUDA {torch.version.cuda} and {architectures() or 'the GPU'}"


def compression() -> list[str]:
    """A fifth of the size for a tenth more time to compile; needs a driver that all of CUDA 13 have."""
    small = not DEVELOPMENT and int(torch.version.cuda.partition(".")[0]) >= 13
    return ["--compress-mode=size"] if small else []


class BuildExtension(cpp_extension.BuildExtension):
    """torch's, with a plain file name for the operator library and objects that outlive the call."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # An editable install hands over a temporary folder: each edit would compile everything again.
        self.build_temp = str(ROOT / "build" / f"temp.{self.plat_name}-{sys.implementation.cache_tag}")

    def build_extension(self, ext: Extension) -> None:
        shared, self.build_temp = self.build_temp, os.path.join(self.build_temp, ext.name)
        try:  # a folder each: both write a build.ninja, and compile cpu_info.cpp with flags of their own
            super().build_extension(ext)
        finally:
            self.build_temp = shared

    def get_ext_filename(self, ext_name: str) -> str:
        if ext_name.endswith(LIBRARY.rpartition(".")[2]):
            return os.path.join(*ext_name.split(".")) + ".so"
        return super().get_ext_filename(ext_name)


def operator_library(cuda_sources: list[str]) -> Extension:
    cuda_bindings = glob("csrc/bindings/*_cuda.cpp")
    sources = sorted(
        {*glob("csrc/cpu/*.cpp"), *glob("csrc/bindings/*.cpp")} - {MODULE, *PROBES, *cuda_bindings}
    )
    defines = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
    extension, cuda_flags = cpp_extension.CppExtension, {}
    if cuda_sources:
        extension, defines = cpp_extension.CUDAExtension, [*defines, "-DUSE_CUDA"]
        cuda_flags = {"nvcc": ["-O3", "-std=c++20", "-Xcompiler", "-fvisibility=hidden", *compression()]}
        sources += sorted(cuda_bindings)
    ext = extension(
        LIBRARY,
        [*sources, *cuda_sources],
        include_dirs=[str(ROOT / "csrc")],
        depends=sorted(
            path for end in ("h", "inl", "cuh") for path in glob(f"csrc/**/*.{end}", recursive=True)
        ),
        extra_compile_args={"cxx": [*FLAGS, *defines], **cuda_flags},
        extra_link_args=["-Wl,--as-needed", "-Wl,-z,defs"],
    )
    ext.libraries = [name for name in ext.libraries if name != "torch_python"]
    return ext


def information_module(version: str, cuda: str) -> Extension:
    facts = {"VERSION": version, "TORCH": torch.__version__, "CUDA": cuda}
    return Extension(
        "attention_ext._C",
        [MODULE, "csrc/cpu/cpu_info.cpp", *PROBES],
        include_dirs=[str(ROOT / "csrc"), *cpp_extension.include_paths()],
        depends=["csrc/cpu/cpu_info.h", *(probe.replace(".cpp", ".h") for probe in PROBES)],
        extra_compile_args={"cxx": [*FLAGS, *(f'-DATTENTION_EXT_{k}="{v}"' for k, v in facts.items())]},
        extra_link_args=["-Wl,--as-needed"],
        language="c++",
    )


def project_version() -> str:
    lines = Path("pyproject.toml").read_text(encoding="utf-8").splitlines()
    return next(line.split('"')[1] for line in lines if line.startswith("version = "))


cuda_sources = sorted(glob("csrc/cuda/**/*.cu", recursive=True))
with_cuda, cuda_line = cuda_status(cuda_sources)
print(f"attention_ext: CUDA {cuda_line}", file=sys.stderr)
if with_cuda and (chosen := architectures()):
    os.environ["TORCH_CUDA_ARCH_LIST"] = chosen
os.environ.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0))))

setup(
    ext_modules=[
        operator_library(cuda_sources if with_cuda else []),
        information_module(project_version(), cuda_line),
    ],
    cmdclass={"build_ext": BuildExtension},
)
