// DSA's maps and their transposes on images [S,B,C,H,W]: one kind of operation a student, values
// of each image. fastmtt/ops/reference_dsa.py lists the kinds and what the values mean.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "../dsa_arguments.h"
#include "results.h"
#include "rows.h"
#include "sampling.h"
#include "widest.h"

namespace fastmtt {
namespace {

using at::Tensor;

// Numbers worth handing to another thread: of copies, and of samples, which cost eight times more.
constexpr int64_t kCopied = int64_t(1) << 18, kSampled = kCopied / 8;

// Added brightness, then each pixel's distance from its mean over the channels times `saturation`,
// then from the image's mean times `contrast`. Neither of the two changes the mean the other takes,
// so that they commute: without brightness the map is its own transpose.
template <typename T>
FASTMTT_INLINE inline void color(
    const ImageSize& s, const T* x, T brightness, T saturation, T contrast, T* out) {
  const double sum = sum_lanes<double, 1>(0, s.size(), [&](int64_t j) FASTMTT_INLINE {
    return std::array<double, 1>{x[j]};
  })[0];
  const T mean = static_cast<T>(sum / s.size()) + brightness;
  constexpr int64_t kBlock = 64;
  for (int64_t first = 0; first < s.plane(); first += kBlock) {
    const int64_t count = std::min(kBlock, s.plane() - first);
    T grey[kBlock] = {};
    for (int64_t c = 0; c < s.channels; ++c) {
      const T* from = x + c * s.plane() + first;
      for (int64_t k = 0; k < count; ++k) grey[k] += from[k];
    }
    for (int64_t k = 0; k < count; ++k) grey[k] = grey[k] / s.channels + brightness;
    for (int64_t c = 0; c < s.channels; ++c) {
      const T* from = x + c * s.plane() + first;
      T* to = out + c * s.plane() + first;
#pragma GCC ivdep
      for (int64_t k = 0; k < count; ++k) {
        const T saturated = (from[k] + brightness - grey[k]) * saturation + grey[k];
        to[k] = (saturated - mean) * contrast + mean;
      }
    }
  }
}

// out[i,j] = x[i + down, j + right], zero outside
template <typename T>
void crop(const ImageSize& s, const T* x, int64_t down, int64_t right, T* out) {
  const int64_t first = std::clamp<int64_t>(-right, 0, s.width);
  const int64_t last = std::clamp<int64_t>(s.width - right, first, s.width);
  for (int64_t i = 0; i < s.channels * s.height; ++i) {
    T* to = out + i * s.width;
    const int64_t y = i % s.height + down;
    if (y < 0 || y >= s.height) {
      std::fill_n(to, s.width, T(0));
      continue;
    }
    const T* from = x + (i + down) * s.width + right;
    std::fill(to, to + first, T(0));
    std::copy(from + first, from + last, to + first);
    std::fill(to + last, to + s.width, T(0));
  }
}

// From `first` on, a hole's rows or columns within the image.
struct Hole {
  Hole(int64_t size, double share, int64_t centre) {
    const int64_t side = static_cast<int64_t>(size * share + 0.5);
    const int64_t start = centre - side / 2;
    first = std::clamp<int64_t>(start, 0, size);
    last = std::clamp<int64_t>(start + side, first, size);
  }
  int64_t first, last;
};

template <typename T>
void cutout(const ImageSize& s, const T* x, const Hole& rows, const Hole& columns, T* out) {
  std::copy_n(x, s.size(), out);
  for (int64_t c = 0; c < s.channels; ++c) {
    for (int64_t y = rows.first; y < rows.last; ++y) {
      T* row = out + c * s.plane() + y * s.width;
      std::fill(row + columns.first, row + columns.last, T(0));
    }
  }
}

template <typename T>
void flip(const ImageSize& s, const T* x, T* out) {
  for (int64_t i = 0; i < s.channels * s.height; ++i) {
    const T* row = x + i * s.width;
    std::reverse_copy(row, row + s.width, out + i * s.width);
  }
}

// A whole number of pixels; whatever is out of bounds or NaN shifts everything out of the image.
int64_t pixels(double value, int64_t size) {
  const double most = 2.0 * size;
  return static_cast<int64_t>(std::max(-most, std::min(most, value)));
}

template <typename T>
FASTMTT_INLINE inline void map_image(
    const ImageSize& s, DsaKind kind, const double* value, double share, bool transposed,
    Sampler<T>& sampler, const T* x, T* out) {
  const auto resample = [&](const AffineMap& map) FASTMTT_INLINE {
    transposed ? sampler.scatter(map, x, out) : sampler.sample(map, x, out);
  };
  switch (kind) {
    case kColor:
      color<T>(s, x, transposed ? 0 : value[0], value[1], value[2], out);
      return;
    case kCrop: {
      const int64_t sign = transposed ? -1 : 1;
      crop(s, x, sign * pixels(value[0], s.height), sign * pixels(value[1], s.width), out);
      return;
    }
    case kCutout:
      cutout(
          s, x, {s.height, share, pixels(value[0], s.height)},
          {s.width, share, pixels(value[1], s.width)}, out);
      return;
    case kFlip:
      if (value[0] > 0.5) return flip(s, x, out);
      break;
    case kScale:
      return resample({value[0], 0, 0, value[1]});
    case kRotate: {
      const double cosine = std::cos(value[0]), sine = std::sin(value[0]);
      return resample({cosine, -sine, sine, cosine});
    }
    default:
      break;
  }
  std::copy_n(x, s.size(), out);
}

void map_images(
    const char* op, const Named& images, const Tensor& kind, const Tensor& values, double share,
    bool transposed, const Tensor& result) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  check_dsa(op, images, kind, values);
  const Tensor x = images.tensor.contiguous();
  const int64_t students = x.size(0), batch = x.size(1);
  const Tensor kinds = kind.contiguous(), numbers = values.to(at::kDouble).contiguous();
  const int64_t* of_student = kinds.const_data_ptr<int64_t>();
  for (int64_t s = 0; s < students; ++s) {
    TORCH_CHECK(
        0 <= of_student[s] && of_student[s] < kKinds, "fastmtt::", op, ": kind must lie in 0..",
        kKinds - 1, ", got ", of_student[s]);
  }
  check_result(op, {"result", result}, x.sizes(), x);
  check_apart(op, {"result", result}, {{images.name, x}});
  const ImageSize size = {x.size(2), x.size(3), x.size(4)};
  if (x.numel() == 0) return;
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "fastmtt::dsa", [&] {
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    const double* value = numbers.const_data_ptr<double>();
    scalar_t* to = result.mutable_data_ptr<scalar_t>();
    const bool sampled = std::any_of(
        of_student, of_student + students, [](int64_t kind) { return kind >= kScale; });
    const int64_t grain = std::max<int64_t>(1, (sampled ? kSampled : kCopied) / size.size());
    at::parallel_for(0, students * batch, grain, [&](int64_t begin, int64_t end) {
      Sampler<scalar_t> sampler(size);
      run_widest([&]() FASTMTT_INLINE {
        for (int64_t image = begin; image < end; ++image) {
          map_image<scalar_t>(
              size, DsaKind(of_student[image / batch]), value + image * kDsaValues, share,
              transposed, sampler, from + image * size.size(), to + image * size.size());
        }
      });
    });
  });
}

void dsa_into(
    const Tensor& x, const Tensor& kind, const Tensor& values, double cutout,
    const Tensor& result) {
  map_images("dsa", {"x", x}, kind, values, cutout, false, result);
}

Tensor dsa(const Tensor& x, const Tensor& kind, const Tensor& values, double cutout) {
  const Tensor result = at::empty(x.sizes(), x.options());
  dsa_into(x, kind, values, cutout, result);
  return result;
}

void dsa_transpose_into(
    const Tensor& g, const Tensor& kind, const Tensor& values, double cutout,
    const Tensor& result) {
  map_images("dsa_transpose", {"g", g}, kind, values, cutout, true, result);
}

Tensor dsa_transpose(const Tensor& g, const Tensor& kind, const Tensor& values, double cutout) {
  const Tensor result = at::empty(g.sizes(), g.options());
  dsa_transpose_into(g, kind, values, cutout, result);
  return result;
}

}  // namespace
}  // namespace fastmtt

TORCH_LIBRARY_IMPL(fastmtt, CPU, m) {
  m.impl("dsa", &fastmtt::dsa);
  m.impl("dsa.into", &fastmtt::dsa_into);
  m.impl("dsa_transpose", &fastmtt::dsa_transpose);
  m.impl("dsa_transpose.into", &fastmtt::dsa_transpose_into);
}
