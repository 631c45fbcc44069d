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

// The rows of neighbouring heads beside each other: row n is row n / group of head n % group. They
// are counted in 32 bits.
struct GroupRows {
  const char* data;
  Dtype dtype;
  int64_t row_stride, head_stride, column_stride;  // in bytes
  uint32_t group;
  int64_t end, columns;

  ATTN_DEVICE GroupRows(const View& view, int64_t b, int64_t h, int64_t group_size, int64_t L,
                        int64_t D)
      : data(view.at(b, h, 0)),
        dtype(view.dtype),
        row_stride(view.stride[2] * size_of(dtype)),
        head_stride(view.stride[1] * size_of(dtype)),
        column_stride(view.stride[3] * size_of(dtype)),
        group(static_cast<uint32_t>(group_size)),
        end(L * group_size),
        columns(D) {}

  ATTN_DEVICE const char* at(int64_t row) const {
    const auto n = static_cast<uint32_t>(row);
    return data + n / group * row_stride + n % group * head_stride;
  }
  template <class T>
  ATTN_DEVICE T load(int64_t row, int64_t column) const {
    if (row >= end || column >= columns) return T(0);
    return load_element<T>(at(row) + column * column_stride, dtype);
  }
};

}  // namespace attn::cuda
