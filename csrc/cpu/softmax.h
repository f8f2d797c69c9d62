// Softmax over rows of logits: exponentials of whole stretches, logarithms of a row's sum of them.

#pragma once

#include <c10/util/bit_cast.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

#include "rows.h"
#include "widest.h"

namespace fastmtt {

FASTMTT_INLINE inline double exponential(double x) {
  return std::exp(x);
}

// exp(x) = 2^n exp(r), r within half a log 2: within 1.5 roundings, and nothing a vector unit lacks.
FASTMTT_INLINE inline float exponential(float x) {
  constexpr float kShift = 12582912;  // 3 * 2^22: adding it rounds to an integer in the low bits
  const float shifted = x * 1.44269504f + kShift;
  const float n = shifted - kShift;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // log 2 in two parts
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1;
  const uint32_t exponent = c10::bit_cast<uint32_t>(shifted) + 127;
  const float scaled = p * c10::bit_cast<float>(exponent << 23);
  const float above = x > 88 ? std::numeric_limits<float>::infinity() : scaled;
  return x < -87 ? 0 : above;
}

template <typename T>
FASTMTT_INLINE inline void exponentials(const T* x, int64_t count, T* out) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) out[i] = exponential(x[i]);
}

// A NaN may be passed over: taking the largest from it still leaves one.
template <typename T>
FASTMTT_INLINE inline T largest(const T* x, int64_t count) {
  T lane[kLanes];
  std::fill_n(lane, kLanes, x[0]);
  const auto take = [&](T value, int64_t k) FASTMTT_INLINE {
    lane[k] = value > lane[k] ? value : lane[k];
  };
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) take(x[j + k], k);
  }
  for (int64_t k = 0; k < count - j; ++k) take(x[j + k], k);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t k = 0; k < half; ++k) take(lane[k + half], k);
  }
  return lane[0];
}

// Rows [count, classes] less each one's logarithm of its sum of exponentials; room is as large.
template <typename T>
FASTMTT_INLINE inline void log_softmax(int64_t count, int64_t classes, T* z, T* room) {
  for (int64_t i = 0; i < count; ++i) {
    T* row = z + i * classes;
    const T most = largest(row, classes);
    for (int64_t k = 0; k < classes; ++k) row[k] -= most;
  }
  exponentials(z, count * classes, room);
  for (int64_t i = 0; i < count; ++i) {
    const T* terms = room + i * classes;
    const T log_sum = std::log(sum_lanes<T, 1>(0, classes, [&](int64_t k) FASTMTT_INLINE {
      return std::array<T, 1>{terms[k]};
    })[0]);
    for (int64_t k = 0; k < classes; ++k) z[i * classes + k] -= log_sum;
  }
}

}  // namespace fastmtt
