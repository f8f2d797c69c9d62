// Instance norm, ReLU and 2x2 average pool of one panel of an image, and their tangents: whatever
// the ConvNet block does after its products. fastmtt/ops/reference_block.py has the formulas.

#pragma once

#include "passes.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

template <typename Op>
struct Norm : Passes<Op> {
  using typename Passes<Op>::T;
  using typename Passes<Op>::Row;
  using typename Passes<Op>::Pixel;
  using Passes<Op>::kLength;
  using Passes<Op>::for_pools;
  using Passes<Op>::for_row;
  using Passes<Op>::give;
  using Passes<Op>::take;

  struct Statistics {
    Row mean, rstd;
  };

  // In one pass: each row of pixels about the mean so far, rows joined as Chan, Golub and LeVeque
  // (1983) do. No difference of large sums is taken.
  static Statistics statistics(const Grid& g, const T* z) {
    double mean[kLength] = {}, squares[kLength] = {};
    Row about = Row::load(z);
    for (int64_t y = 0; y < g.height; ++y) {
      RowSums<T, 2> sums;
      for_row(g, y, [&](const Pixel& at, int chain) FASTMTT_HERE {
        const Row off = Row::load(z + at.panel) - about;
        sums.chain[chain][0] = sums.chain[chain][0] + off;
        sums.chain[chain][1] = fused(off, off, sums.chain[chain][1]);
      });
      Total<T> totals[2];
      sums.add_to(totals);
      T middle[kLength];
      about.store(middle);
      for (int l = 0; l < kLength; ++l) {
        const double rest = totals[0].lane[l] / g.width;
        const double step = middle[l] + rest - mean[l];
        mean[l] += step / (y + 1);
        squares[l] += totals[1].lane[l] + (step * step * y / (y + 1) - rest * rest) * g.width;
        middle[l] = static_cast<T>(mean[l]);
      }
      about = Row::load(middle);
    }
    T means[kLength], rstds[kLength];
    for (int l = 0; l < kLength; ++l) {
      means[l] = static_cast<T>(mean[l]);
      rstds[l] = static_cast<T>(1 / __builtin_sqrt(squares[l] / g.area() + kEps));
    }
    return {Row::load(means), Row::load(rstds)};
  }

  static void normalise(Grid g, Normalise<T> n) {
    with_present<T>(n.count, [&](auto count) FASTMTT_HERE { normalise(g, n, count); });
  }

  static void normalise_jvp(Grid g, Normalise<T> n, NormaliseJvp<T> j) {
    with_present<T>(n.count, [&](auto count) FASTMTT_HERE { normalise_jvp(g, n, j, count); });
  }

 private:
  template <typename Count>
  static void normalise(Grid g, Normalise<T> n, Count count) {
    const T* z = Lifting<Op>::lower(g, n.m, n.row, n.panel, n.scratch);
    const auto [mean, rstd] = statistics(g, z);
    rstd.store(n.rstd, count);
    const Row gamma = Row::load(n.gamma, count), beta = Row::load(n.beta, count);
    const auto put = [&](const Pixel& at) FASTMTT_HERE {
      const Row xhat = (Row::load(z + at.panel) - mean) * rstd;
      give(g, xhat, n.xhat, count, at);
      return xhat;
    };
    for_pools(
        g,
        [&](const Pixel* four, int64_t pooled) FASTMTT_HERE {
          Row active[4];
          FASTMTT_UNROLL for (int k = 0; k < 4; ++k) {
            active[k] = positive(affine(put(four[k]), gamma, beta));
          }
          average(active).store(n.p + pooled, count);
        },
        put);
  }

  template <typename Count>
  static void normalise_jvp(Grid g, Normalise<T> n, NormaliseJvp<T> j, Count count) {
    const int64_t size = g.area() * kLength;
    T* xhat = n.scratch;
    const T* z_dot = Lifting<Op>::lower(g, j.m_dot, n.row, n.panel, xhat + size);
    const bool fresh = n.m.data != nullptr;
    const T* z = fresh ? Lifting<Op>::lower(g, n.m, n.row, n.panel, xhat + 2 * size) : nullptr;
    const Row none = Row::all(0);
    const Statistics found = fresh ? statistics(g, z) : Statistics{none, Row::load(n.rstd, count)};
    const Row rstd = found.rstd;
    Total<T> totals[2];
    const auto sum = [&](const auto& value) FASTMTT_HERE {
      for (int64_t y = 0; y < g.height; ++y) {
        RowSums<T, 2> sums;
        for_row(g, y, [&](const Pixel& at, int chain) FASTMTT_HERE {
          const Row here = value(at), dot = Row::load(z_dot + at.panel);
          here.store(xhat + at.panel);
          sums.chain[chain][0] = sums.chain[chain][0] + dot;
          sums.chain[chain][1] = fused(dot, here, sums.chain[chain][1]);
        });
        sums.add_to(totals);
      }
    };
    if (fresh) {
      rstd.store(n.rstd, count);
      sum([&](const Pixel& at) FASTMTT_HERE {
        const Row value = (Row::load(z + at.panel) - found.mean) * rstd;
        give(g, value, n.xhat, count, at);
        return value;
      });
    } else {
      sum([&](const Pixel& at) FASTMTT_HERE { return take(g, n.xhat, count, at); });
    }
    const Row mean = totals[0].mean(g.area()), correlation = totals[1].mean(g.area());
    (none - rstd * rstd * correlation).store(j.rstd_dot, count);
    const Row gamma = Row::load(n.gamma, count), beta = Row::load(n.beta, count);
    const Row gamma_dot = Row::load(j.gamma_dot, count), beta_dot = Row::load(j.beta_dot, count);
    const Row minus_mean = none - rstd * mean, minus_correlation = none - rstd * correlation;
    const auto put = [&](const Pixel& at, const Row& here) FASTMTT_HERE {
      const Row dot =
          fused(rstd, Row::load(z_dot + at.panel), fused(minus_correlation, here, minus_mean));
      give(g, dot, j.xhat_dot, count, at);
      return dot;
    };
    for_pools(
        g,
        [&](const Pixel* four, int64_t pooled) FASTMTT_HERE {
          Row active[4], tangent[4];
          FASTMTT_UNROLL for (int k = 0; k < 4; ++k) {
            const Row here = Row::load(xhat + four[k].panel), dot = put(four[k], here);
            const Row value = affine(here, gamma, beta);
            active[k] = positive(value);
            tangent[k] = where_positive(value, fused(dot, gamma, affine(here, gamma_dot, beta_dot)));
          }
          average(active).store(n.p + pooled, count);
          average(tangent).store(j.p_dot + pooled, count);
        },
        [&](const Pixel& at) FASTMTT_HERE { put(at, Row::load(xhat + at.panel)); });
  }
};

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
