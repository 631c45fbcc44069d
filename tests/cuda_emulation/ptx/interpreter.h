// Runs launches from the PTX that nvcc made of the kernels, in place of their code on the host.
#pragma once

#include <cuda_emulation.h>

#include <set>
#include <string>

namespace ptx {

// All launches from now on take their kernel, found by its mangled name, from the *.ptx of this
// folder; "" ends that. Throws std::runtime_error for PTX that can't be read.
void interpret(const std::string& folder);

// Runs all blocks in turn. Throws Fault.
void run(const struct Program& program, const cuda_emulation::Command& command);

// Of the kernels that have been launched, each as "folder/name".
const std::set<std::string>& kernels_run();

}  // namespace ptx
