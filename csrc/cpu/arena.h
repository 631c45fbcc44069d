// Scratch memory of one thread, carved into arrays. On a null base it only measures.
#pragma once

#include <cstdint>

namespace attn {

class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    T* array = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + kAlign - 1) / kAlign * kAlign;
    return array;
  }
  int64_t used() const { return used_; }

  static constexpr int64_t kAlign = 64;

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace attn
