// Bilinear sampling of an image [C,H,W] along an affine map of the pixel grid, zero outside, and
// its transpose. Corners lie on corners (align_corners=True).

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "vector_of.h"
#include "widest.h"

namespace fastmtt {

struct ImageSize {
  int64_t channels, height, width;
  int64_t plane() const { return height * width; }
  int64_t size() const { return channels * plane(); }
};

// Where output pixels look, in coordinates from -1 to 1: x' = xx x + xy y, y' = yx x + yy y.
struct AffineMap {
  double xx, xy, yx, yy;
};

// One thread's room. A pixel's channels lie side by side, four at a time, so that it is looked up
// once; a border of zeros, one pixel above and left, two below and right, answers for all that lies
// outside.
template <typename T>
class Sampler {
 public:
  explicit Sampler(ImageSize s)
      : s_(s),
        stride_(s.width + 3),
        numbers_(4 * (s.height + 3) * stride_),
        at_(s.width),
        right_(s.width),
        down_(s.width) {}

  FASTMTT_INLINE void sample(const AffineMap& map, const T* x, T* out) {
    for_groups([&, width = s_.width, plane = s_.plane(), stride = stride_](
                   int64_t offset, auto channels) FASTMTT_INLINE {
      for (int64_t y = 0; y < s_.height; ++y) {
        const T* from = x + offset + y * width;
        Pixel* to = inside(y);
        for (int64_t j = 0; j < width; ++j) gather(from + j, plane, channels, to[j]);
      }
      for (int64_t y = 0; y < s_.height; ++y) {
        const Row row = look(map, y);
        const Pixel* from = pixels();
        T* to = out + offset + y * width;
        for (int64_t j = 0; j < width; ++j) {
          const Pixel *above = from + row.at[j], *below = above + stride;
          const Pixel upper = above[0] + row.right[j] * (above[1] - above[0]);
          const Pixel lower = below[0] + row.right[j] * (below[1] - below[0]);
          const Pixel found = upper + row.down[j] * (lower - upper);
          for (int c = 0; c < channels; ++c) to[c * plane + j] = found[c];
        }
      }
    });
  }

  FASTMTT_INLINE void scatter(const AffineMap& map, const T* g, T* out) {
    for_groups([&, width = s_.width, plane = s_.plane(), stride = stride_](
                   int64_t offset, auto channels) FASTMTT_INLINE {
      for (int64_t y = 0; y < s_.height; ++y) {
        const Row row = look(map, y);
        const T* from = g + offset + y * width;
        Pixel* to = pixels();
        for (int64_t j = 0; j < width; ++j) {
          Pixel *above = to + row.at[j], *below = above + stride;
          Pixel given;
          gather(from + j, plane, channels, given);
          const Pixel lower = row.down[j] * given, upper = given - lower;
          const Pixel lower_right = row.right[j] * lower, upper_right = row.right[j] * upper;
          above[0] += upper - upper_right;
          above[1] += upper_right;
          below[0] += lower - lower_right;
          below[1] += lower_right;
        }
      }
      for (int64_t y = 0; y < s_.height; ++y) {
        const Pixel* from = inside(y);
        T* to = out + offset + y * width;
        for (int64_t j = 0; j < width; ++j) {
          for (int c = 0; c < channels; ++c) to[c * plane + j] = from[j][c];
        }
      }
    });
  }

 private:
  using Pixel = typename VectorOf<T, 4 * sizeof(T)>::type;

  // Each sample's upper left neighbour, and how far from there it lies.
  struct Row {
    const int32_t* at;
    const T *right, *down;
  };

  static FASTMTT_INLINE void gather(const T* first, int64_t plane, int channels, Pixel& pixel) {
    Pixel made = {};
    for (int c = 0; c < channels; ++c) made[c] = first[c * plane];
    pixel = made;
  }

  Pixel* pixels() { return reinterpret_cast<Pixel*>(numbers_.data()); }
  Pixel* inside(int64_t y) { return pixels() + (y + 1) * stride_ + 1; }

  // work(offset of the group's first plane, channels) for four channels at a time, on zeros.
  template <typename Work>
  FASTMTT_INLINE void for_groups(const Work& work) {
    for (int64_t c = 0; c < s_.channels; c += 4) {
      std::fill(numbers_.begin(), numbers_.end(), T(0));
      const int64_t offset = c * s_.plane();
      switch (s_.channels - c) {
        case 1:
          work(offset, std::integral_constant<int, 1>());
          break;
        case 2:
          work(offset, std::integral_constant<int, 2>());
          break;
        case 3:
          work(offset, std::integral_constant<int, 3>());
          break;
        default:
          work(offset, std::integral_constant<int, 4>());
      }
    }
  }

  // Where the output's row y looks. Positions are clamped to the border: what lies farther out is as
  // zero as it is there, and a NaN finds a place.
  FASTMTT_INLINE Row look(const AffineMap& map, int64_t y) {
    const double half_width = (s_.width - 1) / 2.0, half_height = (s_.height - 1) / 2.0;
    const double last_column = s_.width + 1, last_row = s_.height + 1;
    const double x_step = s_.width > 1 ? 1 / half_width : 0.0, x_first = s_.width > 1 ? -1.0 : 0.0;
    const double y_here = s_.height > 1 ? y / half_height - 1 : 0.0;
    const int32_t width = static_cast<int32_t>(s_.width), stride = static_cast<int32_t>(stride_);
    int32_t* at = at_.data();
    T *right = right_.data(), *down = down_.data();
#pragma GCC ivdep
    for (int32_t j = 0; j < width; ++j) {
      const double x_here = x_first + j * x_step;
      const double column = (map.xx * x_here + map.xy * y_here + 1) * half_width + 1;
      const double row = (map.yx * x_here + map.yy * y_here + 1) * half_height + 1;
      const double u = std::min(last_column, std::max(0.0, column));
      const double v = std::min(last_row, std::max(0.0, row));
      const int32_t left = static_cast<int32_t>(u), top = static_cast<int32_t>(v);
      at[j] = top * stride + left;
      right[j] = static_cast<T>(u - left);
      down[j] = static_cast<T>(v - top);
    }
    return {at, right, down};
  }

  ImageSize s_;
  int64_t stride_;
  std::vector<T> numbers_;  // of the pixels and their border
  std::vector<int32_t> at_;
  std::vector<T> right_, down_;
};

}  // namespace fastmtt
