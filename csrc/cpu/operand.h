// What the products multiply. E is the element type of a kernel: float and double multiply one
// number a lane; BFloat16 multiplies the pairs (x[2k], x[2k + 1]) that share a lane, two products
// an instruction, added up in float. Included by kernels.inl.

struct BFloat16;

template <class E>
struct Operand {
  using Compute = E;  // of sums, scores and states
  using Scalar = E;   // of rows in memory
  using Lane = E;     // of packed arrays
  using LaneVec = Vec<E>;
  static constexpr int kPair = 1;
  static constexpr Dtype kStorage = std::is_same_v<E, double> ? Dtype::kFloat64 : Dtype::kFloat32;
};
template <>
struct Operand<BFloat16> {
  using Compute = float;
  using Scalar = uint16_t;
  using Lane = uint32_t;
  using LaneVec = IntVec<float>;
  static constexpr int kPair = 2;
  static constexpr Dtype kStorage = Dtype::kBFloat16;
};

template <class E>
using Compute = typename Operand<E>::Compute;
template <class E>
using Scalar = typename Operand<E>::Scalar;
template <class E>
using Lane = typename Operand<E>::Lane;
template <class E>
using LaneVec = typename Operand<E>::LaneVec;
template <class E>
constexpr int kPair = Operand<E>::kPair;

// Products along n elements, the last pair filled up with 0.
template <class E>
constexpr int64_t steps(int64_t n) {
  return (n + kPair<E> - 1) / kPair<E>;
}

template <class E>
ATTN_INLINE LaneVec<E> load_lanes(const Lane<E>* p) {
  LaneVec<E> v;
  memcpy(&v, p, sizeof(v));
  return v;
}
template <class E>
ATTN_INLINE LaneVec<E> broadcast(const Scalar<E>* p) {
  if constexpr (kPair<E> == 1) {
    return set1(*p);
  } else {
    uint32_t pair;
    memcpy(&pair, p, sizeof(pair));
    return set1_int<float>(pair);
  }
}
// sum + x * y
template <class E>
ATTN_INLINE Vec<Compute<E>> multiply_add(LaneVec<E> x, LaneVec<E> y, Vec<Compute<E>> sum) {
  if constexpr (kPair<E> == 1)
    return fma(x, y, sum);
  else
    return dot_bfloat16(sum, x, y);
}
// kPair vectors of numbers to one of operands.
template <class E>
ATTN_INLINE void store_operands(Lane<E>* p, const Vec<Compute<E>> (&x)[kPair<E>]) {
  if constexpr (kPair<E> == 1) {
    store(p, x[0]);
  } else {
    const IntVec<float> pairs = pair_bfloat16(x[0], x[1]);
    memcpy(p, &pairs, sizeof(pairs));
  }
}
// Number `part` of each lane's operand.
template <class E>
ATTN_INLINE Vec<Compute<E>> load_operand(const Lane<E>* p, int part) {
  if constexpr (kPair<E> == 1) {
    return load(p);
  } else {
    const IntVec<float> pairs = load_lanes<E>(p);
    return reinterpret_cast<Vec<float>>(part ? pairs & int32_t(0xffff0000) : pairs << 16);
  }
}
template <class E>
ATTN_INLINE Compute<E> to_compute(Scalar<E> x) {
  if constexpr (kPair<E> == 1)
    return x;
  else
    return bfloat16_to_float(x);
}
