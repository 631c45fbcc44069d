// The states of linear attention (forward) and their gradients R (backward). A block owns edge x
// edge elements of one state and walks the chunks of a part of a sequence; the states at the
// borders of parts come from a first walk and a scan.
#pragma once

#include "cuda/linear_decay.cuh"

namespace attn::cuda {

struct LinearStatesCall : LinearCall {
  bool totals = false;  // the first walk: only what a part makes of 0
};

template <class Arithmetic, bool kChannel>
struct StatesMemory {
  using Tile = ChunkTile<Arithmetic>;
  static constexpr size_t kLeft = 0, kRight = Tile::bytes(), kDecays = 2 * Tile::bytes();
  static constexpr size_t kRows = kDecays + sizeof(Decays<Arithmetic, kChannel>);
  static constexpr size_t kBytes = kRows + 2 * Arithmetic::kEdge * sizeof(typename Arithmetic::Sum);
};

template <class Arithmetic, bool kChannel>
class StatesBlock {
 protected:
  using T = typename Arithmetic::Sum;
  using Memory = StatesMemory<Arithmetic, kChannel>;
  static constexpr int kEdge = Arithmetic::kEdge;

  const LinearStatesCall& p_;
  ChunkTile<Arithmetic> left_, right_;
  Decays<Arithmetic, kChannel>& decays_;
  T* rows_;  // [2][kEdge]
  int64_t sequence_, b_, hs_, part_, d0_, c0_;
  ChunkSum<Arithmetic> state_, product_;
  T z_ = 0, faded_ = 1;  // of channel d0 + threadIdx.x, for the first block of columns

  ATTN_DEVICE StatesBlock(const LinearStatesCall& p, unsigned char* shared)
      : p_(p),
        left_(shared + Memory::kLeft),
        right_(shared + Memory::kRight),
        decays_(*reinterpret_cast<Decays<Arithmetic, kChannel>*>(shared + Memory::kDecays)),
        rows_(reinterpret_cast<T*>(shared + Memory::kRows)) {
    int64_t item = blockIdx.x;
    const int64_t column_blocks = max64(p.blocks_of(p.Dv), 1), row_blocks = p.blocks_of(p.D);
    c0_ = item % column_blocks * kEdge, item /= column_blocks;
    d0_ = item % row_blocks * kEdge, item /= row_blocks;
    part_ = item % p.parts, item /= p.parts;
    hs_ = item % p.Hs, sequence_ = item / p.Hs;
    b_ = p.batch_row(sequence_);
    state_.clear();
  }

  // Threads of which each has one channel of z, or one token.
  ATTN_DEVICE int own() const { return static_cast<int>(threadIdx.x); }
  ATTN_DEVICE bool owns_z() const {
    return p_.normalize && c0_ == 0 && own() < kEdge && d0_ + own() < p_.D;
  }

  // Of `live` tokens those of the part.
  ATTN_DEVICE Range part_of(Range live) const {
    return {min64(live.begin + part_ * p_.part_tokens, live.end),
            min64(live.begin + (part_ + 1) * p_.part_tokens, live.end)};
  }
  ATTN_DEVICE LinearChunk chunk_from(int64_t i, Range part, int64_t first, int64_t L) const {
    const int64_t slot = first_slot(p_, sequence_, L) + (i - first) / kEdge;
    const int64_t end = min64(i + kEdge, part.end);
    return {sequence_, b_, slot, i, end, end};
  }

  template <class F>
  ATTN_DEVICE void for_each_element(F f) {
    state_.for_each([&](int r, int c, T& x) {
      if (d0_ + r < p_.D && c0_ + c < p_.Dv) f(d0_ + r, c0_ + c, x);
    });
  }
  ATTN_DEVICE void read(const View& s, const View& z) {
    if (s)
      for_each_element([&](int64_t d, int64_t c, T& x) {
        x = load_element<T>(s.at(sequence_, hs_, d, c), s.dtype);
      });
    if (z && owns_z()) z_ = load_element<T>(z.at(sequence_, hs_, 0, d0_ + own()), z.dtype);
  }
  ATTN_DEVICE void write(const View& s, const View& z) {
    if (s)
      for_each_element([&](int64_t d, int64_t c, T& x) {
        store_element(s.at(sequence_, hs_, d, c), s.dtype, x);
      });
    if (z && owns_z()) store_element(z.at(sequence_, hs_, 0, d0_ + own()), z.dtype, z_);
  }
  ATTN_DEVICE void read(StateMemory<T> from) {
    for_each_element([&](int64_t d, int64_t c, T& x) { x = *from.block(d, c); });
    if (owns_z()) z_ = from.z()[d0_ + own()];
  }
  ATTN_DEVICE void write(StateMemory<T> to) {
    for_each_element([&](int64_t d, int64_t c, T& x) { *to.block(d, c) = x; });
    if (owns_z()) to.z()[d0_ + own()] = z_;
  }
  ATTN_DEVICE void write_part(void* states) {
    const StateMemory<T> to = part_state<T>(p_, states, sequence_, hs_, part_);
    write(to);
    if (c0_ == 0 && own() < kEdge && d0_ + own() < p_.D) to.decay()[d0_ + own()] = faded_;
  }

  ATTN_DEVICE void fade() {
    if (!p_.decay) return;
    state_.for_each([&](int r, int, T& x) { x *= decays_.total(r); });
    if (own() >= kEdge) return;
    z_ *= decays_.total(own());
    faded_ *= decays_.total(own());
  }
};

// S: S <- decay S + (faded keys)^T values
template <class Arithmetic, bool kChannel>
class KeyStates : StatesBlock<Arithmetic, kChannel> {
  using Base = StatesBlock<Arithmetic, kChannel>;
  using Base::kEdge;
  using typename Base::T;

 public:
  ATTN_DEVICE KeyStates(const LinearStatesCall& p, unsigned char* shared) : Base(p, shared) {}

  ATTN_DEVICE void run() {
    const LinearStatesCall& p = this->p_;
    const Range live = live_keys(p, this->sequence_), part = this->part_of(live);
    if (!p.totals && p.parts > 1)
      this->read(part_state<T>(p, p.part_states, this->sequence_, this->hs_, this->part_));
    else if (!p.totals)
      this->read(p.initial, p.initial_z);
    for (int64_t i = part.begin; i < part.end; i += kEdge) {
      const LinearChunk chunk = this->chunk_from(i, part, live.begin, p.Lk);
      if (!p.totals) this->write(chunk_state<T>(p, p.chunk_states, chunk, this->hs_));
      add_chunk(chunk);
    }
    if (p.totals)
      this->write_part(p.part_states);
    else if (this->part_ == p.parts - 1)
      this->write(p.state, p.state_z);
  }

 private:
  ATTN_DEVICE void add_chunk(const LinearChunk& chunk) {
    const LinearStatesCall& p = this->p_;
    auto keys = this->left_, values = this->right_;
    if (p.decay) this->decays_.load(p, chunk, this->hs_, this->d0_);
    keys.load(key_rows(p, chunk.b, this->hs_, chunk.live), chunk.begin, this->d0_);
    values.load(value_rows(p, chunk.b, this->hs_, chunk.live), chunk.begin, this->c0_);
    keys.wait();
    __syncthreads();
    if (p.decay) {
      this->decays_.fade_to_end(keys);
      __syncthreads();
    }
    this->fade();
    add_product<true, false>(this->state_, keys, values, {kEdge});
    if (this->owns_z())
      for (int t = 0; t < kEdge; ++t) this->z_ += keys.get(t, this->own());
    __syncthreads();
  }
};

// R: R <- decay R + (faded queries)^T (factor grad_out), from the end; z's with -factor delta.
template <class Arithmetic, bool kChannel>
class GradStates : StatesBlock<Arithmetic, kChannel> {
  using Base = StatesBlock<Arithmetic, kChannel>;
  using Base::kEdge;
  using typename Base::T;

 public:
  ATTN_DEVICE GradStates(const LinearStatesCall& p, unsigned char* shared) : Base(p, shared) {}

  ATTN_DEVICE void run() {
    const LinearStatesCall& p = this->p_;
    const Range live = live_queries(p, this->sequence_), part = this->part_of(live);
    if (!p.totals && p.parts > 1)
      this->read(part_state<T>(p, p.part_grads, this->sequence_, this->hs_, this->part_));
    else if (!p.totals)
      this->read(p.grad_state, p.grad_z);
    const int64_t chunks = tiles_over(max64(part.end - part.begin, 0), kEdge);
    for (int64_t n = chunks - 1; n >= 0; --n) {
      const LinearChunk chunk = this->chunk_from(part.begin + n * kEdge, part, live.begin, p.Lq);
      if (!p.totals) this->write(chunk_state<T>(p, p.chunk_grads, chunk, this->hs_));
      add_chunk(chunk);
      if (!p.totals && p.decay_dots) write_dots(chunk);
    }
    if (p.totals)
      this->write_part(p.part_grads);
    else if (this->part_ == 0)
      this->write(p.dinitial, p.dinitial_z);
  }

 private:
  ATTN_DEVICE void add_chunk(const LinearChunk& chunk) {
    const LinearStatesCall& p = this->p_;
    if (p.decay) this->decays_.load(p, chunk, this->hs_, this->d0_);
    this->fade();
    for (int64_t g = 0; g < p.group(); ++g) add_head(chunk, this->hs_ * p.group() + g);
  }
  ATTN_DEVICE void add_head(const LinearChunk& chunk, int64_t h) {
    const LinearStatesCall& p = this->p_;
    auto queries = this->left_, grads = this->right_;
    T *factor = this->rows_, *delta = this->rows_ + kEdge;
    queries.load(query_rows(p, chunk.b, h, chunk.live), chunk.begin, this->d0_);
    grads.load(rows_of(p.grad_out, chunk.b, h, chunk.live, p.Dv), chunk.begin, this->c0_);
    load_row_terms<Arithmetic>(p, chunk, h, factor, delta);
    queries.wait();
    grads.wait();
    __syncthreads();
    const T largest = largest_factor<Arithmetic>(factor);
    grads.transform([&](int t, int, T x) { return x * (factor[t] / largest); });
    if (p.decay) this->decays_.fade_from_start(queries);
    __syncthreads();
    this->product_.clear();
    add_product<true, false>(this->product_, queries, grads, {kEdge});
    this->state_.add(this->product_, largest);
    if (this->owns_z())
      for (int t = 0; t < kEdge; ++t)
        this->z_ -= queries.get(t, this->own()) * (factor[t] * delta[t]);
    __syncthreads();
  }
  // <S, R> before the chunk, of each channel.
  ATTN_DEVICE void write_dots(const LinearChunk& chunk) {
    const LinearStatesCall& p = this->p_;
    const StateMemory<T> s = chunk_state<T>(p, p.chunk_states, chunk, this->hs_);
    T* z_dots = this->rows_;
    if (this->own() < kEdge)
      z_dots[this->own()] = this->owns_z() ? s.z()[this->d0_ + this->own()] * this->z_ : T(0);
    this->product_ = this->state_;
    this->product_.for_each([&](int r, int c, T& x) {
      const bool inside = this->d0_ + r < p.D && this->c0_ + c < p.Dv;
      x = inside ? x * *s.block(this->d0_ + r, this->c0_ + c) : T(0);
    });
    __syncthreads();
    const int64_t column_blocks = max64(p.blocks_of(p.Dv), 1);
    T* dots = static_cast<T*>(p.decay_dots) +
              ((chunk.slot * p.Hs + this->hs_) * column_blocks + this->c0_ / kEdge) * p.D;
    this->product_.for_each_row_sum([&](int r, T sum) {
      if (this->d0_ + r < p.D) dots[this->d0_ + r] = sum + z_dots[r];
    });
    __syncthreads();
  }
};

template <class Block, class Arithmetic>
ATTN_DEVICE void run_states(const LinearStatesCall& p) {
  ATTN_SHARED(shared);
  if constexpr (!Arithmetic::kTensor || kTensorCores) Block(p, shared).run();
}
template <class Arithmetic, bool kChannel>
__global__ void __launch_bounds__(Arithmetic::kThreads)
    key_states_kernel(const __grid_constant__ LinearStatesCall p) {
  run_states<KeyStates<Arithmetic, kChannel>, Arithmetic>(p);
}
template <class Arithmetic, bool kChannel>
__global__ void __launch_bounds__(Arithmetic::kThreads)
    grad_states_kernel(const __grid_constant__ LinearStatesCall p) {
  run_states<GradStates<Arithmetic, kChannel>, Arithmetic>(p);
}

// From what parts make of 0 to the states at their beginnings (of gradients: at their ends), or,
// where not causal, over all parts.
struct LinearScanCall : LinearCall {
  bool grads = false;
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    linear_scan_kernel(const __grid_constant__ LinearScanCall p) {
  const int64_t size = p.chunk_state_size(), blocks = tiles_over(size, kThreads);
  const int64_t e = blockIdx.x % blocks * kThreads + threadIdx.x, head = blockIdx.x / blocks;
  const int64_t hs = head % p.Hs, sequence = head / p.Hs;
  const bool is_z = e >= p.D * p.Dv;
  if (e >= size || (is_z && !p.normalize)) return;
  const int64_t d = is_z ? e - p.D * p.Dv : e / p.Dv, c = is_z ? 0 : e % p.Dv;
  const View& initial = p.grads ? (is_z ? p.grad_z : p.grad_state) : is_z ? p.initial_z : p.initial;
  const View& last = p.grads ? (is_z ? p.dinitial_z : p.dinitial) : is_z ? p.state_z : p.state;
  const auto at = [&](const View& view) {
    return is_z ? view.at(sequence, hs, 0, d) : view.at(sequence, hs, d, c);
  };
  T running = initial ? load_element<T>(at(initial), initial.dtype) : T(0);
  for (int64_t n = 0; n < p.parts; ++n) {
    const int64_t part = p.grads ? p.parts - 1 - n : n;
    const StateMemory<T> state =
        part_state<T>(p, p.grads ? p.part_grads : p.part_states, sequence, hs, part);
    const T own = state.s[e];
    state.s[e] = running;
    running = own + (p.causal ? state.decay()[d] * running : running);
  }
  if (p.causal) return;
  chunk_state<T>(p, p.grads ? p.chunk_grads : p.chunk_states, sequence, hs).s[e] = running;
  if (last) store_element(at(last), last.dtype, running);
}

// The states before all chunks, and the last one; or R behind them, and before the first.
template <class Arithmetic, bool kGrads>
void launch_states(const LinearCall& call, Stream stream) {
  using T = typename Arithmetic::Sum;
  const auto walk = [&](bool totals) {
    LinearStatesCall p{call};
    p.totals = totals;
    const int64_t blocks =
        p.sequences * p.Hs * p.parts * p.blocks_of(p.D) * max64(p.blocks_of(p.Dv), 1);
    if (p.channel_decay())
      launch(kGrads ? grad_states_kernel<Arithmetic, true> : key_states_kernel<Arithmetic, true>,
             blocks, Arithmetic::kThreads, StatesMemory<Arithmetic, true>::kBytes, stream, p);
    else
      launch(kGrads ? grad_states_kernel<Arithmetic, false> : key_states_kernel<Arithmetic, false>,
             blocks, Arithmetic::kThreads, StatesMemory<Arithmetic, false>::kBytes, stream, p);
  };
  if (call.needs_scan()) {
    walk(true);
    LinearScanCall scan{call};
    scan.grads = kGrads;
    launch(linear_scan_kernel<T>,
           call.sequences * call.Hs * tiles_over(call.chunk_state_size(), kThreads), kThreads, 0,
           stream, scan);
  }
  if (call.causal) walk(false);
}

}  // namespace attn::cuda
