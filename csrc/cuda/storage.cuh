// Elements of the storage dtypes, and strided rows of them.
#pragma once

#include "core/params.h"
#include "cuda/primitives.cuh"

namespace attn::cuda {

template <class T>
ATTN_DEVICE T load_element(const char* at, Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return static_cast<T>(*reinterpret_cast<const double*>(at));
    case Dtype::kBFloat16:
      return static_cast<T>(bfloat16_to_float(*reinterpret_cast<const uint16_t*>(at)));
    case Dtype::kFloat16:
      return static_cast<T>(float16_to_float(*reinterpret_cast<const uint16_t*>(at)));
    default:
      return static_cast<T>(*reinterpret_cast<const float*>(at));
  }
}

template <class T>
ATTN_DEVICE void store_element(char* at, Dtype dtype, T value) {
  switch (dtype) {
    case Dtype::kFloat64:
      *reinterpret_cast<double*>(at) = static_cast<double>(value);
      break;
    case Dtype::kBFloat16:
      *reinterpret_cast<uint16_t*>(at) = float_to_bfloat16(static_cast<float>(value));
      break;
    case Dtype::kFloat16:
      *reinterpret_cast<uint16_t*>(at) = float_to_float16(static_cast<float>(value));
      break;
    default:
      *reinterpret_cast<float*>(at) = static_cast<float>(value);
  }
}

// Rows [begin, end) of one head of a view, of `columns` columns; all others read as 0.
struct Rows {
  const char* data;
  Dtype dtype;
  int64_t row_stride, column_stride;  // in bytes
  int64_t end, columns;

  template <class T>
  ATTN_DEVICE T load(int64_t row, int64_t column) const {
    if (row >= end || column >= columns) return T(0);
    return load_element<T>(data + row * row_stride + column * column_stride, dtype);
  }
};

ATTN_DEVICE Rows rows_of(const View& view, int64_t b, int64_t h, int64_t end, int64_t columns) {
  const int64_t size = size_of(view.dtype);
  return {view.at(b, h, 0), view.dtype, view.stride[2] * size, view.stride[3] * size, end, columns};
}

}  // namespace attn::cuda
