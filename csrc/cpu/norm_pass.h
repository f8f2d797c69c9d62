// Instance norm, ReLU and 2x2 average pool of one image [H,W,C], and their backward and tangents:
// whatever the ConvNet block does outside its convolutions, while the image lies in the caches.
// fastmtt/ops/reference.py has the formulas; here they are per channel, with
//   u = gn - mean(gn) - xhat * mean(gn * xhat),   gn the cotangent of the norm's affine output,
// so that the cotangent of the convolution's output is rstd * gamma * u.

#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "widest.h"

namespace fastmtt {

constexpr double kEps = 1e-5;

// An image's geometry. The pool drops an odd last row and column.
struct Plane {
  int64_t height, width, channels;
  int64_t area() const { return height * width; }
  int64_t size() const { return area() * channels; }
  int64_t rows() const { return height / 2; }
  int64_t columns() const { return width / 2; }
  FASTMTT_INLINE int64_t at(int64_t y, int64_t x) const { return (y * width + x) * channels; }
  FASTMTT_INLINE int64_t pooled_at(int64_t y, int64_t x) const {
    return (y / 2 * columns() + x / 2) * channels;
  }
};

// Room for per-channel numbers, one a thread.
template <typename T>
struct Scratch {
  explicit Scratch(const Plane& plane) : sums(4 * plane.channels), means(4 * plane.channels) {}
  std::vector<double> sums;
  std::vector<T> means;
};

// sums[k][c] = sum over the pixels of term(y, x, c)[k]: rows in T, their sums in double.
template <typename T, int K, typename Term>
FASTMTT_INLINE inline void sum_pixels(
    int64_t height, int64_t width, int64_t channels, double* sums, const Term& term) {
  constexpr int64_t kBlock = 64;
  std::fill_n(sums, K * channels, 0.0);
  const auto add_row = [&](int64_t y, int64_t first, auto block) FASTMTT_INLINE {
    T row[K][kBlock] = {};
    for (int64_t x = 0; x < width; ++x) {
      for (int64_t c = 0; c < block; ++c) {
        const std::array<T, K> terms = term(y, x, first + c);
        for (int k = 0; k < K; ++k) row[k][c] += terms[k];
      }
    }
    for (int k = 0; k < K; ++k) {
      for (int64_t c = 0; c < block; ++c) sums[k * channels + first + c] += row[k][c];
    }
  };
  for (int64_t y = 0; y < height; ++y) {
    int64_t first = 0;
    for (; first + kBlock <= channels; first += kBlock) {
      add_row(y, first, std::integral_constant<int64_t, kBlock>());
    }
    if (first < channels) add_row(y, first, channels - first);
  }
}

template <typename T>
FASTMTT_INLINE inline void to_means(
    const double* sums, int64_t count, int64_t area, T* means) {
  for (int64_t i = 0; i < count; ++i) means[i] = static_cast<T>(sums[i] / area);
}

// The affine output, whose sign is the ReLU's mask: every pass has to see the same.
template <typename T>
FASTMTT_INLINE inline T affine(T xhat, T gamma, T beta) {
  return xhat * gamma + beta;
}

// Of a pool's four pixels, in one order: a recomputed output has the same bits.
template <typename T>
FASTMTT_INLINE inline T average(const std::array<T, 4>& n) {
  return T(0.25) * ((n[0] + n[1]) + (n[2] + n[3]));
}

// z -> xhat, rstd [C], and the block's output unless p is null.
template <typename T>
FASTMTT_INLINE inline void normalise(
    Plane s, const T* z, const T* gamma, const T* beta, T* xhat, T* rstd, T* p,
    Scratch<T>& scratch) {
  const int64_t channels = s.channels;
  double* sums = scratch.sums.data();
  T* mean = scratch.means.data();
  sum_pixels<T, 1>(s.height, s.width, channels, sums, [&](auto y, auto x, auto c) FASTMTT_INLINE {
    return std::array<T, 1>{z[s.at(y, x) + c]};
  });
  to_means(sums, channels, s.area(), mean);
  sum_pixels<T, 1>(s.height, s.width, channels, sums, [&](auto y, auto x, auto c) FASTMTT_INLINE {
    const T centred = z[s.at(y, x) + c] - mean[c];
    return std::array<T, 1>{centred * centred};
  });
  for (int64_t c = 0; c < channels; ++c) {
    rstd[c] = static_cast<T>(1 / std::sqrt(sums[c] / s.area() + kEps));
  }
  for (int64_t y = 0; y < s.height; ++y) {
    for (int64_t x = 0; x < s.width; ++x) {
      const T* from = z + s.at(y, x);
      T* to = xhat + s.at(y, x);
#pragma GCC ivdep
      for (int64_t c = 0; c < channels; ++c) to[c] = (from[c] - mean[c]) * rstd[c];
    }
    if (p == nullptr || y % 2 == 0) continue;
    for (int64_t x = 0; x < 2 * s.columns(); x += 2) {
      const T *above = xhat + s.at(y - 1, x), *below = xhat + s.at(y, x);
      T* to = p + s.pooled_at(y, x);
#pragma GCC ivdep
      for (int64_t c = 0; c < channels; ++c) {
        const auto active = [&](T value) FASTMTT_INLINE {
          return std::max(affine(value, gamma[c], beta[c]), T(0));
        };
        to[c] = average<T>(
            {active(above[c]), active(above[channels + c]), active(below[c]),
             active(below[channels + c])});
      }
    }
  }
}

template <typename T>
struct JvpImage {
  const T *xhat, *rstd, *gamma, *gamma_dot, *beta, *beta_dot;
  T* z_dot;             // becomes the sum of both convolutions where there are two
  const T* more_z_dot;  // null where there is one
  T *p, *p_dot, *xhat_dot, *rstd_dot;
};

// z_dot -> xhat_dot, rstd_dot [C], and the block's output with its tangent.
template <typename T>
FASTMTT_INLINE inline void normalise_jvp(Plane s, JvpImage<T> i, Scratch<T>& scratch) {
  const int64_t channels = s.channels;
  if (i.more_z_dot != nullptr) {
    T* to = i.z_dot;
    const int64_t size = s.size();
#pragma GCC ivdep
    for (int64_t j = 0; j < size; ++j) to[j] += i.more_z_dot[j];
  }
  double* sums = scratch.sums.data();
  T *mean = scratch.means.data(), *correlation = mean + channels;
  sum_pixels<T, 2>(s.height, s.width, channels, sums, [&](auto y, auto x, auto c) FASTMTT_INLINE {
    const T z_dot = i.z_dot[s.at(y, x) + c];
    return std::array<T, 2>{z_dot, z_dot * i.xhat[s.at(y, x) + c]};
  });
  to_means(sums, 2 * channels, s.area(), mean);
  for (int64_t c = 0; c < channels; ++c) {
    i.rstd_dot[c] = -i.rstd[c] * i.rstd[c] * correlation[c];
  }
  for (int64_t y = 0; y < s.height; ++y) {
    for (int64_t x = 0; x < s.width; ++x) {
      const T *z_dot = i.z_dot + s.at(y, x), *xhat = i.xhat + s.at(y, x);
      T* to = i.xhat_dot + s.at(y, x);
#pragma GCC ivdep
      for (int64_t c = 0; c < channels; ++c) {
        to[c] = i.rstd[c] * (z_dot[c] - mean[c] - xhat[c] * correlation[c]);
      }
    }
    if (y % 2 == 0) continue;
    for (int64_t x = 0; x < 2 * s.columns(); x += 2) {
      const int64_t above = s.at(y - 1, x), below = s.at(y, x);
      T *p = i.p + s.pooled_at(y, x), *p_dot = i.p_dot + s.pooled_at(y, x);
#pragma GCC ivdep
      for (int64_t c = 0; c < channels; ++c) {
        std::array<T, 4> n, n_dot;
        const std::array<int64_t, 4> corners = {above, above + channels, below, below + channels};
        for (int k = 0; k < 4; ++k) {
          const T xhat = i.xhat[corners[k] + c];
          const T value = affine(xhat, i.gamma[c], i.beta[c]);
          const T tangent = affine(xhat, i.gamma_dot[c], i.beta_dot[c]) +
                            i.xhat_dot[corners[k] + c] * i.gamma[c];
          n[k] = std::max(value, T(0));
          n_dot[k] = value > 0 ? tangent : T(0);
        }
        p[c] = average(n);
        p_dot[c] = average(n_dot);
      }
    }
  }
}

// write(offset in the image, c, offset in the pooled image, whether the pool reads the pixel).
template <typename Write>
FASTMTT_INLINE inline void for_pixels(const Plane& s, const Write& write) {
  for (int64_t y = 0; y < s.height; ++y) {
    const int64_t pooled = y < 2 * s.rows() ? 2 * s.columns() : 0;
    for (int64_t x = 0; x < pooled; ++x) {
      const int64_t at = s.at(y, x), from = s.pooled_at(y, x);
#pragma GCC ivdep
      for (int64_t c = 0; c < s.channels; ++c) write(at + c, c, from + c, std::true_type());
    }
    for (int64_t x = pooled; x < s.width; ++x) {
      const int64_t at = s.at(y, x);
#pragma GCC ivdep
      for (int64_t c = 0; c < s.channels; ++c) write(at + c, c, int64_t(0), std::false_type());
    }
  }
}

template <typename T>
struct BackwardImage {
  const T *gp, *xhat, *rstd, *gamma, *beta;
  T* gz;
  double *ggamma, *gbeta;  // this image's share, [C] each
};

// gp -> gz and the image's share of ggamma, gbeta.
template <typename T>
FASTMTT_INLINE inline void normalise_backward(Plane s, BackwardImage<T> i, Scratch<T>& scratch) {
  const int64_t channels = s.channels;
  const auto gn_at = [&](T xhat, int64_t c, int64_t from) FASTMTT_INLINE {
    return affine(xhat, i.gamma[c], i.beta[c]) > 0 ? T(0.25) * i.gp[from] : T(0);
  };
  double* sums = scratch.sums.data();
  T *mean = scratch.means.data(), *correlation = mean + channels, *scale = mean + 2 * channels;
  sum_pixels<T, 2>(
      2 * s.rows(), 2 * s.columns(), channels, sums,
      [&](auto y, auto x, auto c) FASTMTT_INLINE {
        const T xhat = i.xhat[s.at(y, x) + c], gn = gn_at(xhat, c, s.pooled_at(y, x) + c);
        return std::array<T, 2>{gn, gn * xhat};
      });
  to_means(sums, 2 * channels, s.area(), mean);
  std::copy_n(sums, channels, i.gbeta);
  std::copy_n(sums + channels, channels, i.ggamma);
  for (int64_t c = 0; c < channels; ++c) scale[c] = i.rstd[c] * i.gamma[c];
  for_pixels(s, [&](int64_t at, int64_t c, int64_t from, auto pooled) FASTMTT_INLINE {
    const T xhat = i.xhat[at];
    const T gn = pooled ? gn_at(xhat, c, from) : T(0);
    i.gz[at] = scale[c] * (gn - mean[c] - xhat * correlation[c]);
  });
}

template <typename T>
struct BackwardJvpImage {
  const T *gp, *gp_dot, *xhat, *xhat_dot, *rstd, *rstd_dot, *gamma, *gamma_dot, *beta;
  T *gz, *gz_dot;
  double *ggamma_dot, *gbeta_dot;  // this image's share, [C] each
};

// gp, gp_dot -> gz, gz_dot and the image's share of ggamma_dot, gbeta_dot.
template <typename T>
FASTMTT_INLINE inline void normalise_backward_jvp(
    Plane s, BackwardJvpImage<T> i, Scratch<T>& scratch) {
  const int64_t channels = s.channels;
  double* sums = scratch.sums.data();
  T *mean = scratch.means.data(), *correlation = mean + channels;
  T *mean_dot = mean + 2 * channels, *correlation_dot = mean + 3 * channels;
  sum_pixels<T, 4>(
      2 * s.rows(), 2 * s.columns(), channels, sums,
      [&](auto y, auto x, auto c) FASTMTT_INLINE {
        const int64_t at = s.at(y, x) + c, from = s.pooled_at(y, x) + c;
        const T xhat = i.xhat[at];
        const bool active = affine(xhat, i.gamma[c], i.beta[c]) > 0;
        const T gn = active ? T(0.25) * i.gp[from] : T(0);
        const T gn_dot = active ? T(0.25) * i.gp_dot[from] : T(0);
        return std::array<T, 4>{gn, gn * xhat, gn_dot, gn_dot * xhat + gn * i.xhat_dot[at]};
      });
  to_means(sums, 4 * channels, s.area(), mean);
  std::copy_n(sums + 2 * channels, channels, i.gbeta_dot);
  std::copy_n(sums + 3 * channels, channels, i.ggamma_dot);
  for_pixels(s, [&](int64_t at, int64_t c, int64_t from, auto pooled) FASTMTT_INLINE {
    const T xhat = i.xhat[at];
    const bool active = pooled && affine(xhat, i.gamma[c], i.beta[c]) > 0;
    const T gn = active ? T(0.25) * i.gp[from] : T(0);
    const T gn_dot = active ? T(0.25) * i.gp_dot[from] : T(0);
    const T u = gn - mean[c] - xhat * correlation[c];  // as in normalise_backward: the same bits
    const T u_dot =
        gn_dot - mean_dot[c] - i.xhat_dot[at] * correlation[c] - xhat * correlation_dot[c];
    const T scale = i.rstd[c] * i.gamma[c];
    const T scale_dot = i.rstd_dot[c] * i.gamma[c] + i.rstd[c] * i.gamma_dot[c];
    i.gz[at] = scale * u;
    i.gz_dot[at] = scale_dot * u + scale * u_dot;
  });
}

}  // namespace fastmtt
