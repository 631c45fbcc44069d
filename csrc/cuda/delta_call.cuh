// One call of the delta rule, as its kernels see it: the parameters, how tokens go in chunks, and
// the workspace.
#pragma once

#include "core/linear_params.h"
#include "cuda/tile.cuh"

namespace attn::cuda {

// Numbers of the workspace are in the compute type unless said.
struct DeltaCall : LinearGradParams {
  int chunk = 0;      // tokens of one chunk
  int64_t slots = 0;  // of a state head: the borders of all chunks of all sequences

  // [B, Hs, Lk, decay_columns()]: log2 of the decay from a chunk's beginning through the token.
  double* log_decays = nullptr;
  void* overlaps = nullptr;         // [Hs, slots, chunk, chunk]: w_ts (k_t . k_s), s < t
  void* inverses = nullptr;         // the same shape: of 1 + overlaps beta
  void* states = nullptr;           // [Hs, slots, D, Dv]: S at the border
  void* state_grads = nullptr;      // the same shape: R at the border
  void* corrected_grads = nullptr;  // [B, Hs, Lk, Dv]: the gradient of beta e
  void* value_grads = nullptr;      // the same shape: beta r, the gradient of v

  ATTN_HD int64_t decay_columns() const {
    return decay_kind == DecayKind::kNone ? 0 : channel_decay() ? D : 1;
  }
  // Slots of a sequence follow each other, one more than it has chunks.
  ATTN_HD int64_t first_slot(int64_t sequence) const {
    if (!cu_seqlens) return sequence * (tiles_over(Lk, chunk) + 1);
    return border(sequence) / chunk + 2 * sequence;
  }
  // The device's numbers are nobody's to trust.
  ATTN_HD int64_t border(int64_t sequence) const {
    return min64(max64(cu_seqlens[sequence], 0), Lk);
  }
  ATTN_HD int64_t column_tiles() const { return tiles_over(Dv, chunk); }
};

// One sequence of one state head.
struct DeltaSequence {
  int64_t b, begin, end, live;  // tokens from `live` on are padding
  int64_t first_slot, chunks;

  ATTN_DEVICE DeltaSequence(const DeltaCall& p, int64_t sequence) {
    b = p.batch_row(sequence);
    begin = p.cu_seqlens ? p.border(sequence) : 0;
    end = p.cu_seqlens ? max64(p.border(sequence + 1), begin) : p.Lk;
    live = p.key_lengths ? min64(max64(p.key_lengths[sequence], 0), end) : end;
    first_slot = p.first_slot(sequence);
    chunks = min64(tiles_over(live - begin, p.chunk), p.slots - 1 - first_slot);
  }
};

// Tokens first .. first + rows - 1 of row b, between the borders `slot` and slot + 1; those from
// `live` on are padding. None, where rows is 0.
struct DeltaChunk {
  int64_t b = 0, first = 0, slot = 0;
  int rows = 0, live = 0;

  DeltaChunk() = default;
  ATTN_DEVICE DeltaChunk(const DeltaCall& p, const DeltaSequence& sequence, int64_t chunk)
      : b(sequence.b),
        first(sequence.begin + chunk * p.chunk),
        slot(sequence.first_slot + chunk),
        rows(static_cast<int>(min64(max64(sequence.end - first, 0), p.chunk))),
        live(static_cast<int>(min64(max64(sequence.live - first, 0), rows))) {}

  // The one behind a slot.
  static ATTN_DEVICE DeltaChunk at(const DeltaCall& p, int64_t slot) {
    int64_t low = 0, high = p.sequences;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (p.first_slot(middle) <= slot ? low : high) = middle;
    }
    return {p, DeltaSequence(p, low), slot - p.first_slot(low)};
  }
};

// A kernel's block number in parts, the last one first.
struct DeltaItem {
  int64_t rest;
  ATTN_DEVICE int64_t take(int64_t n) {
    const int64_t part = rest % n;
    rest /= n;
    return part;
  }
};

}  // namespace attn::cuda
