// Rows of numbers: where they lie, and reductions over one in a fixed order.

#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>

#include "widest.h"

namespace fastmtt {

// A matrix whose rows are dense in memory.
template <typename T>
struct Rows {
  const T* data;
  int64_t stride;
  FASTMTT_INLINE const T* operator[](int64_t row) const { return data + row * stride; }
};

inline at::Tensor with_dense_rows(const at::Tensor& t) {
  return t.size(-1) <= 1 || t.stride(-1) == 1 ? t : t.contiguous();
}

constexpr int64_t kLanes = 32;  // independent sums, for the vector units and the adder's latency

// sums[i] = sum of term(j)[i] over j in [begin, end), in one order whatever the processor.
template <typename V, size_t N, typename Term>
FASTMTT_INLINE inline std::array<V, N> sum_lanes(int64_t begin, int64_t end, const Term& term) {
  V lane[N][kLanes] = {};
  const auto add = [&](int64_t j, int64_t k) FASTMTT_INLINE {
    const std::array<V, N> terms = term(j + k);
    for (size_t i = 0; i < N; ++i) lane[i][k] += terms[i];
  };
  int64_t j = begin;
  for (; j + kLanes <= end; j += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) add(j, k);
  }
  for (int64_t k = 0; k < end - j; ++k) add(j, k);
  std::array<V, N> sums;
  for (size_t i = 0; i < N; ++i) {
    for (int64_t half = kLanes / 2; half > 0; half /= 2) {
      for (int64_t k = 0; k < half; ++k) lane[i][k] += lane[i][k + half];
    }
    sums[i] = lane[i][0];
  }
  return sums;
}

template <typename T>
FASTMTT_INLINE inline double inner(const T* x, const T* y, int64_t count) {
  return sum_lanes<double, 1>(0, count, [&](int64_t j) FASTMTT_INLINE {
    return std::array<double, 1>{double(x[j]) * double(y[j])};
  })[0];
}

}  // namespace fastmtt
