// Products with patches, a strip of rows at a time, in T itself. split_strips.h has the same for
// factors of two bfloat16 numbers.

#pragma once

#include "passes.h"
#include "patch_kernels.h"
#include "products.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

template <typename T>
class ExactStrips {
 public:
  using Value = T;
  static constexpr int64_t kLength = kLanes<T>;
  using Factor = const T*;

  static int64_t operand_bytes(const PatchGrid<T>&) { return 0; }

  ExactStrips(const PatchGrid<T>& g, const PatchRoom<T>& room) : g_(g), room_(room) {}

  // Factors of X, [out_panels][depth][lane], and those whose rows are output channels.
  Factor factor(const T* m, int /*number*/) const { return m; }
  Factor flipped(const T* m, int /*number*/) const { return m; }
  Factor rest(const T* m) const { return m; }

  // The strip that later calls are about; columns: whether products over its rows are wanted.
  void begin(int64_t strip, bool /*columns*/) { first_ = strip * kStrip; }

  // y = X times `width` panels of a factor.
  void multiply_by(Factor factor, int64_t panel, int64_t width, T* y) const {
    multiply_strip({x(), of(factor + panel * g_.depth * kLength, g_.depth)}, g_.used, width,
                   {y, 0, kStrip * kLength}, false);
  }

  // G: where y > 0, a pool's cotangent. gp stands at the strip's first pool and the panels' first
  // channel. plain: whether G is multiplied by filters as well.
  void open(const T* y, const T* gp, int64_t pools, int64_t channels, int64_t width,
            bool /*plain*/) {
    T* const to = room_.g;
    const auto put = [&](int64_t pool, int64_t n, auto here) FASTMTT_HERE {
      const int64_t from = pool * g_.out + n * kLength, panel = n * kStrip * kLength;
      const auto g = pool < pools ? Panel<T>::load(gp + from, here) : Panel<T>::all(0);
      FASTMTT_UNROLL for (int i = 0; i < kPool; ++i) {
        const int64_t at = panel + (pool * kPool + i) * kLength;
        where_positive(Panel<T>::load(y + at), g).store(to + at);
      }
    };
    const int64_t whole = channels / kLength < width ? channels / kLength : width;
    for (int64_t pool = 0; pool < kStrip / kPool; ++pool) {
      for (int64_t n = 0; n < whole; ++n) put(pool, n, Whole());
      if (whole < width) put(pool, whole, channels - whole * kLength);
    }
  }

  // q = (q if add) + X^T G, of the panels from `panel` on
  void multiply_columns(int64_t panel, int64_t width, T* q, bool add) const {
    const Product product = {x(), of(room_.g, kStrip)};
    const int64_t stride = g_.depth * kLength;
    multiply_transposed<Exact<T>>(
        &product, 1, 0, 0, g_.panels, kStrip, width, {q + panel * stride, 0, stride}, add);
  }

  // gx = (gx if add) + G times the factor's rows of the panels from `panel` on
  void multiply_back(Factor back, int64_t panel, int64_t width, bool add) const {
    multiply_strip({of(room_.g, kStrip), of(back + panel * kLength * kLength, g_.outs)},
                   width * kLength, g_.tap_panels,
                   {room_.gx + first_ * kLength, 0, g_.rows * kLength}, add);
  }

  // gx += X times a factor of `tap_panels` panels.
  void multiply_rest(Factor factor) const {
    multiply_strip({x(), of(factor, g_.depth)}, g_.used, g_.tap_panels,
                   {room_.gx + first_ * kLength, 0, g_.rows * kLength}, true);
  }

 private:
  static Operand of(const T* data, int64_t rows) {
    return {const_cast<T*>(data), 0, rows * kLength};
  }
  Operand x() const { return of(room_.x + first_ * kLength, g_.rows); }
  static void multiply_strip(
      const Product& product, int64_t depth, int64_t panels, const Panels<T>& c, bool add) {
    multiply<Exact<T>>(&product, 1, 0, 0, kStrip, depth, panels, c, add);
  }

  const PatchGrid<T>& g_;
  const PatchRoom<T>& room_;
  int64_t first_ = 0;
};

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
