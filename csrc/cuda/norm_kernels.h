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
//
// Mean and variance take one pass, and are as exact as of two: what registers hold has its mean first
// and its squares about it, and such are put together in double, in which no float32 is lost.
template <typename T, bool kTangent, bool kWhole>
struct Norm {
  static constexpr int kThreads = kPlaneThreads, kStages = 1;
  static constexpr int kResident = kPlaneResident<T, kTangent>;
  static constexpr int kCount = kOwn<T>;
  using Own = T[kCount];
  using Part = cuda::Part<T, kWhole>;
  struct Values {
    Own z[4], z_dot[kTangent ? 4 : 1];
  };
  enum { kShift, kSum, kSquares };                        // parts, while there is no mean
  enum { kMean, kScale, kRstd, kDotMean, kCorrelation };  // results: xhat = (z - mean) scale
  struct Shared {
    PlaneSums<T, 3, 2, kTangent ? 5 : 2> sums;
    int pixels[kThreads];  // of a row
  };
  struct Thread {
    Values held[kHeld];
  };

  FASTMTT_ANYWHERE int64_t items(Stage<0>) const { return planes.items(); }

  template <class Block>
  FASTMTT_BODY void run(Stage<0>, Block& block, int64_t item) const {
    Shared& shared = block.shared;
    auto& sums = shared.sums;
    const auto part = [&](int thread) { return Part(planes, item, thread); };
    block.each([&](int thread, Thread& mine) { sum(part(thread), mine, shared); });
    if (!given) {
      sums.add(
          block, planes, [&](int row, int column, auto& sum) { gather(shared, row, column, sum); },
          [&](int thread, auto&, const auto& sum) { finish(part(thread), sums, sum); });
    }
    if constexpr (kTangent) {
      block.each([&](int thread, Thread& mine) { correlate(part(thread), mine, sums); });
      sums.add(block, planes, sums.plain(planes), [&](int thread, auto&, const auto& sum) {
        finish_tangent(part(thread), sums, sum);
      });
    }
    block.each([&](int thread, Thread& mine) { write(part(thread), mine, sums); });
  }

 private:
  using Sums = decltype(Shared::sums);

  // Reads a window of z_dot, which may be the sum of two, and of z in the other's registers.
  FASTMTT_BODY auto reading(const Part& part) const {
    const T* from = part.in(z, planes.area());
    const T *dots = part.in(z_dot, planes.area()), *more = part.in(z_dot_more, planes.area());
    return [=](auto stage, const Window& window, Values& values) {
      if constexpr (kTangent) {
        if (stage == 0) part.load(dots, window, values.z_dot);
        if (stage == 0 && more != nullptr) part.load(more, window, values.z);
        FASTMTT_UNROLL for (int corner = 0; corner < 4; ++corner) {
          FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
            if (stage == 1 && more != nullptr) values.z_dot[corner][i] += values.z[corner][i];
          }
        }
      }
      if (stage == 1) part.load(from, window, values.z);
    };
  }

  FASTMTT_BODY void sum(const Part& part, Thread& mine, Shared& shared) const {
    const auto read = reading(part);
    part.keep(mine.held, read);
    if (given) return take_known(part, shared.sums);
    Moments all;
    part.rounds(mine.held, read, [&](const Window& first) {
      const Moments round = moments(part, mine, first);
      all.pixels == 0 ? void(all = round) : all.add(round);
    });
    shared.sums.put(kShift, part.thread, all.mean);
    shared.sums.put(kSum, part.thread, all.sum);
    shared.sums.put(kSquares, part.thread, all.squares);
    if (planes.lane(part.thread) == 0) shared.pixels[planes.row(part.thread)] = all.pixels;
  }

  // Of some pixels; the sum and the squares less the mean, which T has but nearly.
  struct Moments {
    FASTMTT_BODY void add(const Moments& more) {
      pixels += more.pixels;
      FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
        const double apart = double(more.mean[i]) - mean[i];
        const double added = std::fma(double(more.pixels), apart, double(more.sum[i]));
        const double total = sum[i] + added;
        const double about = squares[i] + more.squares[i] + apart * (added + more.sum[i]);
        const T near = mean[i] + T(total) / pixels;
        const double move = double(near) - mean[i], left = total - pixels * move;
        mean[i] = near;
        sum[i] = T(left);
        squares[i] = T(about - move * (total + left));
      }
    }

    Own mean = {}, sum = {}, squares = {};
    int pixels = 0;
  };

  // Of the windows held, `first` on: their mean, and then the rest about it.
  static FASTMTT_BODY Moments moments(const Part& part, Thread& mine, const Window& first) {
    Moments of;
    part.each_held(mine.held, first, [&](const Window& window, const Values& values) {
      of.pixels += (window.below ? 2 : 1) * (window.right ? 2 : 1);
      FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {  // beyond the plane all is zero
        of.mean[i] += values.z[0][i] + values.z[1][i] + values.z[2][i] + values.z[3][i];
      }
    });
    const T share = T(1) / of.pixels;
    for (T& mean : of.mean) mean *= share;
    part.each_held(mine.held, first, [&](const Window& window, const Values& values) {
      FASTMTT_UNROLL for (int corner = 0; corner < 4; ++corner) {
        if (!window.holds(corner)) continue;
        FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
          const T off = values.z[corner][i] - of.mean[i];
          of.sum[i] += off;
          of.squares[i] = std::fma(off, off, of.squares[i]);
        }
      }
    });
    return of;
  }

  FASTMTT_BODY void take_known(const Part& part, Sums& sums) const {
    if (const T* place = part.sum_of(known_rstd)) {
      sums.results[kMean][part.thread] = 0;
      sums.results[kScale][part.thread] = 1;
      sums.results[kRstd][part.thread] = *place;
    }
  }

  // A row's pixels less the first row's shift, and their squares.
  FASTMTT_BODY void gather(const Shared& shared, int row, int column, double (&sum)[2]) const {
    const auto part = [&](int k, int row) { return shared.sums.part(k, planes, row, column); };
    const double shift = part(kShift, row) - part(kShift, 0), count = shared.pixels[row];
    const double own = part(kSum, row);
    sum[0] += std::fma(count, shift, own);
    sum[1] += std::fma(shift, std::fma(count, shift, 2 * own), part(kSquares, row));
  }

  FASTMTT_BODY void finish(const Part& part, Sums& sums, const double (&sum)[2]) const {
    const double mean = sum[0] * planes.inverse_area;
    const double variance = std::fma(-mean, mean, sum[1] * planes.inverse_area);
    const T r = T(1) / std::sqrt(T(variance < 0 ? 0 : variance) + T(kEps));
    sums.results[kMean][part.thread] = T(sums.part(kShift, planes, 0, part.thread) + mean);
    sums.results[kScale][part.thread] = r;
    if constexpr (kTangent) sums.results[kRstd][part.thread] = r;
    if (T* place = part.sum_of(rstd)) *place = r;
  }

  // Sums of z_dot and of xhat z_dot; of xhat, so that no bit depends on whether it was given.
  FASTMTT_BODY void correlate(const Part& part, Thread& mine, Sums& sums) const {
    Own mean, scale, all = {}, products = {};
    sums.result(kMean, planes, part.thread, mean);
    sums.result(kScale, planes, part.thread, scale);
    part.visit(mine.held, reading(part), [&](const Window&, const Values& values) {
      FASTMTT_UNROLL for (int corner = 0; corner < 4; ++corner) {  // beyond the plane all is zero
        FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
          const T x = (values.z[corner][i] - mean[i]) * scale[i], dot = values.z_dot[corner][i];
          all[i] += dot;
          products[i] = std::fma(x, dot, products[i]);
        }
      }
    });
    sums.put(0, part.thread, all);
    sums.put(1, part.thread, products);
  }

  FASTMTT_BODY void finish_tangent(const Part& part, Sums& sums, const double (&sum)[2]) const {
    const T r = sums.results[kRstd][part.thread], correlation = T(sum[1] * planes.inverse_area);
    sums.results[kDotMean][part.thread] = T(sum[0] * planes.inverse_area);
    sums.results[kCorrelation][part.thread] = correlation;
    if (T* place = part.sum_of(rstd_dot)) *place = -r * r * correlation;
  }

  FASTMTT_BODY void write(const Part& part, Thread& mine, const Sums& sums) const {
    T *xhats = part.in(xhat, planes.area()), *ps = part.in(p, planes.pools());
    Own g, b, mean, scale;
    part.load_parameter(gamma, g);
    part.load_parameter(beta, b);
    sums.result(kMean, planes, part.thread, mean);
    sums.result(kScale, planes, part.thread, scale);
    const Tangent tangent(*this, part, sums);
    part.visit(mine.held, reading(part), [&](const Window& window, const Values& values) {
      Own sum = {}, sum_dot = {};
      FASTMTT_UNROLL for (int corner = 0; corner < 4; ++corner) {
        if (!window.holds(corner)) continue;
        Own x, n_dot;
        FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
          x[i] = (values.z[corner][i] - mean[i]) * scale[i];
        }
        if (xhats != nullptr) part.store(x, xhats + part.corner(window, corner));
        if constexpr (kTangent) {
          tangent.move(part, values.z_dot[corner], x, g, part.corner(window, corner), n_dot);
        }
        FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
          const T n = affine(x[i], g[i], b[i]);
          if (closed(n)) continue;
          sum[i] += n;
          if constexpr (kTangent) sum_dot[i] += n_dot[i];
        }
      }
      if (!window.holds(3)) return;  // cut by an edge: no pool
      for (T& s : sum) s *= T(0.25);
      part.store(sum, ps + part.pooled(window));
      if constexpr (kTangent) {
        for (T& s : sum_dot) s *= T(0.25);
        part.store(sum_dot, tangent.p_dots + part.pooled(window));
      }
    });
  }

  // What the tangent adds to the writing of a thread's part.
  struct Tangent {
    FASTMTT_BODY Tangent(const Norm& norm, const Part& part, const Sums& sums) {
      if constexpr (kTangent) {
        sums.result(kRstd, norm.planes, part.thread, rstd);
        sums.result(kDotMean, norm.planes, part.thread, mean);
        sums.result(kCorrelation, norm.planes, part.thread, correlation);
        xhat_dots = part.in(norm.xhat_dot, norm.planes.area());
        p_dots = part.in(norm.p_dot, norm.planes.pools());
        part.load_parameter(norm.gamma_dot, gamma_dot);
        part.load_parameter(norm.beta_dot, beta_dot);
      }
    }
    // A pixel's xhat_dot, and from it that of the affine output.
    FASTMTT_BODY void move(
        const Part& part, const Own& z_dot, const Own& x, const Own& gamma, int at,
        Own& n_dot) const {
      Own x_dot;
      FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
        x_dot[i] = rstd[i] * std::fma(-x[i], correlation[i], z_dot[i] - mean[i]);
        n_dot[i] = std::fma(x_dot[i], gamma[i], std::fma(x[i], gamma_dot[i], beta_dot[i]));
      }
      part.store(x_dot, xhat_dots + at);
    }

    Own mean, correlation, rstd, gamma_dot, beta_dot;
    T *xhat_dots, *p_dots;
  };

 public:
  Planes<T> planes;
  bool given;
  Students<const T> z, z_dot, z_dot_more;  // the last may be null
  Students<const T> gamma, gamma_dot, beta, beta_dot, known_rstd;
  Students<T> xhat, xhat_dot, rstd, rstd_dot, p, p_dot;
};

}  // namespace fastmtt::cuda
