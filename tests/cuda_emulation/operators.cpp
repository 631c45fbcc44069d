// The CUDA operators on CPU tensors: the kernels and bindings that ship, on the emulator. Python
// defines the schemas (conftest.py); the emulator's options and findings are plain C functions.
#include <cuda_emulation.h>

#include "ptx/interpreter.h"

#include "bindings/attention_cuda.h"
#include "bindings/block_table_cuda.h"
#include "bindings/delta_operators.h"
#include "bindings/device_tensor_cuda.h"
#include "bindings/linear_cuda.h"
#include "bindings/linear_operators.h"
#include "bindings/select_blocks_cuda.h"

static bool capturing = false;

attn::DeviceScope::DeviceScope(const Tensor&) {}
bool attn::DeviceScope::is_capturing() const { return capturing; }

STABLE_TORCH_LIBRARY_IMPL(attention_ext_emulation, CPU, m) {
  using Attention = attn::AttentionOperators<attn::cuda::AttentionOnCuda>;
  m.impl("attention", TORCH_BOX(&Attention::attention));
  m.impl("_attention_forward", TORCH_BOX(&Attention::forward));
  m.impl("_attention_backward", TORCH_BOX(&Attention::backward));
  m.impl("attention_map", TORCH_BOX(&Attention::map));
  m.impl("_pack_mask_bits", TORCH_BOX(&attn::cuda::pack_mask_bits));
  m.impl("_dropout_keep", TORCH_BOX(&attn::cuda::dropout_keep));
  m.impl("select_blocks", TORCH_BOX(&attn::cuda::select_blocks));
  m.impl("_build_block_table", TORCH_BOX(&attn::cuda::build_block_table));
  using LinearAttention = attn::LinearAttentionOperators<attn::LinearOnCuda>;
  m.impl("_linear_attention_forward", TORCH_BOX(&LinearAttention::forward));
  m.impl("_linear_attention_step", TORCH_BOX(&LinearAttention::step));
  m.impl("_linear_attention_backward", TORCH_BOX(&LinearAttention::backward));
  using DeltaRule = attn::DeltaRuleOperators<attn::LinearOnCuda>;
  m.impl("_delta_rule_forward", TORCH_BOX(&DeltaRule::forward));
  m.impl("_delta_rule_step", TORCH_BOX(&DeltaRule::step));
  m.impl("_delta_rule_backward", TORCH_BOX(&DeltaRule::backward));
}

#define ATTN_EXPORT extern "C" __attribute__((visibility("default")))

ATTN_EXPORT void emulation_set_seed(uint64_t seed) { cuda_emulation::options().seed = seed; }

ATTN_EXPORT void emulation_set_architecture(int number) {
  cuda_emulation::options().architecture = number;
}

// Whether streams are being captured into a CUDA graph.
ATTN_EXPORT void emulation_set_capturing(bool on) { capturing = on; }

ATTN_EXPORT bool emulation_is_checked() { return cuda_emulation::checked(); }

ATTN_EXPORT const cuda_emulation::Launch* emulation_launches(size_t* count) {
  *count = cuda_emulation::launches().size();
  return cuda_emulation::launches().data();
}

// Moves the text of the findings to the caller; null when there are no more.
ATTN_EXPORT const char* emulation_next_diagnostic() {
  static std::string text;
  auto& found = cuda_emulation::diagnostics();
  if (found.empty()) return nullptr;
  text = found.front().kind + ": " + found.front().text;
  found.erase(found.begin());
  return text.c_str();
}

// Launches run the kernels from the PTX of this folder; "" ends that. Returns what is wrong, or
// null.
ATTN_EXPORT const char* emulation_interpret_ptx(const char* folder) {
  static std::string text;
  try {
    ptx::interpret(folder);
    return nullptr;
  } catch (const std::exception& error) {
    text = error.what();
    return text.c_str();
  }
}

// "folder/name" of each kernel that has been run from PTX, a line each.
ATTN_EXPORT const char* emulation_ptx_kernels_run() {
  static std::string text;
  text.clear();
  for (const std::string& name : ptx::kernels_run()) text += name + "\n";
  return text.c_str();
}
