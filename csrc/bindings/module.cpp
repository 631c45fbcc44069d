// attention_ext._C: what was built and what the processor can do. No torch in here.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/bandwidth.h"
#include "cpu/cpu_info.h"
#include "cpu/fma_peak.h"

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "g++ " __VERSION__;
#else
  return "unknown";
#endif
}

attn::CpuCapability capability_of(const std::string& name) {
  return attn::parse_cpu_capability(name, attn::best_cpu_capability());
}

attn::PeakDtype dtype_of(const std::string& name) {
  if (name == "float32") return attn::PeakDtype::kFloat32;
  if (name == "float64") return attn::PeakDtype::kFloat64;
  if (name == "bfloat16") return attn::PeakDtype::kBFloat16;
  throw std::invalid_argument("dtype must be 'float32', 'float64' or 'bfloat16', got '" + name +
                              "'");
}

py::dict build() {
  py::dict facts;
  facts["version"] = ATTENTION_EXT_VERSION;
  facts["torch"] = ATTENTION_EXT_TORCH;
  facts["cuda"] = ATTENTION_EXT_CUDA;
  facts["compiler"] = compiler();
  return facts;
}

std::vector<std::string> capabilities() {
  std::vector<std::string> names;
  for (const attn::CpuCapability c : attn::available_cpu_capabilities()) {
    names.emplace_back(attn::capability_name(c));
  }
  return names;
}

py::dict caches() {
  const attn::CacheSizes& sizes = attn::cache_sizes();
  py::dict bytes;
  bytes["l1d"] = sizes.l1d;
  bytes["l2"] = sizes.l2;
  bytes["l3"] = sizes.l3;
  return bytes;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using py::arg;
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.doc() = "Build and CPU information of attention_ext, and probes of what the machine can do.";
  m.def("build", &build, "Version, torch and compiler of the build, and whether CUDA is in it.");
  m.def(
      "cpu_capability", [] { return std::string(attn::capability_name(attn::cpu_capability())); },
      "The instruction set in use. ValueError if ATTENTION_EXT_CPU_CAPABILITY names none of this "
      "machine.");
  m.def("cpu_capabilities", &capabilities, "The instruction sets of this machine, lowest first.");
  m.def("cache_sizes", &caches, "Bytes of the data caches one core reaches, 0 where unknown.");
  m.def(
      "fma_peak",
      [](const std::string& capability, const std::string& dtype, double seconds) {
        return attn::fma_peak(capability_of(capability), dtype_of(dtype), seconds);
      },
      arg("capability"), arg("dtype") = "float32", arg("seconds") = 0.2, no_gil,
      "Best rate of one thread in GFLOP/s, in its own CPU time.");
  m.def(
      "fma_work",
      [](const std::string& capability, const std::string& dtype, double gflop) {
        return attn::fma_work(capability_of(capability), dtype_of(dtype), gflop);
      },
      arg("capability"), arg("dtype"), arg("gflop"), no_gil,
      "Do at least that many billion operations; returns how many. For the caller to time.");
  m.def("read_bandwidth", &attn::read_bandwidth, arg("bytes"), arg("seconds") = 0.2, no_gil,
        "Best rate in GB/s at which one thread reads a buffer of that size, in its own CPU time.");
  m.def("update_bandwidth", &attn::update_bandwidth, arg("bytes"), arg("seconds") = 0.2, no_gil,
        "The same of bytes read and written, where it changes the buffer in place.");
}
