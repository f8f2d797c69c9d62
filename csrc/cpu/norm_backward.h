// The backward of one panel's norm, ReLU and pool, and its tangent. fastmtt/ops/reference_block.py
// has the formulas; here they are per channel, with
//   u = gn - mean(gn) - xhat * mean(gn * xhat),   gn the cotangent of the norm's affine output,
// so that the cotangent of the convolution's output is rstd * gamma * u.

#pragma once

#include "passes.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

template <typename Op>
struct NormBackward : Passes<Op> {
  using typename Passes<Op>::T;
  using typename Passes<Op>::Row;
  using typename Passes<Op>::Pixel;
  using Passes<Op>::kLength;
  using Passes<Op>::for_pixels;
  using Passes<Op>::gather_rest;
  using Passes<Op>::gathered;

  static void backward(Grid g, Backward<T> b) {
    with_present<T>(b.count, [&](auto count) FASTMTT_HERE { backward(g, b, count); });
  }

  static void backward_jvp(Grid g, Backward<T> b, BackwardJvp<T> j) {
    with_present<T>(b.count, [&](auto count) FASTMTT_HERE { backward_jvp(g, b, j, count); });
  }

 private:
  // A pool's cotangent goes to its four pixels in quarters: sums are taken of the whole.
  static void share(const Total<T>& total, int64_t count, double* to) {
    for (int64_t l = 0; l < count; ++l) to[l] = 0.25 * total.lane[l];
  }

  // A cotangent of the convolution's output, linear in gp' (a pool's cotangent where the ReLU is
  // open, else 0) and xhat, and its factors:
  //   gz = gp gp' + xhat xhat + rest = gain (gp' / 4 - mean(gn) - xhat mean(gn * xhat))
  struct Factors {
    Row gp, xhat, rest;
    Factors(const Row& gain, const Total<T>* totals, int64_t area)
        : gp(T(0.25) * gain),
          xhat(Row::all(0) - gp * totals[1].mean(area)),
          rest(Row::all(0) - gp * totals[0].mean(area)) {}
  };

  template <typename Count>
  static void backward(Grid g, Backward<T> b, Count count) {
    T* xhat = b.scratch;
    T* gz = xhat + g.area() * kLength;
    const Row gamma = Row::load(b.gamma, count), beta = Row::load(b.beta, count);
    const auto open = [&](const Row& here, int64_t pooled) FASTMTT_HERE {
      return where_positive(affine(here, gamma, beta), Row::load(b.gp + pooled, count));
    };
    Total<T> totals[2];
    Passes<Op>::template sum_pools<2>(g, totals, [&](const Pixel& at, int64_t pooled, Row* sums) FASTMTT_HERE {
      const Row here = gathered(g, b.xhat, count, at, xhat);
      const Row gn = open(here, pooled);
      sums[0] = sums[0] + gn;
      sums[1] = fused(gn, here, sums[1]);
    });
    gather_rest(g, b.xhat, count, xhat);
    share(totals[0], b.count, b.gbeta);
    share(totals[1], b.count, b.ggamma);
    const Factors f(Row::load(b.rstd, count) * gamma, totals, g.area());
    for_pixels(
        g,
        [&](int64_t at, int64_t pooled) FASTMTT_HERE {
          const Row here = Row::load(xhat + at);
          fused(f.gp, open(here, pooled), fused(f.xhat, here, f.rest)).store(gz + at);
        },
        [&](int64_t at) FASTMTT_HERE {
          fused(f.xhat, Row::load(xhat + at), f.rest).store(gz + at);
        });
    Lifting<Op>::lower_transposed(g, gz, b.z, b.z_pairs, b.row, b.panel);
  }

  template <typename Count>
  static void backward_jvp(Grid g, Backward<T> b, BackwardJvp<T> j, Count count) {
    const int64_t size = g.area() * kLength;
    T *xhat = b.scratch, *xhat_dot = xhat + size;
    T *gz = xhat + 2 * size, *gz_dot = xhat + 3 * size;
    const Row gamma = Row::load(b.gamma, count), beta = Row::load(b.beta, count);
    const auto open = [&](const Row& here, int64_t pooled, Row* gn) FASTMTT_HERE {
      const Row value = affine(here, gamma, beta);
      gn[0] = where_positive(value, Row::load(b.gp + pooled, count));
      gn[1] = where_positive(value, Row::load(j.gp_dot + pooled, count));
    };
    Total<T> totals[4];
    Passes<Op>::template sum_pools<4>(g, totals, [&](const Pixel& at, int64_t pooled, Row* sums) FASTMTT_HERE {
      const Row here = gathered(g, b.xhat, count, at, xhat);
      const Row dot = gathered(g, j.xhat_dot, count, at, xhat_dot);
      Row gn[2];
      open(here, pooled, gn);
      sums[0] = sums[0] + gn[0];
      sums[1] = fused(gn[0], here, sums[1]);
      sums[2] = sums[2] + gn[1];
      sums[3] = fused(gn[1], here, fused(gn[0], dot, sums[3]));
    });
    gather_rest(g, b.xhat, count, xhat);
    gather_rest(g, j.xhat_dot, count, xhat_dot);
    share(totals[2], b.count, b.gbeta);
    share(totals[3], b.count, b.ggamma);
    const Row rstd = Row::load(b.rstd, count), rstd_dot = Row::load(j.rstd_dot, count);
    const Row gain = rstd * gamma;
    const Row gain_dot = fused(rstd, Row::load(j.gamma_dot, count), rstd_dot * gamma);
    const Factors f(gain, totals, g.area());
    const Factors by_gain(gain_dot, totals, g.area()), by_sums(gain, totals + 2, g.area());
    const Row xhat_factor = by_gain.xhat + by_sums.xhat, rest = by_gain.rest + by_sums.rest;
    const auto write = [&](int64_t at, const Row& gn, const Row& gn_dot) FASTMTT_HERE {
      const Row here = Row::load(xhat + at), dot = Row::load(xhat_dot + at);
      fused(f.gp, gn, fused(f.xhat, here, f.rest)).store(gz + at);
      const Row moved = fused(f.xhat, dot, fused(xhat_factor, here, rest));
      fused(by_gain.gp, gn, fused(f.gp, gn_dot, moved)).store(gz_dot + at);
    };
    for_pixels(
        g,
        [&](int64_t at, int64_t pooled) FASTMTT_HERE {
          Row gn[2];
          open(Row::load(xhat + at), pooled, gn);
          write(at, gn[0], gn[1]);
        },
        [&](int64_t at) FASTMTT_HERE { write(at, Row::all(0), Row::all(0)); });
    Lifting<Op>::lower_transposed(g, gz, b.z, b.z_pairs, b.row, b.panel);
    Lifting<Op>::lower_transposed(g, gz_dot, j.z_dot, j.z_dot_pairs, b.row, b.panel);
  }
};

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
