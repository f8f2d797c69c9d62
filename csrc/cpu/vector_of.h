// Vectors of numbers as the compiler knows them, split up where no register is so wide.

#pragma once

#include <cstdint>

#include "widest.h"

namespace fastmtt {

template <typename T, int kBytes>
struct VectorOf {
  // anywhere in memory, and over whatever lies there
  typedef T type __attribute__((vector_size(kBytes), aligned(alignof(T)), may_alias));
  static constexpr int64_t kCount = kBytes / sizeof(T);
  static FASTMTT_INLINE const type& at(const T* p) { return *reinterpret_cast<const type*>(p); }
};

}  // namespace fastmtt
