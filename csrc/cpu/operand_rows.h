// Rows of a tensor made ready for products, where they can't be read as they lie. Included by
// kernels.inl.

template <class E>
struct Rows {
  const Scalar<E>* data = nullptr;
  int64_t ld = 0;
};

// Rows that micro-kernels can read where they lie, pair by pair.
template <class E>
bool has_natural_rows(const View& view, int64_t columns) {
  return view.dtype == Operand<E>::kStorage && view.stride[3] == 1 && columns % kPair<E> == 0;
}

// Rows much farther apart than they are long, like those of a (B, L, H, D) tensor seen by head,
// fall into few sets of the cache: where they are read more than once a copy pays.
inline bool has_close_rows(const View& view, int64_t columns) {
  return view.stride[2] <= 2 * columns;
}

// Rows to be read again and again where they lie.
template <class E>
bool has_reusable_rows(const View& view, int64_t columns) {
  return has_natural_rows<E>(view, columns) && has_close_rows(view, columns);
}

// Hardware prefetches along rows, not from one to the next that lies far off.
inline void prefetch_rows(const View& view, int64_t b, int64_t h, Range rows, int64_t columns) {
  if (has_close_rows(view, columns)) return;
  for (int64_t i = rows.begin; i < rows.end; ++i)
    prefetch_bytes(view.at(b, h, i), columns * size_of(view.dtype));
}

// 16-bit words 0 .. count-1 at p, p + stride, ... (stride in words); the others are 0.
ATTN_INLINE HalfVec load_halves(const char* p, int64_t stride, int64_t count) {
  constexpr int kWords = sizeof(HalfVec) / 2;
  HalfVec x;
  if (stride == 1 && count >= kWords) {
    memcpy(&x, p, sizeof(x));
    return x;
  }
  uint16_t word[kWords] = {};
  for (int64_t i = 0; i < kWords && i < count; ++i) memcpy(word + i, p + 2 * i * stride, 2);
  memcpy(&x, word, sizeof(x));
  return x;
}

// dst[i][c] = row i, column c, for n rows `row_bytes` apart; the last pair of a row is filled up
// with 0.
template <class E>
void copy_operands(const char* rows, int64_t row_bytes, const View& view, int n, int64_t columns,
                   Scalar<E>* dst, int64_t ld) {
  if constexpr (kPair<E> == 1) {
    copy_rows<E>(rows, row_bytes, view.dtype, view.stride[3], n, static_cast<int>(columns), dst,
                 static_cast<int>(ld));
  } else {
    constexpr int64_t kWords = sizeof(HalfVec) / 2;
    for (int i = 0; i < n; ++i, rows += row_bytes, dst += ld)
      for (int64_t c = 0; c < ld; c += kWords) {
        const HalfVec x = load_halves(rows + 2 * c * view.stride[3], view.stride[3], columns - c);
        memcpy(dst + c, &x, static_cast<size_t>(2 * min64(kWords, ld - c)));
      }
  }
}

// dst[k][lane] = operand k of row[lane], with its sign changed or not: rows become lanes. dst has
// ld lanes a step, a multiple of the vector.
template <class E>
void pack_operands(const char* const* rows, int lanes, const View& view, int columns, bool negate,
                   Lane<E>* dst, int ld) {
  const int64_t stride = view.stride[3];
  if constexpr (kPair<E> == 1) {
    pack_lanes<E>(rows, lanes, view.dtype, stride, columns, negate ? E(-1) : E(1), dst, ld);
  } else {
    constexpr int W = kLanes<float>;
    const int depth = static_cast<int>(steps<E>(columns));
    const IntVec<float> signs = set1_int<float>(negate ? 0x80008000u : 0u);
    for (int lane = 0; lane < lanes; lane += W)
      for (int k = 0; k < depth; k += W) {
        Vec<float> x[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i)
          x[i] = reinterpret_cast<Vec<float>>(
              load_halves(rows[lane + i] + 4 * k * stride, stride, columns - 2 * k));
        transpose<float>(x);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
          const IntVec<float> pairs = reinterpret_cast<IntVec<float>>(x[i]) ^ signs;
          if (k + i < depth) memcpy(dst + (k + i) * ld + lane, &pairs, sizeof(pairs));
        }
      }
  }
}

template <size_t... L>
ATTN_INLINE HalfVec zip_halves(HalfVec a, HalfVec b, int part, std::index_sequence<L...>) {
  constexpr size_t kWords = sizeof...(L);
  return part ? __builtin_shufflevector(a, b, (kWords / 2 + L / 2 + L % 2 * kWords)...)
              : __builtin_shufflevector(a, b, (L / 2 + L % 2 * kWords)...);
}

// Products along the rows take them in pairs: dst[i / 2][c] holds column c of rows i and i + 1. A
// row or column that isn't there counts as 0.
inline void interleave_rows(const char* rows, int64_t row_bytes, int64_t stride, int n,
                            int64_t columns, uint16_t* dst, int64_t ld) {
  constexpr int64_t kWords = sizeof(HalfVec) / 2;
  constexpr auto index = std::make_index_sequence<kWords>{};
  for (int i = 0; i < n; i += 2, rows += 2 * row_bytes, dst += 2 * ld)
    for (int64_t c = 0; c < ld; c += kWords) {
      const char* at = rows + 2 * c * stride;
      const HalfVec a = load_halves(at, stride, columns - c);
      const HalfVec b = load_halves(at + row_bytes, stride, i + 1 < n ? columns - c : 0);
      const HalfVec x[2] = {zip_halves(a, b, 0, index), zip_halves(a, b, 1, index)};
      memcpy(dst + 2 * c, x, static_cast<size_t>(4 * min64(kWords, ld - c)));
    }
}

template <class E>
bool operands_finite(const Scalar<E>* rows, int64_t ld, int n, int64_t columns) {
  if constexpr (kPair<E> == 1) {
    return rows_finite(rows, ld, n, static_cast<int>(columns));
  } else {
    constexpr uint16_t kExponent = 0x7f80;
    HalfVec largest{};
    for (int i = 0; i < n; ++i, rows += ld)
      for (int64_t c = 0; c < columns; c += sizeof(HalfVec) / 2) {
        const char* at = reinterpret_cast<const char*>(rows + c);
        const HalfVec exponent = load_halves(at, 1, columns - c) & kExponent;
        largest = largest > exponent ? largest : exponent;
      }
    uint16_t top = 0;
    for (size_t l = 0; l < sizeof(HalfVec) / 2; ++l) top = top > largest[l] ? top : largest[l];
    return top != kExponent;
  }
}
