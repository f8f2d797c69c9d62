// Instance norm, ReLU and 2x2 average pool of a convolution, and the tangents of the three.
// fastmtt/ops/reference_block.py has the formulas.

#pragma once

#include <cmath>
#include <cstdint>

#include "kernel.h"
#include "planes.h"

namespace fastmtt::cuda {

constexpr double kEps = 1e-5;

// z is read before xhat is written, pixel by pixel, so that they may be the same memory; z_dot and
// xhat_dot too. A tangent's z may be the normalised one already, with its rstd.
template <typename T, bool kTangent>
struct Norm {
  static constexpr int kThreads = kPlaneThreads, kResident = kTangent ? 1 : 2, kStages = 1;
  static constexpr int kCount = kQuad<T>;
  using Quad = T[kCount];
  struct Values {
    T z[4][kCount], z_dot[kTangent ? 4 : 1][kCount];
  };
  struct Shared {
    PlaneSums<T, kTangent ? 2 : 1> sums;
  };
  struct Thread {
    Values held[kHeld];
    Quad mean, scale, rstd;  // xhat = (z - mean) scale
  };

  FASTMTT_ANYWHERE int64_t items(Stage<0>) const { return planes.items(); }

  template <class Block>
  FASTMTT_BODY void run(Stage<0>, Block& block, int64_t item) const {
    if (given) {
      block.each([&](int thread, Thread& mine) {
        const Part<T> part(planes, item, thread);
        part.fill(mine.held, reading(part));
        part.in(known_rstd, 1).load(0, mine.rstd);
        FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) mine.mean[i] = 0, mine.scale[i] = 1;
      });
    } else {
      statistics(block, item);
    }
    if constexpr (kTangent) correlate(block, item);
    block.each([&](int thread, Thread& mine) {
      write(Part<T>(planes, item, thread), mine, block.shared);
    });
  }

 private:
  // Reads a window of z, and of z_dot, which may be the sum of two.
  FASTMTT_BODY auto reading(const Part<T>& part) const {
    const auto zs = part.in(z, planes.area());
    const auto z_dots = part.in(z_dot, planes.area()), more = part.in(z_dot_more, planes.area());
    return [=](const Window& window, Values& values) {
      zs.load(window, values.z);
      if constexpr (kTangent) {
        z_dots.load(window, values.z_dot);
        if (!more.there()) return;
        T rest[4][kCount];
        more.load(window, rest);
        FASTMTT_UNROLL for (int corner = 0; corner < 4; ++corner) {
          FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) values.z_dot[corner][i] += rest[corner][i];
        }
      }
    };
  }

  // First the mean, then the squares about it: no difference of large sums is taken.
  template <class Block>
  FASTMTT_BODY void statistics(Block& block, int64_t item) const {
    auto& sums = block.shared.sums;
    block.each([&](int thread, Thread& mine) {
      const Part<T> part(planes, item, thread);
      const auto read = reading(part);
      Quad sum = {};
      part.fill(mine.held, read);
      part.visit(mine.held, read, [&](const Window&, const Values& values) {
        for (const Quad& z : values.z) {
          FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) sum[i] += z[i];
        }
      });
      sums.put(0, thread, sum);
    });
    sums.add(block, planes, 1);
    block.each([&](int thread, Thread& mine) {
      const Part<T> part(planes, item, thread);
      sums.means(0, planes, thread, mine.mean);
      Quad squares = {};
      part.visit(mine.held, reading(part), [&](const Window& window, const Values& values) {
        FASTMTT_UNROLL for (int corner = 0; corner < 4; ++corner) {
          if (!window.holds(corner)) continue;
          FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
            const T off = values.z[corner][i] - mine.mean[i];
            squares[i] = std::fma(off, off, squares[i]);
          }
        }
      });
      sums.put(0, thread, squares);
    });
    sums.add(block, planes, 1);
    block.each([&](int thread, Thread& mine) {
      const Part<T> part(planes, item, thread);
      sums.means(0, planes, thread, mine.rstd);
      for (T& r : mine.rstd) r = T(1) / std::sqrt(r + T(kEps));
      FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) mine.scale[i] = mine.rstd[i];
      if (thread < planes.lanes) part.in(rstd, 1).store(mine.rstd, 0);
    });
  }

  // Means of z_dot and of xhat z_dot.
  template <class Block>
  FASTMTT_BODY void correlate(Block& block, int64_t item) const {
    auto& sums = block.shared.sums;
    block.each([&](int thread, Thread& mine) {
      const Part<T> part(planes, item, thread);
      Quad all = {}, products = {};
      part.visit(mine.held, reading(part), [&](const Window&, const Values& values) {
        FASTMTT_UNROLL for (int corner = 0; corner < 4; ++corner) {  // beyond the plane z_dot is zero
          FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
            const T dot = values.z_dot[corner][i];
            all[i] += dot;
            products[i] = std::fma(normalised(mine, values, corner, i), dot, products[i]);
          }
        }
      });
      sums.put(0, thread, all);
      sums.put(1, thread, products);
    });
    sums.add(block, planes);
  }

  static FASTMTT_BODY T normalised(const Thread& mine, const Values& values, int corner, int i) {
    return (values.z[corner][i] - mine.mean[i]) * mine.scale[i];
  }

  FASTMTT_BODY void write(const Part<T>& part, Thread& mine, const Shared& shared) const {
    const auto xhats = part.in(given ? Students<T>{nullptr, 0} : xhat, planes.area());
    const auto ps = part.in(p, planes.pools());
    Quad g, b;
    part.load(gamma, g);
    part.load(beta, b);
    const Tangent tangent(*this, part, mine, shared);
    part.visit(mine.held, reading(part), [&](const Window& window, const Values& values) {
      T active[4][kCount], active_dot[4][kCount];
      FASTMTT_UNROLL for (int corner = 0; corner < 4; ++corner) {
        if (!window.holds(corner)) continue;
        const int pixel = window.pixel(corner);
        Quad x;
        FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) x[i] = normalised(mine, values, corner, i);
        if (xhats.there()) xhats.store(x, pixel);
        if constexpr (kTangent) tangent.move(values.z_dot[corner], x, pixel, active_dot[corner]);
        FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
          const T n = affine(x[i], g[i], b[i]);
          active[corner][i] = closed(n) ? T(0) : n;
          if (kTangent && closed(n)) active_dot[corner][i] = 0;
        }
      }
      if (!window.holds(3)) return;
      average(active, ps, window);
      if constexpr (kTangent) average(active_dot, tangent.p_dots, window);
    });
  }

  static FASTMTT_BODY void average(
      const T (&active)[4][kCount], const Pixels<T>& to, const Window& window) {
    Quad mean;
    FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
      mean[i] = T(0.25) * ((active[0][i] + active[1][i]) + (active[2][i] + active[3][i]));
    }
    to.store(mean, window.pooled);
  }

  // What the tangent adds to the writing of a thread's part.
  struct Tangent {
    FASTMTT_BODY Tangent(
        const Norm& norm, const Part<T>& part, const Thread& mine, const Shared& shared) {
      if constexpr (kTangent) {
        const auto& planes = norm.planes;
        shared.sums.means(0, planes, part.thread, mean);
        shared.sums.means(1, planes, part.thread, correlation);
        Quad rstd_dot;
        FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
          rstd[i] = mine.rstd[i];
          rstd_dot[i] = -rstd[i] * rstd[i] * correlation[i];
        }
        if (part.thread < planes.lanes) part.in(norm.rstd_dot, 1).store(rstd_dot, 0);
        xhat_dots = part.in(norm.xhat_dot, planes.area());
        p_dots = part.in(norm.p_dot, planes.pools());
        part.load(norm.gamma, gamma);
        part.load(norm.gamma_dot, gamma_dot);
        part.load(norm.beta_dot, beta_dot);
      }
    }
    // A pixel's xhat_dot, and from it that of the affine output.
    FASTMTT_BODY void move(const Quad& z_dot, const Quad& x, int pixel, Quad& n_dot) const {
      Quad x_dot;
      FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
        x_dot[i] = rstd[i] * std::fma(-x[i], correlation[i], z_dot[i] - mean[i]);
        n_dot[i] = std::fma(x_dot[i], gamma[i], std::fma(x[i], gamma_dot[i], beta_dot[i]));
      }
      xhat_dots.store(x_dot, pixel);
    }

    Quad mean, correlation, rstd, gamma, gamma_dot, beta_dot;
    Pixels<T> xhat_dots, p_dots;
  };

 public:
  Planes<T> planes;
  bool given;
  Students<const T> z, z_dot, z_dot_more;  // the last may be null
  Students<const T> gamma, gamma_dot, beta, beta_dot, known_rstd;
  Students<T> xhat, xhat_dot, rstd, rstd_dot, p, p_dot;
};

}  // namespace fastmtt::cuda
