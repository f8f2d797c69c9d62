// What becomes of a student's filters for one image, and of the products with its patches: all that
// is small. In double, eight output channels at a time (patch_kernels.h has the formulas).

#pragma once

#include "patches.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

template <typename T>
struct Folding {
  using Eight = Panel<double>;
  static constexpr int64_t kLength = kLanes<T>;

  const PatchGrid<T>& g;
  const PatchFilters<T>& filters;
  const PatchRoom<T>& room;

  // Statistics and the factor of the affine output, y.
  void normalise(const PatchImage<T>& image) const {
    with_covariance(filters.u, room.cu);
    for (int64_t c = 0; c < g.outs; c += kEight) {
      const double *u = at(filters.u, c), *cu = at(room.cu, c);
      Eight variance = Eight::all(0);
      for (int64_t j = 0; j < g.taps; ++j) variance = fused(row(u, j), row(cu, j), variance);
      double rstd[kEight];
      variance.store(rstd);
      for (int64_t l = 0; l < kEight; ++l) {
        rstd[l] = 1 / __builtin_sqrt((rstd[l] < 0 ? 0 : rstd[l]) + kEps);
      }
      const Eight r = Eight::load(rstd), gain = of_channels(filters.gamma, c) * r;
      r.store(room.rstd + c);
      gain.store(room.gain + c);
      give(r, image.rstd, c);
      fill(room.value, c, of_channels(filters.beta, c), [&](int64_t j) FASTMTT_HERE {
        return gain * row(u, j);
      });
      if (image.xhat == nullptr) continue;
      fill(room.xhat, c, Eight::all(0), [&](int64_t j) FASTMTT_HERE { return r * row(u, j); });
    }
  }

  // Their tangents, after them.
  void tangents(const PatchImage<T>& image) const {
    with_covariance(filters.u_dot, room.cu_dot);
    for (int64_t c = 0; c < g.outs; c += kEight) {
      const Eight r = Eight::load(room.rstd + c), gamma = of_channels(filters.gamma, c);
      const Eight gamma_dot = of_channels(filters.gamma_dot, c), r_dot = tangent_of(r, c);
      fused(gamma, r_dot, gamma_dot * r).store(room.gain_dot + c);
      give(r_dot, image.rstd_dot, c);
      const Forms forms(*this, c);
      if (filters.beta_dot != nullptr) {
        fill(room.tangent, c, of_channels(filters.beta_dot, c), [&](int64_t j) FASTMTT_HERE {
          return fused(gamma_dot, forms.a(j), gamma * forms.b(j));
        });
      }
      if (image.xhat_dot == nullptr) continue;
      fill(room.xhat_dot, c, Eight::all(0), [&](int64_t j) FASTMTT_HERE { return forms.b(j); });
    }
  }

  // Transposed filters times gains: pools' cotangents go to four pixels, in quarters.
  void flip() const { flip(room.gain, filters.flipped, nullptr, nullptr, room.back); }
  void flip_dot() const {
    flip(room.gain_dot, filters.flipped, room.gain, filters.flipped_dot, room.back_dot);
  }

  // From Q, the cotangents of parameters and what the norm takes from patches'.
  void backward(const PatchImage<T>& image) const {
    for (int64_t c = 0; c < g.outs; c += kEight) {
      const Eight gain = Eight::load(room.gain + c);
      const Sums sums(*this, room.q, c);
      const Primal forms(*this, c);
      Eight by_gamma = Eight::all(0);
      for (int64_t j = 0; j < g.taps; ++j) {
        by_gamma = fused(forms.a(j), sums.quarter(j), by_gamma);
      }
      const Eight all = sums.quarter(g.taps);
      if (image.gw != nullptr) {
        give(by_gamma, image.ggamma, c);
        give(all, image.gbeta, c);
        for (int64_t j = 0; j < g.taps; ++j) {
          give(gain * (sums.quarter(j) - forms.ca(j) * by_gamma), image.gw + j * g.out, c);
        }
      }
      if (image.ga != nullptr) pull(forms, gain, by_gamma, all, room.by_u, c);
    }
  }

  void backward_jvp(const PatchImage<T>& image) const {
    for (int64_t c = 0; c < g.outs; c += kEight) {
      const Eight gain = Eight::load(room.gain + c), gain_dot = Eight::load(room.gain_dot + c);
      const Sums sums(*this, room.q, c);
      const Sums dots(*this, room.q_dot, c);
      const Forms forms(*this, c);
      Eight by_gamma = Eight::all(0), by_gamma_dot = Eight::all(0);
      for (int64_t j = 0; j < g.used; ++j) {
        by_gamma = fused(forms.a(j), sums.quarter(j), by_gamma);
        by_gamma_dot = fused(forms.b(j), sums.quarter(j), by_gamma_dot);
        by_gamma_dot = fused(forms.a(j), dots.quarter(j), by_gamma_dot);
      }
      const Eight all = sums.quarter(g.taps), all_dot = dots.quarter(g.taps);
      if (image.gw != nullptr) {
        give(by_gamma_dot, image.ggamma, c);
        give(all_dot, image.gbeta, c);
        for (int64_t j = 0; j < g.taps; ++j) {
          const Eight inner = sums.quarter(j) - forms.ca(j) * by_gamma;
          const Eight inner_dot =
              dots.quarter(j) - forms.cb(j) * by_gamma - forms.ca(j) * by_gamma_dot;
          Eight total = fused(gain_dot, inner, gain * inner_dot);
          if (g.tangents()) {  // the image's tangent with the primal's cotangent
            const int64_t k = g.taps + 1 + j;
            total = fused(gain, sums.quarter(k) - forms.ca(k) * by_gamma, total);
          }
          give(total, image.gw + j * g.out, c);
        }
      }
      if (image.ga_dot != nullptr) {
        const Eight mean = fused(gain_dot, all, gain * all_dot);
        fill(room.by_u, c, share() * mean, [&](int64_t j) FASTMTT_HERE {
          const Eight by_a = fused(gain_dot, by_gamma, gain * by_gamma_dot);
          return share() * fused(by_a, forms.a(j), gain * by_gamma * forms.b(j));
        });
      }
      if (image.ga_dot == nullptr && image.ga == nullptr) continue;
      pull(forms, gain, by_gamma, all, room.by_u_dot, c);
    }
  }

 private:
  // The factors of xhat and xhat_dot, and the covariance times them.
  struct Primal {
    Primal(const Folding& f, int64_t c)
        : u(f.at(f.filters.u, c)), cu(f.at(f.room.cu, c)), r(Eight::load(f.room.rstd + c)) {}
    FASTMTT_INLINE_HERE Eight a(int64_t j) const { return r * row(u, j); }
    FASTMTT_INLINE_HERE Eight ca(int64_t j) const { return r * row(cu, j); }
    const double *u, *cu;
    Eight r;
  };
  struct Forms : Primal {
    Forms(const Folding& f, int64_t c)
        : Primal(f, c),
          u_dot(f.at(f.filters.u_dot, c)),
          cu_dot(f.at(f.room.cu_dot, c)),
          correlation(f.correlation(c)) {}
    using Primal::a, Primal::ca, Primal::r;
    FASTMTT_INLINE_HERE Eight b(int64_t j) const {
      return r * (row(u_dot, j) - correlation * a(j));
    }
    FASTMTT_INLINE_HERE Eight cb(int64_t j) const {
      return r * (row(cu_dot, j) - correlation * ca(j));
    }
    const double *u_dot, *cu_dot;
    Eight correlation;
  };

  // What the norm takes from the cotangent of z: a factor of X, to be multiplied by filters.
  void pull(
      const Primal& forms, const Eight& gain, const Eight& by_gamma, const Eight& all, T* to,
      int64_t c) const {
    fill(to, c, share() * gain * all, [&](int64_t j) FASTMTT_HERE {
      return share() * gain * by_gamma * forms.a(j);
    });
  }

  // Rows of Q, of eight channels; a pool's cotangent is that of its pixels' mean.
  struct Sums {
    Sums(const Folding& f, const T* q, int64_t c)
        : q(q + (c / kLength * f.g.depth) * kLength + c % kLength),
          stride(f.g.outs * f.g.depth),
          count(f.g.strips < kSums ? f.g.strips : kSums) {}
    FASTMTT_INLINE_HERE Eight quarter(int64_t j) const {
      Eight sum = wide(q + j * kLength, kEight);
      for (int64_t i = 1; i < count; ++i) sum = sum + wide(q + i * stride + j * kLength, kEight);
      return 0.25 * sum;
    }
    const T* q;
    int64_t stride, count;
  };

  FASTMTT_INLINE_HERE static Eight row(const double* matrix, int64_t j) {
    return Eight::load(matrix + j * kEight);
  }
  FASTMTT_INLINE_HERE static Eight wide(const T* from, int64_t count) {
    double lanes[kEight] = {};
    for (int64_t l = 0; l < count; ++l) lanes[l] = from[l];
    return Eight::load(lanes);
  }
  const double* at(const double* matrix, int64_t c) const { return matrix + c * g.depth; }
  int64_t present(int64_t c) const {
    return g.out - c < kEight ? (g.out > c ? g.out - c : 0) : kEight;
  }
  Eight of_channels(const T* values, int64_t c) const { return wide(values + c, present(c)); }
  Eight share() const { return Eight::all(-1.0 / static_cast<double>(g.area)); }

  template <typename E>
  void give(const Eight& x, E* to, int64_t c) const {
    if (to == nullptr) return;
    double lanes[kEight];
    x.store(lanes);
    for (int64_t l = 0; l < present(c); ++l) to[c + l] = static_cast<E>(lanes[l]);
  }

  // A factor's rows for eight channels, that of the ones apart, and zeros to the end.
  template <typename Value>
  FASTMTT_INLINE_HERE void fill(T* factor, int64_t c, const Eight& ones, const Value& value) const {
    T* to = factor + (c / kLength * g.depth) * kLength + c % kLength;
    for (int64_t j = 0; j < g.depth; ++j, to += kLength) {
      double lanes[kEight];
      (j == g.taps ? ones : j < g.used ? value(j) : Eight::all(0)).store(lanes);
      for (int64_t l = 0; l < kEight; ++l) to[l] = static_cast<T>(lanes[l]);
    }
  }

  void with_covariance(double* u, double* cu) const {
    const Product product = {{room.covariance, 0, g.depth * kEight}, {u, 0, g.depth * kEight}};
    multiply<Exact<double>>(
        &product, 1, 0, 0, g.depth, g.used, g.outs / kEight, {cu, 0, g.depth * kEight}, false);
  }
  Eight correlation(int64_t c) const {
    const double *u = at(filters.u, c), *cu_dot = at(room.cu_dot, c);
    Eight sum = Eight::all(0);
    for (int64_t j = 0; j < g.taps; ++j) sum = fused(row(u, j), row(cu_dot, j), sum);
    return Eight::load(room.rstd + c) * sum;
  }
  Eight tangent_of(const Eight& r, int64_t c) const {
    return Eight::all(0) - r * r * correlation(c);
  }

  void flip(
      const double* gains, const T* filters, const double* others, const T* directions,
      T* to) const {
    for (int64_t panel = 0; panel < g.tap_panels; ++panel) {
      for (int64_t c = 0; c < g.outs; ++c) {
        const int64_t at = (panel * g.outs + c) * kLength;
        auto scaled = static_cast<T>(0.25 * gains[c]) * Panel<T>::load(filters + at);
        if (others != nullptr) {
          const auto factor = static_cast<T>(0.25 * others[c]);
          scaled = fused(factor, Panel<T>::load(directions + at), scaled);
        }
        scaled.store(to + at);
      }
    }
  }
};

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
