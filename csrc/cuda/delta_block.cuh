// What a block of the delta rule's kernels reads: tokens of a chunk, their decays, and what lies in
// the workspace. Matrices are [token][column], and 0 behind the chunk's last live token.
#pragma once

#include "cuda/delta_call.cuh"
#include "cuda/delta_products.cuh"

namespace attn::cuda {

ATTN_DEVICE float exp2_of(double x, float) { return exp2f(static_cast<float>(x)); }
ATTN_DEVICE double exp2_of(double x, double) { return exp2(x); }

// A contiguous matrix of the workspace; all other elements read as 0.
template <class T>
struct DeltaMatrix {
  T* data;
  int64_t rows, columns;

  ATTN_DEVICE bool has(int64_t row, int64_t column) const { return row < rows && column < columns; }
  ATTN_DEVICE T& at(int64_t row, int64_t column) const { return data[row * columns + column]; }
  ATTN_DEVICE T operator()(int64_t row, int64_t column) const {
    return has(row, column) ? at(row, column) : T(0);
  }
};

// Shared memory of a block beside its products.
template <class T, int kEdge>
struct DeltaMemory {
  static constexpr int kPitch = kEdge + 1;
  double log_decays[kEdge];  // of tokens, from the chunk's beginning
  T heads[kEdge], tails[kEdge], betas[kEdge];
  T diagonal[kEdge];
  T weights[kEdge * kPitch];
};

template <class Kind>
class DeltaBlock {
 public:
  using Arithmetic = typename Kind::Arithmetic;
  using T = typename Arithmetic::Sum;
  using Products = DeltaProducts<Kind>;
  using Sum = typename Products::Sum;
  using Matrix = DeltaMatrix<T>;
  using Memory = DeltaMemory<T, Arithmetic::kEdge>;
  static constexpr int kEdge = Arithmetic::kEdge, kThreads = Arithmetic::kThreads;
  static constexpr size_t kBytes = Products::kBytes + sizeof(Memory);

  const DeltaCall& p;
  const int64_t state_head;
  const Products products;
  Memory& memory;
  DeltaChunk chunk;

  ATTN_DEVICE DeltaBlock(const DeltaCall& call, int64_t head, unsigned char* shared)
      : p(call),
        state_head(head),
        products(shared),
        memory(*reinterpret_cast<Memory*>(shared + Products::kBytes)) {}

  // Ends with a barrier.
  ATTN_DEVICE void enter(const DeltaChunk& next) {
    chunk = next;
    key_ = input(p.key, state_head / (p.Hs / p.Hk), p.D);
    value_ = input(p.value, state_head / (p.Hs / p.Hv), p.Dv);
    const auto t = static_cast<int>(threadIdx.x);
    if (t < kEdge) {
      const bool live = t < chunk.live;
      memory.betas[t] =
          live ? load_element<T>(p.beta.at(chunk.b, state_head, chunk.first + t), p.beta.dtype)
               : T(0);
      if (p.decay_kind == DecayKind::kToken) {
        const double* sums = log_decays();
        memory.log_decays[t] = live ? sums[t] : 0;
        memory.heads[t] = live ? exp2_of(sums[t], T()) : T(0);
        memory.tails[t] = live ? exp2_of(sums[chunk.live - 1] - sums[t], T()) : T(0);
      }
    }
    __syncthreads();
  }

  ATTN_DEVICE T key(int64_t t, int64_t d) const { return load(key_, t, d); }
  ATTN_DEVICE T value(int64_t t, int64_t c) const { return load(value_, t, c); }
  ATTN_DEVICE int64_t query_head(int64_t h) const { return h / (p.H / p.Hq); }
  ATTN_DEVICE int64_t out_head(int64_t g) const { return state_head * p.group() + g; }
  // A head of an input, for load().
  ATTN_DEVICE Rows input(const View& view, int64_t h, int64_t columns) const {
    Rows rows = rows_of(view, chunk.b, h, chunk.first + chunk.live, columns);
    rows.dtype = Kind::dtype(rows.dtype);
    return rows;
  }
  ATTN_DEVICE T load(const Rows& rows, int64_t t, int64_t column) const {
    return rows.load<T>(chunk.first + t, column);
  }

  // Of what the chunk's tokens have in the workspace, [B, Hs, Lk, columns].
  ATTN_DEVICE Matrix tokens(void* data, int64_t columns) const {
    const int64_t first = (chunk.b * p.Hs + state_head) * p.Lk + chunk.first;
    return {static_cast<T*>(data) + first * columns, chunk.live, columns};
  }
  ATTN_DEVICE Matrix errors() const { return tokens(p.errors, p.Dv); }
  // [Hs, slots, rows, columns]
  ATTN_DEVICE Matrix at_slot(void* data, int64_t slot, int64_t rows, int64_t columns) const {
    return {static_cast<T*>(data) + (state_head * p.slots + slot) * rows * columns, rows, columns};
  }
  ATTN_DEVICE Matrix state(void* data, int64_t slot) const {
    return at_slot(data, slot, p.D, p.Dv);
  }
  ATTN_DEVICE Matrix pairs(void* data) const {
    Matrix all = at_slot(data, chunk.slot, kEdge, kEdge);
    all.rows = chunk.live;
    return all;
  }

  // What fades column d of a state from the chunk's beginning to right after token t, ...
  ATTN_DEVICE T head(int64_t t, int64_t d) const {
    if (p.decay_kind == DecayKind::kNone || t >= chunk.live) return 1;
    return p.channel_decay() ? faded(channel_log(t, d)) : memory.heads[t];
  }
  // ... from there to the chunk's end, ...
  ATTN_DEVICE T tail(int64_t t, int64_t d) const {
    if (p.decay_kind == DecayKind::kNone || t >= chunk.live) return 1;
    if (!p.channel_decay()) return memory.tails[t];
    return faded(channel_log(chunk.live - 1, d) - channel_log(t, d));
  }
  ATTN_DEVICE T total(int64_t d) const { return head(chunk.live - 1, d); }
  // ... and from token s to a later one; of channels, that of column d.
  ATTN_DEVICE T between(int64_t t, int64_t s) const {
    return p.decay_kind == DecayKind::kToken ? faded(memory.log_decays[t] - memory.log_decays[s])
                                             : T(1);
  }
  ATTN_DEVICE T between(int64_t t, int64_t s, int64_t d) const {
    return d < p.D ? faded(channel_log(t, d) - channel_log(s, d)) : T(0);
  }

  // sum[t][s] = sum_d w_ts[d] left(t, d) key(s, d) for live s <= t, or s < t; 0 elsewhere.
  template <class Left>
  ATTN_DEVICE void weigh_keys(Sum& sum, Left left, bool with_own) const {
    const auto seen = [&](int t, int s) {
      return t < chunk.live && (s < t || (with_own && s == t));
    };
    sum.clear();
    if (p.channel_decay()) {
      products.transform(sum, [&](int t, int s, T x) {
        for (int64_t d = 0; seen(t, s) && d < p.D; ++d)
          x += left(t, d) * key(s, d) * between(t, s, d);
        return x;
      });
      return;
    }
    products.template add<false, true>(sum, p.D, left,
                                       [&](int64_t s, int64_t d) { return key(s, d); });
    sum.for_each([&](int t, int s, T& x) { x = seen(t, s) ? x * between(t, s) : T(0); });
  }

  ATTN_DEVICE T& weight(int64_t row, int64_t column) const {
    return memory.weights[row * Memory::kPitch + column];
  }
  // Ends with a barrier.
  ATTN_DEVICE void store_weights(Sum& sum) const {
    sum.for_each([&](int row, int column, T x) { weight(row, column) = x; });
    __syncthreads();
  }

  // For columns first .. first + kEdge - 1 of n rows of the block's threads: f(row, column).
  template <class F>
  ATTN_DEVICE static void for_elements(int64_t n, int64_t first, F f) {
    for (int64_t e = threadIdx.x; e < n * kEdge; e += kThreads) f(e / kEdge, first + e % kEdge);
  }
  ATTN_DEVICE void clear_padding(const View& view, int64_t h, int64_t first,
                                 int64_t columns) const {
    for_elements(chunk.rows - chunk.live, first, [&](int64_t t, int64_t column) {
      if (column < columns)
        store_element(view.at(chunk.b, h, chunk.first + chunk.live + t, column), view.dtype, T(0));
    });
  }

 private:
  Rows key_, value_;

  ATTN_DEVICE static T faded(double log) { return exp2_of(log, T()); }
  ATTN_DEVICE const double* log_decays() const {
    const int64_t first = (chunk.b * p.Hs + state_head) * p.Lk + chunk.first;
    return p.log_decays + first * p.decay_columns();
  }
  ATTN_DEVICE double channel_log(int64_t t, int64_t d) const {
    return d < p.D ? log_decays()[t * p.D + d] : 0;
  }
};

}  // namespace attn::cuda
