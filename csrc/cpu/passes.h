// Passes over one panel of an image's channels, as the norm, the ReLU and the pool make them. The
// panel lies in the first-level cache.

#pragma once

#include "lifting.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

// Per-channel sums over pixels, in double.
template <typename T>
struct Total {
  double lane[kLanes<T>] = {};

  FASTMTT_INLINE_HERE void add(const Panel<T>& row) {
    T lanes[kLanes<T>];
    row.store(lanes);
    for (int l = 0; l < kLanes<T>; ++l) lane[l] += lanes[l];
  }
  FASTMTT_INLINE_HERE Panel<T> mean(int64_t count) const {
    T lanes[kLanes<T>];
    for (int l = 0; l < kLanes<T>; ++l) lanes[l] = static_cast<T>(lane[l] / count);
    return Panel<T>::load(lanes);
  }
};

// Sums over a row of pixels in T, in two chains that hide the adder's latency, added to totals.
template <typename T, int K>
struct RowSums {
  Panel<T> chain[2][K] = {};

  FASTMTT_INLINE_HERE void add_to(Total<T>* totals) const {
    FASTMTT_UNROLL for (int k = 0; k < K; ++k) totals[k].add(chain[0][k] + chain[1][k]);
  }
};

// The affine output, whose sign is the ReLU's mask: every pass has to see the same.
template <typename T>
FASTMTT_INLINE_HERE Panel<T> affine(
    const Panel<T>& xhat, const Panel<T>& gamma, const Panel<T>& beta) {
  return fused(xhat, gamma, beta);
}

// Of a pool's four pixels, in one order: a recomputed output has the same bits.
template <typename T>
FASTMTT_INLINE_HERE Panel<T> average(const Panel<T>* n) {
  return T(0.25) * ((n[0] + n[1]) + (n[2] + n[3]));
}

template <typename Op>
struct Passes {
  using T = typename Op::Value;
  using Row = Panel<T>;
  static constexpr int64_t kLength = Row::kLength;

  // A panel's pixels lie a whole pixel apart in an image [H,W,C], too far for the processor to see
  // what comes next: it is told.
  static constexpr int64_t kAhead = 16;
  FASTMTT_INLINE_HERE static Row take(
      const Grid& g, const T* image, int64_t count, int64_t y, int64_t x) {
    const T* pixel = image + (y * g.width + x) * g.out;
    __builtin_prefetch(pixel + kAhead * g.out);
    return Row::load(pixel, count);
  }
  FASTMTT_INLINE_HERE static void give(
      const Grid& g, const Row& value, T* image, int64_t count, int64_t y, int64_t x) {
    T* pixel = image + (y * g.width + x) * g.out;
    __builtin_prefetch(pixel + kAhead * g.out, 1);
    value.store(pixel, count);
  }

  FASTMTT_INLINE_HERE static Row at(const Grid& g, const T* panel, int64_t y, int64_t x) {
    return Row::load(panel + (y * g.width + x) * kLength);
  }
  FASTMTT_INLINE_HERE static int64_t pooled_at(const Grid& g, int64_t y, int64_t x) {
    return (y / 2 * g.pooled_width() + x / 2) * g.out;
  }

  // work(x, chain) for the pixels of a row, in two chains.
  template <typename Work>
  FASTMTT_INLINE_HERE static void for_row(int64_t width, const Work& work) {
    for (int64_t x = 0; x + 1 < width; x += 2) {
      work(x, 0);
      work(x + 1, 1);
    }
    if (width % 2 == 1) work(width - 1, 0);
  }

  // pool(y, x) for the first of every pool's four pixels, rest(y, x) for pixels in no pool.
  template <typename Pool, typename Rest>
  FASTMTT_INLINE_HERE static void for_pools(const Grid& g, const Pool& pool, const Rest& rest) {
    const int64_t height = 2 * g.pooled_height(), width = 2 * g.pooled_width();
    for (int64_t y = 0; y < height; y += 2) {
      for (int64_t x = 0; x < width; x += 2) pool(y, x);
    }
    for (int64_t y = 0; y < g.height; ++y) {
      for (int64_t x = y < height ? width : 0; x < g.width; ++x) rest(y, x);
    }
  }

  // add(y, x, pooled offset, sums) for the pixels that a pool reads.
  template <int K, typename Add>
  FASTMTT_INLINE_HERE static void sum_pools(const Grid& g, Total<T>* totals, const Add& add) {
    for (int64_t y = 0; y < 2 * g.pooled_height(); ++y) {
      RowSums<T, K> sums;
      int64_t pooled = pooled_at(g, y, 0);
      for (int64_t x = 0; x < 2 * g.pooled_width(); x += 2, pooled += g.out) {
        add(y, x, pooled, sums.chain[0]);
        add(y, x + 1, pooled, sums.chain[1]);
      }
      sums.add_to(totals);
    }
  }

  // write(pixel's offset in a panel, pooled offset) where a pool reads, rest(offset) elsewhere
  template <typename Write, typename Rest>
  FASTMTT_INLINE_HERE static void for_pixels(const Grid& g, const Write& write, const Rest& rest) {
    for (int64_t y = 0; y < g.height; ++y) {
      const int64_t pools = y < 2 * g.pooled_height() ? 2 * g.pooled_width() : 0;
      int64_t pixel = y * g.width * kLength, pooled = pooled_at(g, y, 0);
      int64_t x = 0;
      for (; x < pools; x += 2, pixel += 2 * kLength, pooled += g.out) {
        write(pixel, pooled);
        write(pixel + kLength, pooled);
      }
      for (; x < g.width; ++x, pixel += kLength) rest(pixel);
    }
  }

  // A pixel of an image, copied to the panel that later passes read.
  FASTMTT_INLINE_HERE static Row gathered(
      const Grid& g, const T* image, int64_t count, int64_t y, int64_t x, T* panel) {
    const Row value = take(g, image, count, y, x);
    value.store(panel + (y * g.width + x) * kLength);
    return value;
  }
  // The pixels that no pool reads.
  static void gather_rest(const Grid& g, const T* image, int64_t count, T* panel) {
    for_pools(
        g, [](int64_t, int64_t) FASTMTT_HERE {},
        [&](int64_t y, int64_t x) FASTMTT_HERE { gathered(g, image, count, y, x, panel); });
  }
};

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
