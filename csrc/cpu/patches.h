// Patches of an image's pixels as rows (patch_kernels.h), and patches' cotangents back to an image's.

#pragma once

#include "covariance.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

template <typename T>
struct Patches {
  using Row = Panel<T>;
  static constexpr int64_t kLength = Row::kLength;
  using Grid = PatchGrid<T>;

  // Patches are put together this many at a time: one that is read just after it was written, in
  // other pieces, makes the processor wait.
  static constexpr int64_t kAtOnce = 8;
  // most columns, with room for what is copied beyond them: two images of kLength - 1 channels
  static constexpr int64_t kMost = 2 * 9 * kLength + 4 * kLength;

  // X, its columns about their means, and its covariance.
  static void prepare(const Grid& g, const PatchImage<T>& image, const PatchRoom<T>& room) {
    double means[kMost];
    T mean[kMost];
    Covariance<T>::compute(g, image, room.sums, means, room.covariance);
    for (int64_t k = 0; k < g.depth; ++k) mean[k] = static_cast<T>(means[k]);
    T staged[kAtOnce][kMost] = {};
    for (int64_t first = 0; first < g.rows; first += kAtOnce) {
      const int64_t left = g.area - first, count = left < kAtOnce ? left : kAtOnce;
      for (int64_t i = 0; i < count; ++i) {
        const auto [y, x] = room.pixels[first + i];
        copy(g, image.a, y, x, staged[i]);
        if (g.tangents()) copy(g, image.a_dot, y, x, staged[i] + g.taps + 1);
        staged[i][g.taps] = 1;
        for (int64_t k = g.used; k < g.depth; ++k) staged[i][k] = 0;
      }
      for (int64_t panel = 0; panel < g.panels; ++panel) {
        const Row about = Row::load(mean + panel * kLength);
        T* to = room.x + (panel * g.rows + first) * kLength;
        for (int64_t i = 0; i < kAtOnce; ++i) {
          const Row here = Row::load(staged[i] + panel * kLength) - about;
          (i < count ? here : Row::all(0)).store(to + i * kLength);
        }
      }
    }
  }

  // The cotangent of an image from that of its patches.
  static void back(const Grid& g, const PatchRoom<T>& room, T* ga) {
    const int64_t width = g.width + 2, wide = 3 * g.in, stride = width * g.in;
    __builtin_memset(room.ga, 0, (g.height + 2) * stride * sizeof(T));
    T patch[kMost];
    for (int64_t row = 0; row < g.area; ++row) {
      for (int64_t panel = 0; panel < g.tap_panels; ++panel) {
        Row::load(room.gx + (panel * g.rows + row) * kLength).store(patch + panel * kLength);
      }
      const auto [y, x] = room.pixels[row];
      T* to = room.ga + y * stride + x * g.in;
      for (int64_t dy = 0; dy < 3; ++dy, to += stride) {
        for (int64_t k = 0; k < wide; ++k) to[k] += patch[dy * wide + k];
      }
    }
    for (int64_t y = 0; y < g.height; ++y) {
      const T* from = room.ga + (y + 1) * stride + g.in;
      __builtin_memcpy(ga + y * g.width * g.in, from, g.width * g.in * sizeof(T));
    }
  }

 private:
  // One pixel's patch, tap after tap, each with all its channels.
  static void copy(const Grid& g, const T* image, int64_t y, int64_t x, T* to) {
    const int64_t wide = 3 * g.in;
    const bool inner = y > 0 && y + 1 < g.height && x > 0 && x + 1 < g.width;
    const T* from = image + ((y - 1) * g.width + x - 1) * g.in;
    const int64_t pieces = parts(wide, kLength) * kLength;
    if (inner && from + 2 * g.width * g.in + pieces <= image + g.area * g.in) {
      // a row of three taps lies in one piece; what is copied beyond it is overwritten
      for (int64_t tap = 0; tap < 3; ++tap, to += wide, from += g.width * g.in) {
        for (int64_t k = 0; k < pieces; k += kLength) Row::load(from + k).store(to + k);
      }
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
};

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
