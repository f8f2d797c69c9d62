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

  // Where a pixel lies in a panel [pixel][lane] and in an image [H,W,C].
  struct Pixel {
    int64_t panel, image;
    FASTMTT_INLINE_HERE Pixel after(const Pixel& step) const {
      return {panel + step.panel, image + step.image};
    }
  };
  FASTMTT_INLINE_HERE static Pixel pixels(const Grid& g, int64_t count) {
    return {count * kLength, count * g.out};
  }

  // A panel's pixels lie a whole pixel apart in an image, too far for the processor to see what
  // comes next: it is told.
  static constexpr int64_t kAhead = 16;
  template <typename Count>
  FASTMTT_INLINE_HERE static Row take(
      const Grid& g, const T* image, Count count, const Pixel& at) {
    __builtin_prefetch(image + at.image + kAhead * g.out);
    return Row::load(image + at.image, count);
  }
  template <typename Count>
  FASTMTT_INLINE_HERE static void give(
      const Grid& g, const Row& value, T* image, Count count, const Pixel& at) {
    __builtin_prefetch(image + at.image + kAhead * g.out, 1);
    value.store(image + at.image, count);
  }

  // work(pixel, chain) for the pixels of row y, in two chains.
  template <typename Work>
  FASTMTT_INLINE_HERE static void for_row(const Grid& g, int64_t y, const Work& work) {
    const Pixel one = pixels(g, 1), two = pixels(g, 2);
    Pixel at = pixels(g, y * g.width);
    for (int64_t x = 0; x + 1 < g.width; x += 2, at = at.after(two)) {
      work(at, 0);
      work(at.after(one), 1);
    }
    if (g.width % 2 == 1) work(at, 0);
  }

  // pool(its four pixels, its place) for every pool, rest(pixel) for pixels in none.
  template <typename Pool, typename Rest>
  FASTMTT_INLINE_HERE static void for_pools(const Grid& g, const Pool& pool, const Rest& rest) {
    const int64_t height = 2 * g.pooled_height(), width = 2 * g.pooled_width();
    const Pixel one = pixels(g, 1), two = pixels(g, 2), row = pixels(g, g.width);
    int64_t pooled = 0;
    for (int64_t y = 0; y < height; y += 2) {
      Pixel at = pixels(g, y * g.width);
      for (int64_t x = 0; x < width; x += 2, at = at.after(two), pooled += g.out) {
        const Pixel below = at.after(row);
        const Pixel four[4] = {at, at.after(one), below, below.after(one)};
        pool(four, pooled);
      }
    }
    for (int64_t y = 0; y < g.height; ++y) {
      for (int64_t x = y < height ? width : 0; x < g.width; ++x) rest(pixels(g, y * g.width + x));
    }
  }

  // add(pixel, its pool's place, sums) for the pixels that a pool reads.
  template <int K, typename Add>
  FASTMTT_INLINE_HERE static void sum_pools(const Grid& g, Total<T>* totals, const Add& add) {
    const Pixel one = pixels(g, 1), two = pixels(g, 2);
    for (int64_t y = 0; y < 2 * g.pooled_height(); ++y) {
      RowSums<T, K> sums;
      Pixel at = pixels(g, y * g.width);
      int64_t pooled = pooled_row(g, y);
      for (int64_t x = 0; x < 2 * g.pooled_width(); x += 2, at = at.after(two), pooled += g.out) {
        add(at, pooled, sums.chain[0]);
        add(at.after(one), pooled, sums.chain[1]);
      }
      sums.add_to(totals);
    }
  }

  // write(pixel's place in a panel, its pool's place) where a pool reads, rest(place) elsewhere
  template <typename Write, typename Rest>
  FASTMTT_INLINE_HERE static void for_pixels(const Grid& g, const Write& write, const Rest& rest) {
    for (int64_t y = 0; y < g.height; ++y) {
      const int64_t pools = y < 2 * g.pooled_height() ? 2 * g.pooled_width() : 0;
      int64_t at = y * g.width * kLength, pooled = pooled_row(g, y);
      int64_t x = 0;
      for (; x < pools; x += 2, at += 2 * kLength, pooled += g.out) {
        write(at, pooled);
        write(at + kLength, pooled);
      }
      for (; x < g.width; ++x, at += kLength) rest(at);
    }
  }
  static int64_t pooled_row(const Grid& g, int64_t y) { return y / 2 * g.pooled_width() * g.out; }

  // A pixel of an image, copied to the panel that later passes read.
  template <typename Count>
  FASTMTT_INLINE_HERE static Row gathered(
      const Grid& g, const T* image, Count count, const Pixel& at, T* panel) {
    const Row value = take(g, image, count, at);
    value.store(panel + at.panel);
    return value;
  }
  // The pixels that no pool reads.
  template <typename Count>
  static void gather_rest(const Grid& g, const T* image, Count count, T* panel) {
    for_pools(
        g, [](const Pixel*, int64_t) FASTMTT_HERE {},
        [&](const Pixel& at) FASTMTT_HERE { gathered(g, image, count, at, panel); });
  }
};

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
