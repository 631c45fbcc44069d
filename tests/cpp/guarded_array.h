// A strided 4-D array that shows what is read or written beside its elements: it lies between
// guards that AddressSanitizer watches, and every byte that is no element is NaN and must stay so.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "check.h"
#include "core/params.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) (static_cast<void>(address))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) (static_cast<void>(address))
#endif

enum class Layout { kPlain, kHeadsInRows, kRowsApart, kColumnsApart };

class GuardedArray {
 public:
  GuardedArray() = default;
  GuardedArray(const int64_t (&size)[4], attn::Dtype dtype, Layout layout = Layout::kPlain) {
    std::memcpy(size_, size, sizeof(size_));
    view_.dtype = dtype;
    const int64_t column = layout == Layout::kColumnsApart ? 2 : 1;
    const int64_t row = size[3] * column + (layout >= Layout::kRowsApart ? 5 : 0);
    const bool heads_in_rows = layout == Layout::kHeadsInRows;
    stride_[3] = column;
    stride_[2] = heads_in_rows ? row * size[1] : row;
    stride_[1] = heads_in_rows ? row : row * size[2];
    stride_[0] = row * size[1] * size[2];
    int64_t last = 0;
    for (int d = 0; d < 4; ++d) {
      if (size[d] == 0) empty_ = true;
      last += (size[d] - 1) * stride_[d];
      view_.stride[d] = size[d] == 1 ? 0 : stride_[d];  // as the bindings do
    }
    bytes_.assign(empty_ ? 2 * kGuard : 2 * kGuard + (last + 1) * attn::size_of(dtype), kNan);
    is_element_.assign(bytes_.size(), false);
    for_each([&](int64_t b, int64_t h, int64_t l, int64_t d) {
      for (int64_t n = 0; n < attn::size_of(dtype); ++n) is_element_[place(b, h, l, d) + n] = true;
    });
    watch();
  }
  GuardedArray(const GuardedArray&) = delete;
  GuardedArray(GuardedArray&& other) = default;
  GuardedArray& operator=(GuardedArray&& other) {
    unwatch();
    bytes_ = std::move(other.bytes_), is_element_ = std::move(other.is_element_);
    std::memcpy(size_, other.size_, sizeof(size_));
    std::memcpy(stride_, other.stride_, sizeof(stride_));
    view_ = other.view_, empty_ = other.empty_;
    other.bytes_.clear();
    return *this;
  }
  ~GuardedArray() { unwatch(); }

  // Null where there is no array.
  attn::View view() {
    attn::View view = view_;
    view.data = bytes_.empty() ? nullptr : bytes_.data() + kGuard;
    return view;
  }
  bool exists() const { return !bytes_.empty(); }
  int64_t size(int d) const { return size_[d]; }
  attn::Dtype dtype() const { return view_.dtype; }

  // An index along a dimension of size 1 is that dimension's only one.
  double at(int64_t b, int64_t h, int64_t l, int64_t d) const {
    const char* p = bytes_.data() + place(b, h, l, d);
    switch (view_.dtype) {
      case attn::Dtype::kFloat64:
        return read<double>(p);
      case attn::Dtype::kFloat32:
        return static_cast<double>(read<float>(p));
      case attn::Dtype::kBFloat16:
        return static_cast<double>(attn::bfloat16_to_float(read<uint16_t>(p)));
      default:
        return static_cast<double>(attn::float16_to_float(read<uint16_t>(p)));
    }
  }
  void set(int64_t b, int64_t h, int64_t l, int64_t d, double x) {
    char* p = bytes_.data() + place(b, h, l, d);
    const float f = static_cast<float>(x);
    switch (view_.dtype) {
      case attn::Dtype::kFloat64:
        return write(p, x);
      case attn::Dtype::kFloat32:
        return write(p, f);
      case attn::Dtype::kBFloat16:
        return write(p, attn::float_to_bfloat16(f));
      default:
        return write(p, attn::float_to_float16(f));
    }
  }
  template <class Function>
  void for_each(const Function& function) const {
    for (int64_t b = 0; b < size_[0]; ++b)
      for (int64_t h = 0; h < size_[1]; ++h)
        for (int64_t l = 0; l < size_[2]; ++l)
          for (int64_t d = 0; d < size_[3]; ++d) function(b, h, l, d);
  }

  void check_guards() {
    unwatch();
    for (size_t n = 0; n < bytes_.size(); ++n) CHECK(is_element_[n] || bytes_[n] == kNan);
    watch();
  }
  std::vector<char> bytes() {
    unwatch();
    std::vector<char> copy = bytes_;
    watch();
    return copy;
  }

  static constexpr char kNan = '\xff';  // four of them, or two, or eight, are a NaN

 private:
  static constexpr int64_t kGuard = 128;

  int64_t size_[4] = {0, 0, 0, 0}, stride_[4] = {0, 0, 0, 0};
  attn::View view_;
  bool empty_ = false;
  std::vector<char> bytes_;
  std::vector<bool> is_element_;

  int64_t place(int64_t b, int64_t h, int64_t l, int64_t d) const {
    const int64_t index[4] = {b, h, l, d};
    int64_t offset = 0;
    for (int n = 0; n < 4; ++n) offset += (size_[n] == 1 ? 0 : index[n]) * stride_[n];
    return kGuard + offset * attn::size_of(view_.dtype);
  }
  template <class T>
  static T read(const char* p) {
    T x;
    std::memcpy(&x, p, sizeof(x));
    return x;
  }
  template <class T>
  static void write(char* p, T x) {
    std::memcpy(p, &x, sizeof(x));
  }
  void watch() {
    if (bytes_.empty()) return;
    ASAN_POISON_MEMORY_REGION(bytes_.data(), kGuard);
    ASAN_POISON_MEMORY_REGION(bytes_.data() + bytes_.size() - kGuard, kGuard);
  }
  void unwatch() {
    if (!bytes_.empty()) ASAN_UNPOISON_MEMORY_REGION(bytes_.data(), bytes_.size());
  }
};
