// What a kernel is told about one call: plain data, no tensors.
#pragma once

#include <cstdint>

#include "core/mask.h"
#include "core/philox.h"
#include "core/scalar.h"
#include "core/score.h"

namespace attn {

// A strided 4-D array (B, H, L, D); strides in elements, 0 where broadcast. Null means absent.
struct View {
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int64_t stride[4] = {0, 0, 0, 0};

  ATTN_HD explicit operator bool() const { return data != nullptr; }
  ATTN_HD char* at(int64_t b, int64_t h, int64_t l, int64_t d = 0) const {
    return static_cast<char*>(data) +
           (b * stride[0] + h * stride[1] + l * stride[2] + d * stride[3]) * size_of(dtype);
  }
};

struct AttentionParams {
  int64_t B = 0, Hq = 0, Hkv = 0, Lq = 0, Lk = 0, D = 0, Dv = 0;
  View query, key, value;  // (B, Hq, Lq, D), (B, Hkv, Lk, D), (B, Hkv, Lk, Dv)
  View out;                // (B, Hq, Lq, Dv)
  View lse;                // (B, Hq, Lq, 1), float or double
  View bias;               // (B, Hq, Lq, Lk), broadcast by strides
  View sinks;              // (1, Hq, 1, 1)
  View alibi_slopes;       // (B, Hq, 1, 1)
  Mask mask;
  ScoreTerms score;
  Dropout dropout;

  ATTN_HD int64_t group() const { return Hq / Hkv; }
};

// How the backward pass is cut into tasks: a function of shapes and mask alone, never of the thread
// count, so that neither are the results. A task is one chunk of key blocks of one (b, key head).
struct GradPlan {
  int64_t chunks = 1;
  bool contiguous = false;  // chunk c holds neighbouring key blocks, else blocks c, c + chunks, ...
  int64_t reach_rows = 0;   // queries that the keys of one chunk may be seen by, at most
  // A bias gradient too large to keep once per task is shared by tasks merged into one, which runs
  // through the batch rows or key heads the bias is broadcast over; otherwise each such task adds
  // into a slot of its own.
  bool merge_batch = false, merge_heads = false;
  int64_t bias_slots = 1;
  // dq of a chunk: rows it may reach and their padded width. Chunk 0 adds straight into dq where
  // `dq_direct`.
  bool dq_direct = false;
  int64_t dq_rows = 0, dq_width = 0, dq_buffers = 0;  // buffers per (b, key head)
  int64_t row_blocks = 0;                             // of the row statistics, per (b, h)
};

struct AttentionGradParams : AttentionParams {
  View grad_out;               // (B, Hq, Lq, Dv)
  View grad_lse;               // (B, Hq, Lq, 1), absent = 0
  View dq, dk, dv;             // like query, key, value; absent = not asked for
  View dbias;                  // like bias, contiguous; absent = not asked for
  View dsinks, dalibi_slopes;  // (1, Hq, 1, 1), (1 or B, Hq, 1, 1)
  bool alibi_per_batch = false;
  int64_t bias_size[4] = {1, 1, 1, 1};

  GradPlan plan;
  // Workspace in the compute type (float or double) unless said.
  void* row_lse = nullptr;  // [2, B, Hq, Lq], two parts to subtract in turn; +inf for an empty row
  void* row_delta = nullptr;      // [B, Hq, Lq], sum_d grad_out * out - grad_lse
  uint8_t* row_finite = nullptr;  // [B, Hq, Lq], of query and grad_out
  void* dq_partial = nullptr;     // [B, Hkv, dq_buffers, group, dq_rows, dq_width]
  // [B, Hkv, dq_buffers, group, query tiles]: whether a chunk added into some row of the tile; only
  // those rows of its buffer are written and read. Null without a block table: all of them.
  uint8_t* dq_touched = nullptr;
  void* dbias_partial = nullptr;    // [bias_slots, bias], zeroed unless it has both lengths
  double* sink_partial = nullptr;   // [B, Hq, row_blocks]
  double* alibi_partial = nullptr;  // [B, Hq, chunks]
};

// A query row whose weights are asked for, and where they go.
struct MapRow {
  int64_t row, place;
};

// Positions 0 .. length-1 in bins of nearly the same size.
struct Bins {
  int64_t length, count;
  ATTN_HD int64_t begin(int64_t bin) const { return bin * length / count; }
  ATTN_HD int64_t of(int64_t position) const { return ((position + 1) * count - 1) / length; }
};

// Attention maps: what is made of the weights p = exp(s - lse) of the forward pass.
struct AttentionMapParams : AttentionParams {
  const MapRow* rows = nullptr;  // in ascending order
  int64_t row_count = 0;
  int64_t query_bins = 0, key_bins = 0;
  View weights;      // (B, Hq, row_count, Lk), zeroed
  View binned;       // (B, Hq, query_bins, key_bins)
  View column_sums;  // (B, Hq, Lk, 1)
  View entropy;      // (B, Hq, Lq, 1)

  // A task is one of `chunks` runs of key blocks of one (b, key head): a function of the shapes.
  int64_t chunks = 1;
  void* row_lse = nullptr;            // [2, B, Hq, Lq] in the compute type, as of the backward pass
  double* entropy_partial = nullptr;  // [B, Hq, chunks, Lq]
  double* bin_partial =
      nullptr;  // [B, Hq, key_bins + chunks - 1, query_bins]: chunk c, bin k at k + c
};

}  // namespace attn
