// The gradient of the bias, as one work item of the backward pass adds it up: dbias = ds, summed
// over what the bias is broadcast over. Items that share elements have a slot each, or are merged
// into one; see GradPlan. Included by kernels.inl.

template <class A>
class BiasSums {
 public:
  static constexpr int W = kLanes<A>;

  explicit BiasSums(const AttentionGradParams& p)
      : p_(p),
        far_(p.bias && p.bias.stride[2] != 0 && p.bias.stride[3] != 0),
        per_pair_(p.bias_size[2] > 1 && p.bias_size[3] > 1) {}

  // Before the pairs of head h and these keys. Sums of pairs start undefined: the first to come
  // writes all of them, or zeros where it doesn't see all.
  void begin(int64_t b, int64_t h, int64_t chunk, Range keys) {
    b_ = b, h_ = h, keys_ = keys;
    if (!p_.dbias) return;
    const int64_t* size = p_.bias_size;
    const GradPlan& plan = p_.plan;
    int64_t slot = 0;
    if (size[0] == 1 && !plan.merge_batch) slot = b;
    if (size[1] == 1 && !plan.merge_heads) slot = slot * p_.Hkv + h / p_.group();
    if (size[3] == 1) slot = slot * plan.chunks + chunk;
    const int64_t bi = size[0] == 1 ? 0 : b, hi = size[1] == 1 ? 0 : h;
    data_ = static_cast<A*>(p_.dbias_partial) +
            ((slot * size[0] + bi) * size[1] + hi) * size[2] * size[3];
    const bool first_batch = size[0] > 1 || !plan.merge_batch || b == 0;
    const bool first_head = size[1] > 1 || h % (plan.merge_heads ? p_.Hq : p_.group()) == 0;
    write_ = per_pair_ && first_batch && first_head;
    if (write_ && !p_.mask.covers(b, {h, h + 1}, {0, p_.Lq}, keys)) {
      for (int64_t i = 0; i < p_.Lq; ++i)
        memset(row(i) + keys.begin, 0, sizeof(A) * (keys.end - keys.begin));
      write_ = false;
    }
  }

  A* row(int64_t i) const { return data_ + (p_.bias_size[2] == 1 ? 0 : i * p_.bias_size[3]); }

  // ds of W keys from j on
  ATTN_INLINE void add(A* row, int64_t j, Vec<A> ds) const {
    const int64_t count = min64(W, keys_.end - j);
    if (p_.bias_size[3] == 1)
      *row += sum_lanes<A>(ds);
    else if (count == W)
      store(row + j, write_ ? ds : load(row + j) + ds);
    else
      for (int64_t l = 0; l < count; ++l) row[j + l] = write_ ? ds[l] : row[j + l] + ds[l];
  }

  // Bias and sums of neighbouring rows lie far apart, where the hardware doesn't look ahead.
  ATTN_INLINE void prefetch(Range rows, int64_t j, int count) const {
    if (!far_) return;
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      prefetch_bytes(p_.bias.at(b_, h_, i, j), count * size_of(p_.bias.dtype));
      if (p_.dbias && per_pair_)
        prefetch_bytes(reinterpret_cast<const char*>(row(i) + j), count * int64_t{sizeof(A)});
    }
  }

 private:
  const AttentionGradParams& p_;
  const bool far_, per_pair_;
  bool write_ = false;
  int64_t b_ = 0, h_ = 0;
  Range keys_{0, 0};
  A* data_ = nullptr;
};
