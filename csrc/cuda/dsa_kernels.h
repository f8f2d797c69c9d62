// Kernels of DSA and its transpose on images [S,B,C,H,W]: an item is an image.
//
// The transpose gathers: each pixel looks for the samples that took from it, in their order, so
// that no bit depends on which thread comes first.

#pragma once

#include <cmath>
#include <cstdint>

#include "kernel.h"

namespace fastmtt::cuda {

enum DsaKind : int64_t { kNone, kColor, kCrop, kCutout, kFlip, kScale, kRotate };

// Where output pixel (i, j) looks, in pixels: row = yx j + yy i + y, column = xx j + xy i + x.
struct PixelMap {
  double xx, xy, yx, yy, x, y;

  FASTMTT_BODY double column(int64_t i, int64_t j) const { return xx * j + xy * i + x; }
  FASTMTT_BODY double row(int64_t i, int64_t j) const { return yx * j + yy * i + y; }
};

template <typename T, bool kTransposed>
struct Dsa {
  static constexpr int kStages = 1, kThreads = 256, kResident = 2;
  struct Shared {
    double lanes[kThreads];
  };
  struct Thread {};

  FASTMTT_ANYWHERE int64_t items(Stage<0>) const { return images; }

  template <class Block>
  FASTMTT_BODY void run(Stage<0>, Block& block, int64_t item) const {
    const int64_t plane = height * width, size = channels * plane;
    const T* from = x + item * size;
    T* to = result + item * size;
    const double* value = values + item * 3;
    const int64_t kind = kinds[item / batch];
    if (kind == kColor) return color(block, from, value, to);
    const PixelMap map = pixel_map(kind, value);
    block.each([&](int thread, Thread&) {
      for (int64_t p = thread; p < size; p += kThreads) {
        const T* of_channel = from + p / plane * plane;
        const int64_t i = p % plane / width, j = p % width;
        if (kind == kScale || kind == kRotate) {
          to[p] = kTransposed ? gathered(map, of_channel, i, j) : sampled(map, of_channel, i, j);
        } else {
          to[p] = moved(kind, value, of_channel, i, j);
        }
      }
    });
  }

  // Brightness aside the map is its own transpose.
  template <class Block>
  FASTMTT_BODY void color(Block& block, const T* from, const double* value, T* to) const {
    const int64_t plane = height * width, size = channels * plane;
    block.each([&](int thread, Thread&) {
      double sum = 0;
      for (int64_t p = thread; p < size; p += kThreads) sum += double(from[p]);
      block.shared.lanes[thread] = sum;
    });
    for (int half = kThreads / 2; half > 0; half /= 2) {
      block.each([&](int thread, Thread&) {
        if (thread < half) block.shared.lanes[thread] += block.shared.lanes[thread + half];
      });
    }
    block.each([&](int thread, Thread&) {
      const T brightness = kTransposed ? T(0) : T(value[0]);
      const T saturation = T(value[1]), contrast = T(value[2]);
      const T mean = T(block.shared.lanes[0] / size) + brightness;
      for (int64_t p = thread; p < plane; p += kThreads) {
        T grey = 0;
        for (int64_t c = 0; c < channels; ++c) grey += from[c * plane + p];
        grey = grey / channels + brightness;
        for (int64_t c = 0; c < channels; ++c) {
          const T pixel = (from[c * plane + p] + brightness - grey) * saturation + grey;
          to[c * plane + p] = (pixel - mean) * contrast + mean;
        }
      }
    });
  }

  // A whole number of pixels; NaN and whatever is out of bounds shifts all out of the image.
  static FASTMTT_BODY int64_t pixels(double value, int64_t size) {
    const double most = 2.0 * size;
    return int64_t(value < most ? (value > -most ? value : -most) : most);
  }

  FASTMTT_BODY bool in_hole(double centre, int64_t size, int64_t at) const {
    const int64_t side = int64_t(size * share + 0.5), first = pixels(centre, size) - side / 2;
    return first <= at && at < first + side;
  }

  FASTMTT_BODY T at(const T* from, int64_t i, int64_t j) const {
    return 0 <= i && i < height && 0 <= j && j < width ? from[i * width + j] : T(0);
  }

  FASTMTT_BODY T moved(
      int64_t kind, const double* value, const T* from, int64_t i, int64_t j) const {
    if (kind < kNone || kind > kRotate) return T(NAN);  // the host would have to wait to refuse it
    if (kind == kCrop) {
      const int64_t sign = kTransposed ? -1 : 1;
      return at(from, i + sign * pixels(value[0], height), j + sign * pixels(value[1], width));
    }
    if (kind == kCutout && in_hole(value[0], height, i) && in_hole(value[1], width, j)) return 0;
    return from[i * width + (kind == kFlip && value[0] > 0.5 ? width - 1 - j : j)];
  }

  FASTMTT_BODY PixelMap pixel_map(int64_t kind, const double* value) const {
    double xx = value[0], xy = 0, yx = 0, yy = value[1];
    if (kind == kRotate) {
      xx = yy = std::cos(value[0]);
      yx = std::sin(value[0]);
      xy = -yx;
    }
    // affine_grid's -1..1, corners on corners; the one column or row of a line lies at 0
    const double across = (width - 1) / 2.0, down = (height - 1) / 2.0;
    const double per_column = width > 1 ? 1 / across : 0, per_row = height > 1 ? 1 / down : 0;
    const double left = width > 1 ? -1 : 0, top = height > 1 ? -1 : 0;
    return {xx * per_column * across, xy * per_row * across,
            yx * per_column * down,   yy * per_row * down,
            (xx * left + xy * top + 1) * across, (yx * left + yy * top + 1) * down};
  }

  FASTMTT_BODY T sampled(const PixelMap& map, const T* from, int64_t i, int64_t j) const {
    const double u = map.column(i, j), v = map.row(i, j);
    if (!(u > -1 && u < width && v > -1 && v < height)) return 0;
    const int64_t left = int64_t(std::floor(u)), top = int64_t(std::floor(v));
    const T right = T(u - left), down = T(v - top);
    const T a = at(from, top, left), b = at(from, top + 1, left);
    const T upper = a + right * (at(from, top, left + 1) - a);
    const T lower = b + right * (at(from, top + 1, left + 1) - b);
    return upper + down * (lower - upper);
  }

  // The samples within a pixel of (i, j) lie in a box: the map's inverse of that square.
  FASTMTT_BODY T gathered(const PixelMap& map, const T* from, int64_t i, int64_t j) const {
    int64_t first_row = 0, last_row = height - 1, first_column = 0, last_column = width - 1;
    const double det = map.xx * map.yy - map.xy * map.yx;
    if (std::fabs(det) > 1e-6) {
      const double u = j - map.x, v = i - map.y;
      narrow((map.yy * u - map.xy * v) / det,
             (std::fabs(map.yy) + std::fabs(map.xy)) / std::fabs(det), first_column, last_column);
      narrow((map.xx * v - map.yx * u) / det,
             (std::fabs(map.xx) + std::fabs(map.yx)) / std::fabs(det), first_row, last_row);
    }
    T sum = 0;
    for (int64_t r = first_row; r <= last_row; ++r) {
      for (int64_t c = first_column; c <= last_column; ++c) {
        const T across = T(1) - T(std::fabs(map.column(r, c) - j));
        const T down = T(1) - T(std::fabs(map.row(r, c) - i));
        if (across > 0 && down > 0) sum += across * down * from[r * width + c];
      }
    }
    return sum;
  }

  static FASTMTT_BODY void narrow(double centre, double reach, int64_t& first, int64_t& last) {
    const double low = std::floor(centre - reach), high = std::ceil(centre + reach);
    if (low > first) first = low < last + 1 ? int64_t(low) : last + 1;
    if (high < last) last = high > first - 1 ? int64_t(high) : first - 1;
  }

  int64_t images, batch, channels, height, width;
  double share;
  const T* x;
  const int64_t* kinds;    // [S]
  const double* values;    // [S,B,3]
  T* result;
};

}  // namespace fastmtt::cuda
