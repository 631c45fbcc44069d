// One attention call for the kernels: its arrays, its parameters, and a run in guarded memory.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/params.h"
#include "cpu/block_table_builder.h"
#include "cpu/dispatch.h"
#include "cpu/mask_leaves.h"
#include "guarded_array.h"

// What is called; "none" by default.
struct AttentionShape {
  int64_t B = 1, Hq = 1, Hkv = 1, Lq = 1, Lk = 1, D = 8, Dv = 8;
};

struct AttentionCase {
  std::string name;
  AttentionShape shape;
  attn::Dtype dtype = attn::Dtype::kFloat32;
  Layout layout = Layout::kPlain;
  double scale = 0.4, softcap = 0, dropout_p = 0;
  int64_t lower = -attn::kUnbounded, upper = attn::kUnbounded;
  int64_t dilation = 1, phase = 0;
  std::vector<int64_t> offsets, lengths;
  int blocks = -1;      // which of b, h (bits 1, 0) a map of blocks varies over, lowered to a table
  bool sparse = false;  // the table counts as one whose rows are gathered
  int bits = -1;        // which of b, h, i (bits 2, 1, 0) a bit map varies over
  bool bias = false, bias_masks = false;
  std::array<bool, 4> bias_varies{true, true, true, true};
  attn::Dtype bias_dtype = attn::Dtype::kFloat32;
  bool sinks = false, alibi = false, alibi_per_batch = false;
  bool grad_lse = true;
  // Which gradients are asked for.
  bool dq = true, dk = true, dv = true, dbias = true, dsinks = true, dalibi = true;
};

class AttentionCall {
 public:
  explicit AttentionCall(const AttentionCase& c);

  // Forward, then backward from what it gave; work items in order or the other way round. Scratch
  // and workspace start out as NaN, or as zeros.
  void run(bool backward, bool reversed, bool zeroed);
  void check_guards();
  std::vector<std::vector<char>> results();

  const AttentionCase& options() const { return case_; }
  const attn::AttentionParams& params() const { return p_; }
  bool allowed(int64_t b, int64_t h, int64_t i, int64_t j) const;
  // 0 where dropped, else 1 / (1 - p)
  double kept(int64_t b, int64_t h, int64_t i, int64_t j) const;

  GuardedArray query, key, value, bias, sinks, slopes, grad_out, grad_lse;
  GuardedArray out, lse, dq, dk, dv, dbias, dsinks, dslopes;

 private:
  static constexpr int64_t kQueryBlock = 20, kTestKeyBlock = 50;
  AttentionCase case_;
  std::vector<uint8_t> blocks_;
  attn::BlockTableArrays table_;

  void build_table();
  bool block_allowed(int64_t b, int64_t h, int64_t i, int64_t j) const;
  attn::AttentionGradParams p_;
  std::vector<uint64_t> words_;

  void make_inputs();
  void make_results();
  void make_params();
  void run_backward(bool reversed, bool zeroed);
};

inline attn::Dtype accumulator_of(attn::Dtype dtype) {
  return dtype == attn::Dtype::kFloat64 ? attn::Dtype::kFloat64 : attn::Dtype::kFloat32;
}

inline void fill_normal(GuardedArray& array, std::mt19937& generator) {
  std::normal_distribution<double> normal;
  array.for_each([&](int64_t b, int64_t h, int64_t l, int64_t d) {
    array.set(b, h, l, d, normal(generator));
  });
}

// Aligned memory of exactly this size: AddressSanitizer sees what lies behind it.
struct Scratch {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> memory;
  size_t bytes;

  explicit Scratch(int64_t size) : bytes(static_cast<size_t>(std::max<int64_t>(size, 1))) {
    void* p = nullptr;
    CHECK_EQ(posix_memalign(&p, 64, bytes), 0);
    memory.reset(p);
  }
  void fill(bool zeroed) { std::memset(memory.get(), zeroed ? 0 : GuardedArray::kNan, bytes); }
};

template <class Params>
void run_items(const attn::Kernel<Params>& kernel, const Params& p, bool reversed, bool zeroed) {
  const attn::Plan plan = kernel.plan(p);
  Scratch scratch(plan.scratch_bytes);
  for (int64_t n = 0; n < plan.items; ++n) {
    scratch.fill(zeroed);
    kernel.run(p, reversed ? plan.items - 1 - n : n, scratch.memory.get());
  }
}

inline AttentionCall::AttentionCall(const AttentionCase& c) : case_(c) {
  make_inputs();
  make_results();
  make_params();
}

inline void AttentionCall::make_inputs() {
  const AttentionCase& c = case_;
  const AttentionShape& s = c.shape;
  const attn::Dtype accumulator = accumulator_of(c.dtype);
  query = GuardedArray({s.B, s.Hq, s.Lq, s.D}, c.dtype, c.layout);
  key = GuardedArray({s.B, s.Hkv, s.Lk, s.D}, c.dtype, c.layout);
  value = GuardedArray({s.B, s.Hkv, s.Lk, s.Dv}, c.dtype, c.layout);
  grad_out = GuardedArray({s.B, s.Hq, s.Lq, s.Dv}, c.dtype, c.layout);
  if (c.grad_lse) grad_lse = GuardedArray({s.B, s.Hq, s.Lq, 1}, accumulator);
  const int64_t full[4] = {s.B, s.Hq, s.Lq, s.Lk};
  if (c.bias) {
    int64_t size[4];
    for (int d = 0; d < 4; ++d) size[d] = c.bias_varies[d] ? full[d] : 1;
    bias = GuardedArray(size, c.bias_dtype, c.layout);
  }
  if (c.sinks) sinks = GuardedArray({1, s.Hq, 1, 1}, attn::Dtype::kFloat32);
  if (c.alibi)
    slopes = GuardedArray({c.alibi_per_batch ? s.B : 1, s.Hq, 1, 1}, attn::Dtype::kFloat32);

  std::mt19937 generator(7);
  for (GuardedArray* array : {&query, &key, &value, &grad_out, &grad_lse, &bias, &sinks, &slopes})
    fill_normal(*array, generator);
  if (c.bias_masks)
    bias.for_each([&](int64_t b, int64_t h, int64_t l, int64_t d) {
      if (generator() % 3 == 0 || l == s.Lq / 2) bias.set(b, h, l, d, -INFINITY);
    });
  slopes.for_each([&](int64_t b, int64_t h, int64_t, int64_t) {
    slopes.set(b, h, 0, 0, 0.25 * std::fabs(slopes.at(b, h, 0, 0)));
  });
  if (c.bits >= 0) {
    const int64_t rows = (c.bits & 4 ? s.B : 1) * (c.bits & 2 ? s.Hq : 1) * (c.bits & 1 ? s.Lq : 1);
    words_.resize(static_cast<size_t>(rows * ((s.Lk + 63) / 64)));
    for (uint64_t& word : words_) word = uint64_t{generator()} << 32 | generator();
  }
}

inline void AttentionCall::make_results() {
  const AttentionCase& c = case_;
  const AttentionShape& s = c.shape;
  // Gradients and out are dense, but may have their heads in rows.
  const Layout layout = c.layout == Layout::kHeadsInRows ? Layout::kHeadsInRows : Layout::kPlain;
  out = GuardedArray({s.B, s.Hq, s.Lq, s.Dv}, c.dtype, layout);
  lse = GuardedArray({s.B, s.Hq, s.Lq, 1}, accumulator_of(c.dtype));
  if (c.dq) dq = GuardedArray({s.B, s.Hq, s.Lq, s.D}, c.dtype, layout);
  if (c.dk) dk = GuardedArray({s.B, s.Hkv, s.Lk, s.D}, c.dtype, layout);
  if (c.dv) dv = GuardedArray({s.B, s.Hkv, s.Lk, s.Dv}, c.dtype, layout);
  if (c.bias && c.dbias)
    dbias = GuardedArray({bias.size(0), bias.size(1), bias.size(2), bias.size(3)}, c.bias_dtype);
  if (c.sinks && c.dsinks) dsinks = GuardedArray({1, s.Hq, 1, 1}, attn::Dtype::kFloat32);
  if (c.alibi && c.dalibi)
    dslopes = GuardedArray({slopes.size(0), s.Hq, 1, 1}, attn::Dtype::kFloat32);
}

inline void AttentionCall::make_params() {
  const AttentionCase& c = case_;
  const AttentionShape& s = c.shape;
  p_.B = s.B, p_.Hq = s.Hq, p_.Hkv = s.Hkv, p_.Lq = s.Lq, p_.Lk = s.Lk, p_.D = s.D, p_.Dv = s.Dv;
  p_.query = query.view(), p_.key = key.view(), p_.value = value.view();
  p_.out = out.view(), p_.lse = lse.view();
  p_.bias = bias.view(), p_.sinks = sinks.view(), p_.alibi_slopes = slopes.view();
  p_.grad_out = grad_out.view(), p_.grad_lse = grad_lse.view();
  p_.dq = dq.view(), p_.dk = dk.view(), p_.dv = dv.view(), p_.dbias = dbias.view();
  p_.dsinks = dsinks.view(), p_.dalibi_slopes = dslopes.view();
  p_.alibi_per_batch = c.alibi_per_batch;
  for (int d = 0; d < 4 && c.bias; ++d) p_.bias_size[d] = bias.size(d);
  p_.score = {c.scale, c.softcap, s.Lk - s.Lq};
  if (c.dropout_p > 0) {
    p_.dropout.seed = 0x123456789abcdef0u;
    p_.dropout.all = c.dropout_p == 1;
    p_.dropout.threshold = static_cast<uint32_t>(std::min(4294967295.0, c.dropout_p * 0x1p32));
    p_.dropout.keep_scale = p_.dropout.all ? 0 : 1 / (1 - c.dropout_p);
  }
  attn::Mask& mask = p_.mask;
  mask.Lq = s.Lq, mask.Lk = s.Lk, mask.lower = c.lower, mask.upper = c.upper;
  mask.band_offset = case_.offsets.empty() ? nullptr : case_.offsets.data();
  mask.key_lengths = case_.lengths.empty() ? nullptr : case_.lengths.data();
  mask.dilation = c.dilation, mask.phase = c.phase;
  if (c.blocks >= 0) build_table();
  if (c.bits < 0) return;
  const int64_t words = (s.Lk + 63) / 64, rows = c.bits & 1 ? s.Lq : 1;
  mask.bits = words_.data();
  mask.bits_stride_q = c.bits & 1 ? words : 0;
  mask.bits_stride_h = c.bits & 2 ? rows * words : 0;
  mask.bits_stride_b = c.bits & 4 ? (c.bits & 2 ? s.Hq : 1) * rows * words : 0;
}

inline void AttentionCall::build_table() {
  const AttentionShape& s = case_.shape;
  const int64_t B = case_.blocks & 2 ? s.B : 1, H = case_.blocks & 1 ? s.Hq : 1;
  const int64_t nq = (s.Lq + kQueryBlock - 1) / kQueryBlock,
                nk = (s.Lk + kTestKeyBlock - 1) / kTestKeyBlock;
  for (int64_t n = 0; n < B * H * nq * nk; ++n) blocks_.push_back(n * 2654435761u >> 7 & 1);
  const attn::MaskArray map{attn::MaskArray::Type::kBool, blocks_.data(), {B, H, nq, nk}};
  table_ = attn::build_block_table(*attn::make_blocks(map, kQueryBlock, kTestKeyBlock), s.Lq, s.Lk);
  p_.mask.table = table_.view();
  p_.mask.table.sparse = case_.sparse;
}

inline bool AttentionCall::block_allowed(int64_t b, int64_t h, int64_t i, int64_t j) const {
  const AttentionShape& s = case_.shape;
  const int64_t nq = (s.Lq + kQueryBlock - 1) / kQueryBlock,
                nk = (s.Lk + kTestKeyBlock - 1) / kTestKeyBlock;
  const int64_t head = case_.blocks & 1 ? h : 0, heads = case_.blocks & 1 ? s.Hq : 1;
  const int64_t list = (case_.blocks & 2 ? b : 0) * heads + head;
  return blocks_[static_cast<size_t>((list * nq + i / kQueryBlock) * nk + j / kTestKeyBlock)];
}

inline void AttentionCall::run(bool backward, bool reversed, bool zeroed) {
  const auto& kernels = attn::kernels().attention[static_cast<int>(case_.dtype)];
  run_items<attn::AttentionParams>(kernels.forward, p_, reversed, zeroed);
  if (backward) run_backward(reversed, zeroed);
}

inline void AttentionCall::run_backward(bool reversed, bool zeroed) {
  const auto& kernels = attn::kernels().attention[static_cast<int>(case_.dtype)];
  p_.plan = kernels.backward_plan(p_);
  const attn::GradPlan& plan = p_.plan;
  const int64_t rows = p_.B * p_.Hq * p_.Lq, element = case_.dtype == attn::Dtype::kFloat64 ? 8 : 4;
  std::vector<Scratch> workspace;
  const auto take = [&](int64_t bytes) {
    workspace.emplace_back(bytes);
    workspace.back().fill(zeroed);
    return workspace.back().memory.get();
  };
  p_.row_lse = take(2 * rows * element);
  p_.row_delta = take(rows * element);
  p_.row_finite = static_cast<uint8_t*>(take(rows));
  p_.dq_partial = take(p_.B * p_.Hq * plan.dq_buffers * plan.dq_rows * plan.dq_width * element);
  if (p_.mask.table)
    p_.dq_touched =
        static_cast<uint8_t*>(take(p_.B * p_.Hq * plan.dq_buffers * p_.mask.table.query_tiles));
  p_.sink_partial = nullptr, p_.alibi_partial = nullptr;
  if (p_.dsinks) p_.sink_partial = static_cast<double*>(take(p_.B * p_.Hq * plan.row_blocks * 8));
  if (p_.dalibi_slopes)
    p_.alibi_partial = static_cast<double*>(take(p_.B * p_.Hq * plan.chunks * 8));
  if (p_.dbias) {
    const int64_t* size = p_.bias_size;
    p_.dbias_partial = take(plan.bias_slots * size[0] * size[1] * size[2] * size[3] * element);
    workspace.back().fill(true);
  }
  run_items(kernels.backward_rows, p_, reversed, zeroed);
  run_items(kernels.backward, p_, reversed, zeroed);
  run_items(kernels.backward_reduce, p_, reversed, zeroed);
}

inline void AttentionCall::check_guards() {
  for (GuardedArray* array : {&query, &key, &value, &bias, &sinks, &slopes, &grad_out, &grad_lse,
                              &out, &lse, &dq, &dk, &dv, &dbias, &dsinks, &dslopes})
    array->check_guards();
}

inline std::vector<std::vector<char>> AttentionCall::results() {
  std::vector<std::vector<char>> all;
  for (GuardedArray* array : {&out, &lse, &dq, &dk, &dv, &dbias, &dsinks, &dslopes})
    all.push_back(array->bytes());
  return all;
}

inline bool AttentionCall::allowed(int64_t b, int64_t h, int64_t i, int64_t j) const {
  const AttentionCase& c = case_;
  const int64_t distance = j - (i + (c.offsets.empty() ? 0 : c.offsets[b]));
  if (distance < c.lower || distance > c.upper) return false;
  if (attn::modulo(distance - c.phase, c.dilation) != 0) return false;
  if (c.blocks >= 0 && !block_allowed(b, h, i, j)) return false;
  if (!c.lengths.empty() && j >= c.lengths[b]) return false;
  if (c.bias && bias.at(b, h, i, j) == -INFINITY) return false;
  if (c.bits < 0) return true;
  const attn::Mask& mask = p_.mask;
  const int64_t row = b * mask.bits_stride_b + h * mask.bits_stride_h + i * mask.bits_stride_q;
  return words_[static_cast<size_t>(row + j / 64)] >> (j % 64) & 1;
}

inline double AttentionCall::kept(int64_t b, int64_t h, int64_t i, int64_t j) const {
  if (!p_.dropout.active()) return 1;
  return p_.dropout.keep4(b, h, i, j / 4) >> (j % 4) & 1 ? p_.dropout.keep_scale : 0;
}
