// A tile of rows of the forward pass, one per lane, and the biases of its scores. Included by
// kernels.inl.

template <class E>
struct RowTile {
  using A = Compute<E>;
  static constexpr int kTileLanes = kMaxVectors * kLanes<A>;
  int count;    // rows in use; the lanes behind repeat the last one
  int vectors;  // of lanes in use
  Range rows;   // of query positions
  Range keys;   // some row may see
  int64_t i[kTileLanes], h[kTileLanes];
  A m[kTileLanes], l[kTileLanes], slope[kTileLanes];  // running maximum and sum
  Lane<E>* q;                                         // [steps of D][lanes]
  A* o;                                               // [Dv][lanes]
};

// bias[key][row] of a tile and a block of keys
template <class E>
class RowBias {
 public:
  using A = Compute<E>;
  static constexpr int W = kLanes<A>, kTileLanes = RowTile<E>::kTileLanes;

  RowBias() = default;
  RowBias(const AttentionParams& p, Arena& arena)
      : bias_(p.bias),
        shared_(p.bias.stride[2] == 0 && (p.bias.stride[1] == 0 || p.group() == 1)),
        data_(p.bias ? arena.take<A>(kKeyBlock * kTileLanes) : nullptr) {}

  explicit operator bool() const { return data_ != nullptr; }

  // Biases of neighbouring rows lie far apart, where the hardware doesn't look ahead.
  void prefetch(int64_t b, const RowTile<E>& tile, Range keys, int lane, int end) const {
    if (shared_ || bias_.stride[3] == 0) return;
    const int64_t bytes = (keys.end - keys.begin) * size_of(bias_.dtype);
    for (; lane < min64(end, tile.count); ++lane)
      prefetch_bytes(bias_.at(b, tile.h[lane], tile.i[lane], keys.begin), bytes);
  }

  void read(int64_t b, const RowTile<E>& tile, Range keys, int lanes) {
    const int n = static_cast<int>(keys.end - keys.begin);
    const char* rows[kTileLanes];
    for (int lane = 0; lane < lanes; ++lane)
      rows[lane] = bias_.at(b, tile.h[lane], tile.i[lane], keys.begin);
    if (!shared_)
      return pack_lanes<A>(rows, lanes, bias_.dtype, bias_.stride[3], n, A(1), data_, kTileLanes);
    A row[kKeyBlock];
    copy_rows<A>(rows[0], 0, bias_.dtype, bias_.stride[3], 1, n, row, n);
    for (int j = 0; j < n; ++j)
      for (int lane = 0; lane < lanes; lane += W)
        store(data_ + j * kTileLanes + lane, set1(row[j]));
  }

  ATTN_INLINE Vec<A> at(int j, int v) const { return load(data_ + j * kTileLanes + v * W); }

 private:
  View bias_;
  bool shared_ = true;  // by all rows
  A* data_ = nullptr;
};
