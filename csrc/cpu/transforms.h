// Winograd's F(4x4, 3x3) on panels: Toom-Cook at the points 0, +-a, +-b and infinity, in either
// direction. With y = A^T [(G w) . (B^T d)] in one dimension (Lavin and Gray, 2016), these are B^T,
// A^T, G and their transposes. The points 11/16 and 13/8 lose least, in float32 and in bfloat16: a
// meta-gradient's error is half of that with 1 and 2.

#pragma once

#include "panels.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

template <typename T>
struct Points {
  static constexpr T a = T(0.6875), b = T(1.625);
  static constexpr T a2 = a * a, b2 = b * b;
  static constexpr T sum = a2 + b2, product = a2 * b2;
  static constexpr T at_zero = 1 / product;
  static constexpr T at_a = 1 / (2 * a2 * (a2 - b2)), at_b = 1 / (2 * b2 * (b2 - a2));
};

// B^T: six pixels to six points.
struct ToPoints {
  static constexpr int kFrom = 6, kTo = 6;
  template <typename T>
  FASTMTT_INLINE_HERE static void apply(const Panel<T>* x, Panel<T>* r) {
    using P = Points<T>;
    r[0] = fused(P::product, x[0], fused(-P::sum, x[2], x[4]));
    const Panel<T> even_a = fused(-P::b2, x[2], x[4]);
    const Panel<T> odd_a = fused(-P::a * P::b2, x[1], P::a * x[3]);
    r[1] = even_a + odd_a;
    r[2] = even_a - odd_a;
    const Panel<T> even_b = fused(-P::a2, x[2], x[4]);
    const Panel<T> odd_b = fused(-P::b * P::a2, x[1], P::b * x[3]);
    r[3] = even_b + odd_b;
    r[4] = even_b - odd_b;
    r[5] = fused(P::product, x[1], fused(-P::sum, x[3], x[5]));
  }
};

// B, its transpose.
struct FromPoints {
  static constexpr int kFrom = 6, kTo = 6;
  template <typename T>
  FASTMTT_INLINE_HERE static void apply(const Panel<T>* r, Panel<T>* x) {
    using P = Points<T>;
    const Panel<T> even_a = r[1] + r[2], odd_a = r[1] - r[2];
    const Panel<T> even_b = r[3] + r[4], odd_b = r[3] - r[4];
    x[0] = P::product * r[0];
    x[1] = fused(-P::a * P::b2, odd_a, fused(-P::b * P::a2, odd_b, P::product * r[5]));
    x[2] = fused(-P::sum, r[0], fused(-P::b2, even_a, -P::a2 * even_b));
    x[3] = fused(P::a, odd_a, fused(P::b, odd_b, -P::sum * r[5]));
    x[4] = r[0] + even_a + even_b;
    x[5] = r[5];
  }
};

// A^T: six points to four outputs.
struct ToOutputs {
  static constexpr int kFrom = 6, kTo = 4;
  template <typename T>
  FASTMTT_INLINE_HERE static void apply(const Panel<T>* r, Panel<T>* y) {
    using P = Points<T>;
    const Panel<T> even_a = r[1] + r[2], odd_a = r[1] - r[2];
    const Panel<T> even_b = r[3] + r[4], odd_b = r[3] - r[4];
    y[0] = r[0] + (even_a + even_b);
    y[1] = fused(P::a, odd_a, P::b * odd_b);
    y[2] = fused(P::a2, even_a, P::b2 * even_b);
    y[3] = fused(P::a * P::a2, odd_a, fused(P::b * P::b2, odd_b, r[5]));
  }
};

// A, its transpose.
struct FromOutputs {
  static constexpr int kFrom = 4, kTo = 6;
  template <typename T>
  FASTMTT_INLINE_HERE static void apply(const Panel<T>* y, Panel<T>* r) {
    using P = Points<T>;
    r[0] = y[0];
    const Panel<T> even_a = fused(P::a2, y[2], y[0]);
    const Panel<T> odd_a = fused(P::a * P::a2, y[3], P::a * y[1]);
    r[1] = even_a + odd_a;
    r[2] = even_a - odd_a;
    const Panel<T> even_b = fused(P::b2, y[2], y[0]);
    const Panel<T> odd_b = fused(P::b * P::b2, y[3], P::b * y[1]);
    r[3] = even_b + odd_b;
    r[4] = even_b - odd_b;
    r[5] = y[3];
  }
};

// G: three taps to six points.
struct ToFilter {
  static constexpr int kFrom = 3, kTo = 6;
  template <typename T>
  FASTMTT_INLINE_HERE static void apply(const Panel<T>* w, Panel<T>* r) {
    using P = Points<T>;
    r[0] = P::at_zero * w[0];
    const Panel<T> even_a = P::at_a * fused(P::a2, w[2], w[0]);
    const Panel<T> odd_a = P::at_a * P::a * w[1];
    r[1] = even_a + odd_a;
    r[2] = even_a - odd_a;
    const Panel<T> even_b = P::at_b * fused(P::b2, w[2], w[0]);
    const Panel<T> odd_b = P::at_b * P::b * w[1];
    r[3] = even_b + odd_b;
    r[4] = even_b - odd_b;
    r[5] = w[2];
  }
};

// G^T.
struct FromFilter {
  static constexpr int kFrom = 6, kTo = 3;
  template <typename T>
  FASTMTT_INLINE_HERE static void apply(const Panel<T>* r, Panel<T>* w) {
    using P = Points<T>;
    const Panel<T> even_a = P::at_a * (r[1] + r[2]), odd_a = P::at_a * (r[1] - r[2]);
    const Panel<T> even_b = P::at_b * (r[3] + r[4]), odd_b = P::at_b * (r[3] - r[4]);
    w[0] = fused(P::at_zero, r[0], even_a + even_b);
    w[1] = fused(P::a, odd_a, P::b * odd_b);
    w[2] = fused(P::a2, even_a, fused(P::b2, even_b, r[5]));
  }
};

// A one-dimensional transform along the columns of a square of panels, then along its rows.
// load(i, j) gives the square's panels, store(i, j, panel) takes the result's.
template <typename Step, typename T, typename Load, typename Store>
FASTMTT_INLINE_HERE void transform(const Load& load, const Store& store) {
  constexpr int kFrom = Step::kFrom, kTo = Step::kTo;
  Panel<T> between[kTo][kFrom];
  for (int j = 0; j < kFrom; ++j) {
    Panel<T> from[kFrom], to[kTo];
    FASTMTT_UNROLL for (int i = 0; i < kFrom; ++i) from[i] = load(i, j);
    Step::apply(from, to);
    FASTMTT_UNROLL for (int i = 0; i < kTo; ++i) between[i][j] = to[i];
  }
  for (int i = 0; i < kTo; ++i) {
    Panel<T> to[kTo];
    Step::apply(between[i], to);
    FASTMTT_UNROLL for (int j = 0; j < kTo; ++j) store(i, j, to[j]);
  }
}

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
