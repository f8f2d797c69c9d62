// Kernels of DSA's maps and their transposes on images [S,B,C,H,W] of any strides.
//
// An item is a tile of pixels of one image, all channels, computed from that image alone. The
// transpose gathers: each pixel looks for the samples that took from it, in their order, so that no
// bit depends on which thread comes first.

#pragma once

#include <cmath>
#include <cstdint>

#include "../dsa_kinds.h"
#include "kernel.h"

namespace fastmtt::cuda {

// The device's cos and sin of a number of any size keep a table in each thread's memory; those of a
// number of half turns do not.
FASTMTT_BODY void turn(double angle, double& cosine, double& sine) {
#ifdef __CUDA_ARCH__
  constexpr double kHalfTurn = 3.14159265358979323846;
  sincospi(angle / kHalfTurn, &sine, &cosine);
#else
  cosine = std::cos(angle);
  sine = std::sin(angle);
#endif
}

// Where an image's output pixel (i, j) looks, in pixels.
struct PixelMap {
  FASTMTT_BODY double column(int64_t i, int64_t j) const { return xx * j + xy * i + x; }
  FASTMTT_BODY double row(int64_t i, int64_t j) const { return yx * j + yy * i + y; }

  double xx, xy, yx, yy, x, y;
};

// A range of rows or columns, narrowed to those within `reach` of a place.
struct Span {
  FASTMTT_BODY void narrow(double centre, double reach) {
    const double low = std::floor(centre - reach), high = std::ceil(centre + reach);
    if (low > first) first = low < last + 1 ? int64_t(low) : last + 1;
    if (high < last) last = high > first - 1 ? int64_t(high) : first - 1;
  }

  int64_t first, last;
};

template <typename T>
struct Images {
  FASTMTT_BODY const T* image(int64_t s, int64_t b) const {
    return data + s * strides[0] + b * strides[1];
  }

  const T* data;
  int64_t strides[5];
};

// Numbers as DSA drew them, or as another program did.
struct Values {
  FASTMTT_BODY double operator[](int64_t i) const { return wide ? wide[i] : double(single[i]); }

  const float* single;
  const double* wide;  // or null
};

template <typename T, bool kTransposed>
struct Dsa : Plain {
  static constexpr int kThreads = 256;
  static constexpr int64_t kTile = 4 * kThreads;  // pixels
  static constexpr int kTogether = 4;             // channels that share a look-up
  struct Shared {
    double lanes[kThreads];
  };

  // An item's image, and where its pixels from `first` to before `last` go.
  struct Tile {
    const T* from;
    T* to;
    int64_t first, last;
    double value[kDsaValues];
  };

  FASTMTT_ANYWHERE int64_t plane() const { return height * width; }
  FASTMTT_ANYWHERE int64_t tiles() const { return (plane() + kTile - 1) / kTile; }
  FASTMTT_ANYWHERE int64_t items(Stage<0>) const { return students * batch * tiles(); }

  template <class Block>
  FASTMTT_BODY void run(Stage<0>, Block& block, int64_t item) const {
    const int64_t number = item / tiles(), s = number / batch, b = number % batch;
    const int64_t first = item % tiles() * kTile, v = number * kDsaValues;
    const Tile tile{x.image(s, b), result + s * result_student + b * channels * plane(), first,
                    first + kTile < plane() ? first + kTile : plane(),
                    {values[v], values[v + 1], values[v + 2]}};
    const int64_t kind = kinds[s];
    if (kind == kColor) {
      color(block, tile);
    } else if (kind == kScale || kind == kRotate) {
      resample(block, tile, kind);
    } else {
      move(block, tile, kind);
    }
  }

  // work(i, j, place) for each of a tile's pixels; its channels go a plane apart from `place` on.
  template <class Block, class Work>
  FASTMTT_BODY void for_pixels(Block& block, const Tile& tile, const Work& work) const {
    block.each([&](int thread, Thread&) {
      for (int64_t p = tile.first + thread; p < tile.last; p += kThreads) {
        work(p / width, p % width, tile.to + p);
      }
    });
  }

  FASTMTT_BODY const T* pixel(const T* from, int64_t i, int64_t j) const {
    return from + i * x.strides[3] + j * x.strides[4];
  }

  // Brightness aside the map is its own transpose.
  template <class Block>
  FASTMTT_BODY void color(Block& block, const Tile& tile) const {
    const T brightness = kTransposed ? T(0) : T(tile.value[0]);
    const T saturation = T(tile.value[1]), contrast = T(tile.value[2]);
    const T mean = mean_of(block, tile.from) + brightness;
    for_pixels(block, tile, [&](int64_t i, int64_t j, T* to) {
      const T* from = pixel(tile.from, i, j);
      T grey = 0;
      for (int64_t c = 0; c < channels; ++c) grey += from[c * x.strides[2]];
      grey = grey / channels + brightness;
      for (int64_t c = 0; c < channels; ++c) {
        const T saturated = (from[c * x.strides[2]] + brightness - grey) * saturation + grey;
        to[c * plane()] = (saturated - mean) * contrast + mean;
      }
    });
  }

  // Of a whole image: each of its tiles adds it up, in one order.
  template <class Block>
  FASTMTT_BODY T mean_of(Block& block, const T* from) const {
    auto& lanes = block.shared.lanes;
    block.each([&](int thread, Thread&) {
      double sum = 0;
      for (int64_t p = thread; p < plane(); p += kThreads) {
        const T* at = pixel(from, p / width, p % width);
        for (int64_t c = 0; c < channels; ++c) sum += double(at[c * x.strides[2]]);
      }
      lanes[thread] = sum;
    });
    for (int half = kThreads / 2; half > 0; half /= 2) {
      block.each([&](int thread, Thread&) {
        if (thread < half) lanes[thread] += lanes[thread + half];
      });
    }
    return T(lanes[0] / (channels * plane()));
  }

  // Pixels taken as they are, or zero. A kind that is not known makes NaN: to refuse it, the host
  // would have to wait for the device.
  template <class Block>
  FASTMTT_BODY void move(Block& block, const Tile& tile, int64_t kind) const {
    const bool known = kNone <= kind && kind < kKinds;
    const int64_t down = pixels(tile.value[0], height), right = pixels(tile.value[1], width);
    const int64_t sign = kTransposed ? -1 : 1;
    const bool mirrored = kind == kFlip && tile.value[0] > 0.5;
    for_pixels(block, tile, [&](int64_t i, int64_t j, T* to) {
      bool shown = kind != kCutout || !in_hole(i, down, height) || !in_hole(j, right, width);
      if (mirrored) j = width - 1 - j;
      if (kind == kCrop) {
        i += sign * down;
        j += sign * right;
        shown = within(i, j);
      }
      const T* from = pixel(tile.from, i, j);
      for (int64_t c = 0; c < channels; ++c) {
        to[c * plane()] = !known ? T(NAN) : shown ? from[c * x.strides[2]] : T(0);
      }
    });
  }

  // A whole number of pixels; NaN and whatever is out of bounds shifts all out of the image.
  static FASTMTT_BODY int64_t pixels(double value, int64_t size) {
    const double most = 2.0 * size;
    return int64_t(value < most ? (value > -most ? value : -most) : most);
  }
  FASTMTT_BODY bool in_hole(int64_t at, int64_t centre, int64_t size) const {
    const int64_t side = int64_t(size * share + 0.5), first = centre - side / 2;
    return first <= at && at < first + side;
  }
  FASTMTT_BODY bool within(int64_t i, int64_t j) const {
    return 0 <= i && i < height && 0 <= j && j < width;
  }

  template <class Block>
  FASTMTT_BODY void resample(Block& block, const Tile& tile, int64_t kind) const {
    const PixelMap map = pixel_map(kind, tile.value);
    for_pixels(block, tile, [&](int64_t i, int64_t j, T* to) {
      if constexpr (kTransposed) {
        gather(map, tile.from, i, j, to);
      } else {
        sample(map, tile.from, i, j, to);
      }
    });
  }

  FASTMTT_BODY PixelMap pixel_map(int64_t kind, const double (&value)[kDsaValues]) const {
    double xx = value[0], xy = 0, yx = 0, yy = value[1];
    if (kind == kRotate) {
      turn(value[0], xx, yx);
      yy = xx;
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

  FASTMTT_BODY T at(const T* from, int64_t i, int64_t j) const {
    return within(i, j) ? *pixel(from, i, j) : T(0);
  }

  FASTMTT_BODY void sample(const PixelMap& map, const T* from, int64_t i, int64_t j, T* to) const {
    double u = map.column(i, j), v = map.row(i, j);
    if (!(u > -1 && u < width && v > -1 && v < height)) u = v = -2;  // outside, as NaN is
    const int64_t left = int64_t(std::floor(u)), top = int64_t(std::floor(v));
    const T right = T(u - left), down = T(v - top);
    for (int64_t c = 0; c < channels; ++c) {
      const T* of = from + c * x.strides[2];
      const T a = at(of, top, left), b = at(of, top + 1, left);
      const T upper = a + right * (at(of, top, left + 1) - a);
      const T lower = b + right * (at(of, top + 1, left + 1) - b);
      to[c * plane()] = upper + down * (lower - upper);
    }
  }

  // The samples within a pixel of (i, j) lie in a box: the inverse map of that square.
  FASTMTT_BODY void gather(const PixelMap& map, const T* from, int64_t i, int64_t j, T* to) const {
    Span rows{0, height - 1}, columns{0, width - 1};
    const double det = map.xx * map.yy - map.xy * map.yx;
    if (std::fabs(det) > 1e-6) {
      const double u = j - map.x, v = i - map.y;
      columns.narrow((map.yy * u - map.xy * v) / det,
                     (std::fabs(map.yy) + std::fabs(map.xy)) / std::fabs(det));
      rows.narrow((map.xx * v - map.yx * u) / det,
                  (std::fabs(map.xx) + std::fabs(map.yx)) / std::fabs(det));
    }
    for (int64_t c = 0; c < channels; c += kTogether) {
      T sums[kTogether] = {};
      for (int64_t r = rows.first; r <= rows.last; ++r) {
        for (int64_t q = columns.first; q <= columns.last; ++q) {
          const T across = T(1) - T(std::fabs(map.column(r, q) - j));
          const T down = T(1) - T(std::fabs(map.row(r, q) - i));
          if (!(across > 0 && down > 0)) continue;
          const T* sampled = pixel(from, r, q) + c * x.strides[2];
          for (int k = 0; k < kTogether; ++k) {
            if (c + k < channels) sums[k] += across * down * sampled[k * x.strides[2]];
          }
        }
      }
      for (int k = 0; k < kTogether; ++k) {
        if (c + k < channels) to[(c + k) * plane()] = sums[k];
      }
    }
  }

  int64_t students, batch, channels, height, width;
  double share;
  Images<T> x;
  const int64_t* kinds;  // [S]
  Values values;         // [S,B,3]
  T* result;
  int64_t result_student;
};

}  // namespace fastmtt::cuda
