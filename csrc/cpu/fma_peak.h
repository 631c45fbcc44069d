// The arithmetic this machine can do: the measure that the benchmarks hold the kernels against.
#pragma once

#include <cstdint>

#include "cpu/cpu_info.h"

namespace attn {

// kBFloat16 multiplies pairs of bfloat16 and adds in float32 where an instruction does that;
// elsewhere it is kFloat32, which bfloat16 is computed in.
enum class PeakDtype : int { kFloat32, kFloat64, kBFloat16 };

// The best rate in GFLOP/s of one thread, in its own CPU time, over samples that fill about
// `seconds`. Multiply and add count as one each; where there is no fused instruction (generic on
// x86-64) they are two instructions. Throws std::invalid_argument if the machine lacks the
// capability, or `seconds` is not in (0, 60].
double fma_peak(CpuCapability capability, PeakDtype dtype, double seconds);

// Does at least `gflop` billion operations and returns the number done, in billions. The caller
// measures the time: with the same work in two threads at once, wall time tells what a second core
// of this machine is worth.
double fma_work(CpuCapability capability, PeakDtype dtype, double gflop);

}  // namespace attn
