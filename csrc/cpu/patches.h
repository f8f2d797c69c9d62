// The direct convolution's rows: every pixel's 3x3 patch, tap after tap, each with all its channels,
// of which there is less than a panel. Such a convolution is never rounded (convolution.h).

#pragma once

#include "operands.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

template <typename T>
struct Patches : Operands<Exact<T>> {
  using typename Operands<Exact<T>>::Row;
  using Operands<Exact<T>>::kLength;
  using Operands<Exact<T>>::at;

  // Patches are put together this many at a time: one that is read just after it was written, in
  // other pieces, makes the processor wait.
  static constexpr int64_t kAtOnce = 8;

  static void lift(const Grid& g, const T* image, const Operand& v, int64_t row) {
    const int64_t panels = (9 * g.in + kLength - 1) / kLength;
    T patches[kAtOnce][10 * kLength] = {};
    for (int64_t first = 0; first < g.rows; first += kAtOnce) {
      const int64_t count = g.rows - first < kAtOnce ? g.rows - first : kAtOnce;
      for (int64_t i = 0; i < count; ++i) copy(g, image, first + i, patches[i]);
      for (int64_t panel = 0; panel < panels; ++panel) {
        T* to = at(v, 0, panel, row + first);
        for (int64_t i = 0; i < count; ++i) {
          Row::load(patches[i] + panel * kLength).store(to + i * kLength);
        }
      }
    }
  }

  // One pixel's patch; zeros follow it to the end of its last panel.
  static void copy(const Grid& g, const T* image, int64_t pixel, T* to) {
    const int64_t y = pixel / g.width, x = pixel % g.width, wide = 3 * g.in;
    const T* from = image + ((y - 1) * g.width + x - 1) * g.in;
    const bool inner = y > 0 && y + 1 < g.height && x > 0 && x + 1 < g.width;
    const int64_t pieces = (wide + kLength - 1) / kLength * kLength;
    if (inner && from + 2 * g.width * g.in + pieces <= image + g.area() * g.in) {
      // a row of three taps lies in one piece; what is copied beyond it is overwritten
      for (int64_t tap = 0; tap < 3; ++tap, to += wide, from += g.width * g.in) {
        for (int64_t k = 0; k < pieces; k += kLength) Row::load(from + k).store(to + k);
      }
      Row::all(0).store(to);
      return;
    }
    for (int64_t dy = -1; dy <= 1; ++dy) {
      for (int64_t dx = -1; dx <= 1; ++dx) {
        const bool inside = y + dy >= 0 && y + dy < g.height && x + dx >= 0 && x + dx < g.width;
        const T* tap = image + ((y + dy) * g.width + x + dx) * g.in;
        for (int64_t c = 0; c < g.in; ++c) *to++ = inside ? tap[c] : T(0);
      }
    }
  }

  static void lift_transposed(const Grid& g, Panels<const T> gv, int64_t row, T* ga) {
    for (int64_t i = 0; i < g.area() * g.in; ++i) ga[i] = 0;
    for (int64_t y = 0; y < g.height; ++y) {
      for (int64_t x = 0; x < g.width; ++x) {
        const T* from = gv.data + (row + y * g.width + x) * kLength;
        int64_t k = 0;
        for (int64_t dy = -1; dy <= 1; ++dy) {
          for (int64_t dx = -1; dx <= 1; ++dx) {
            const bool inside =
                y + dy >= 0 && y + dy < g.height && x + dx >= 0 && x + dx < g.width;
            T* to = ga + ((y + dy) * g.width + x + dx) * g.in;
            for (int64_t c = 0; c < g.in; ++c, ++k) {
              if (inside) to[c] += from[k / kLength * gv.panel + k % kLength];
            }
          }
        }
      }
    }
  }
};

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
