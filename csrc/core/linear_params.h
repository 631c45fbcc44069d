// What the kernels of linear attention are told about one call: plain data, no tensors.
#pragma once

#include <cstdint>

#include "core/feature_map.h"
#include "core/mask.h"
#include "core/params.h"

namespace attn {

enum class DecayKind : int32_t { kNone, kHead, kToken, kChannel };

// H heads of out, of which Hq, Hk, Hv own heads and Hs = max(Hk, Hv) states are shared evenly. A
// sequence is a batch row, or one of the packed sequences of row 0.
struct LinearParams {
  int64_t B = 0, H = 0, Hq = 0, Hk = 0, Hv = 0, Hs = 0, Lq = 0, Lk = 0, D = 0, Dv = 0;
  View query, key, value;   // (B, Hq, Lq, D), (B, Hk, Lk, D), (B, Hv, Lk, Dv)
  View decay;               // (B, Hs, Lk, D), broadcast by strides
  View beta;                // (B, Hs, Lk, 1); present = the delta rule
  View out;                 // (B, H, Lq, Dv)
  View denominator;         // (B, H, Lq, 1) in the compute type; absent = not normalised
  View initial, initial_z;  // (sequences, Hs, D, Dv), (sequences, Hs, 1, D); absent = 0
  View state, state_z;      // the same, in the compute type; z only where normalised
  const int64_t* key_lengths = nullptr;  // (B,)
  const int64_t* cu_seqlens = nullptr;   // (sequences + 1,)
  int64_t sequences = 0;
  FeatureMap map = FeatureMap::kIdentity;
  DecayKind decay_kind = DecayKind::kNone;
  bool causal = false, normalize = false;
  double scale = 1, eps = 0;

  // A long sequence is cut into parts, a function of the shapes alone: the states at their borders
  // come from a first pass over all parts and a scan.
  int64_t parts = 1, part_tokens = 0;
  void* part_states = nullptr;  // [sequences, Hs, parts, state_size] in the compute type

  // The delta rule's columns of values may go in blocks, as many as there are threads for: a
  // column's result doesn't depend on the others.
  int64_t block_columns = 0;

  // One state: S [D][columns], z [width], the decay since the beginning of the part [width].
  int64_t columns = 0, width = 0;  // Dv and D, rounded up to whole vectors
  ATTN_HD int64_t state_size() const { return D * columns + 2 * width; }
  ATTN_HD bool needs_scan() const { return !causal || (parts > 1 && !beta); }
  ATTN_HD int64_t column_blocks() const {
    return columns > block_columns ? (columns + block_columns - 1) / block_columns : 1;
  }
  ATTN_HD int64_t group() const { return H / Hs; }
  ATTN_HD bool channel_decay() const { return decay_kind == DecayKind::kChannel; }

  ATTN_HD int64_t batch_row(int64_t sequence) const { return cu_seqlens ? 0 : sequence; }
  // Keys of part p of a sequence; those past its length, if `padded`.
  ATTN_HD Range keys(int64_t sequence, int64_t part, bool padded = false) const {
    const int64_t begin = cu_seqlens ? cu_seqlens[sequence] : 0;
    const int64_t end = cu_seqlens ? cu_seqlens[sequence + 1] : Lk;
    const int64_t live = key_lengths ? key_lengths[sequence] : end;
    const Range r{begin + part * part_tokens, min64(end, begin + (part + 1) * part_tokens)};
    return padded ? Range{max64(r.begin, live), r.end} : Range{r.begin, min64(r.end, live)};
  }
  ATTN_HD Range queries(int64_t sequence, int64_t part) const {
    if (causal) return keys(sequence, part);
    const int64_t begin = cu_seqlens ? cu_seqlens[sequence] : 0;
    const int64_t end = cu_seqlens ? cu_seqlens[sequence + 1] : Lq;
    return {begin + part * part_tokens, min64(end, begin + (part + 1) * part_tokens)};
  }
  ATTN_HD bool sees_nothing(int64_t sequence) const {
    if (initial) return false;
    if (cu_seqlens) return cu_seqlens[sequence] == cu_seqlens[sequence + 1];
    return Lk == 0 || (key_lengths && key_lengths[sequence] == 0);
  }
};

struct LinearGradParams : LinearParams {
  View grad_out;            // (B, H, Lq, Dv)
  View grad_state, grad_z;  // like state, state_z; absent = 0
  View dquery, dkey,
      dvalue;              // (B, H, Lq, D), (B, Hs, Lk, D), (B, Hs, Lk, Dv); absent = not asked for
  View ddecay;             // (B, Hs, Lk, D or 1); absent = not asked for
  View dbeta;              // like beta, for the delta rule
  void* errors = nullptr;  // v_t - S^T k_t of every token [B, Hs, Lk, columns], compute type
  View dinitial, dinitial_z;   // like initial, initial_z; absent = not asked for
  void* part_grads = nullptr;  // like part_states
  // Of ddecay and the delta rule, in the compute type: what each token adds to ddecay's sum [B, Hs,
  // Lk, width or 1], and the states every kCheckpoint tokens [B, Hs, checkpoints(), state_size].
  void* decay_terms = nullptr;
  void* checkpoint_states = nullptr;

  static constexpr int64_t kCheckpoint = 48;  // a multiple of every kernel's chunk
  ATTN_HD int64_t checkpoints() const {
    return Lk / kCheckpoint + (cu_seqlens ? sequences : 0) + 1;
  }
};

// One pass that adds neighbouring heads: to[b][h] = sum_g from[b][h * group + g], and over batch
// rows and tokens where `to` has none.
struct HeadSumParams {
  int64_t B = 0, heads = 0, group = 1, L = 0, D = 0;
  bool over_tokens = false;
  View from, to;
};

}  // namespace attn
