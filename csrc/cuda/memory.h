// Where kernels read and write: students that lie apart, and neighbours that are taken together.

#pragma once

#include <cstdint>

#include "kernel.h"

namespace fastmtt::cuda {

// What each student has, contiguous, `stride` elements after the one before.
template <typename T>
struct Students {
  FASTMTT_BODY T* operator[](int64_t student) const { return data + student * stride; }

  T* data;
  int64_t stride;
};

template <typename T>
constexpr int kQuad = 16 / sizeof(T);  // neighbours that a thread takes together: 16 bytes

template <int kWidth>
using Width = std::integral_constant<int, kWidth>;

template <typename T, int kWidth>
struct alignas(kWidth * sizeof(T)) Pack {
  T at[kWidth];
};

// Neighbours loaded kWidth together; they must be aligned so.
template <int kWidth, typename T, int kCount>
FASTMTT_BODY void load(const T* from, T (&to)[kCount]) {
  for (int i = 0; i < kCount; i += kWidth) {
    const auto pack = *reinterpret_cast<const Pack<T, kWidth>*>(from + i);
    for (int k = 0; k < kWidth; ++k) to[i + k] = pack.at[k];
  }
}

template <int kWidth, typename T, int kCount>
FASTMTT_BODY void store(const T (&from)[kCount], T* to) {
  for (int i = 0; i < kCount; i += kWidth) {
    Pack<T, kWidth> pack;
    for (int k = 0; k < kWidth; ++k) pack.at[k] = from[i + k];
    *reinterpret_cast<Pack<T, kWidth>*>(to + i) = pack;
  }
}

}  // namespace fastmtt::cuda
