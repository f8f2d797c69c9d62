// What the ConvNet block's four ops share: sizes and checks of arguments, the chunks of images they
// work through, and sums over images.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "norm_pass.h"

namespace fastmtt {

using at::Tensor;

// Elements of a chunk's convolution output. Not a matter of the number of threads: the sums over
// chunks must not depend on it.
constexpr int64_t kChunk = int64_t(1) << 21;

// The block's sizes, and the check of every argument against them.
struct Block {
  Block(const char* op, const Tensor& a, const Tensor& w) : op(op), like(a) {
    TORCH_CHECK(
        a.dim() == 5, "fastmtt::", op, ": a must have shape [S, B, H, W, C], got ", a.sizes());
    TORCH_CHECK(
        a.scalar_type() == at::kFloat || a.scalar_type() == at::kDouble,
        "fastmtt::", op, ": a must be float32 or float64, got ", a.scalar_type());
    TORCH_CHECK(
        a.size(0) > 0 && a.size(1) > 0 && a.size(2) > 1 && a.size(3) > 1 && a.size(4) > 0,
        "fastmtt::", op, ": a must hold a student, an image, 2 x 2 pixels and a channel at least,"
        " got shape ", a.sizes());
    students = a.size(0);
    batch = a.size(1);
    in_channels = a.size(4);
    TORCH_CHECK(
        w.dim() == 5 && w.size(4) > 0, "fastmtt::", op,
        ": w must have shape [S, 3, 3, Cin, Cout], got ", w.sizes());
    plane = {a.size(2), a.size(3), w.size(4)};
    check("w", w, {students, 3, 3, in_channels, plane.channels});
  }

  void check(const char* name, const Tensor& t, at::IntArrayRef shape) const {
    TORCH_CHECK(
        t.sizes() == shape, "fastmtt::", op, ": ", name, " must have shape ", shape, " for a ",
        like.sizes(), ", got ", t.sizes());
    TORCH_CHECK(
        t.scalar_type() == like.scalar_type(), "fastmtt::", op, ": ", name,
        " must have the dtype of a, ", like.scalar_type(), ", got ", t.scalar_type());
  }
  Tensor checked(const char* name, const Tensor& t, at::IntArrayRef shape) const {
    check(name, t, shape);
    return t.contiguous();
  }
  Tensor checked_input(const char* name, const Tensor& t) const {
    return checked(name, t, {students, batch, plane.height, plane.width, in_channels});
  }
  Tensor checked_output(const char* name, const Tensor& t) const {
    return checked(name, t, {students, batch, plane.height, plane.width, plane.channels});
  }
  Tensor checked_pooled(const char* name, const Tensor& t) const {
    return checked(name, t, {students, batch, plane.rows(), plane.columns(), plane.channels});
  }
  Tensor checked_statistic(const char* name, const Tensor& t) const {
    return checked(name, t, {students, batch, plane.channels});
  }
  Tensor checked_affine(const char* name, const Tensor& t) const {
    return checked(name, t, {students, plane.channels});
  }

  Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, like.options()); }
  Tensor empty_output() const {
    return empty({students, batch, plane.height, plane.width, plane.channels});
  }
  Tensor empty_pooled() const {
    return empty({students, batch, plane.rows(), plane.columns(), plane.channels});
  }
  Tensor empty_statistic() const { return empty({students, batch, plane.channels}); }
  Tensor empty_chunk(int64_t count) const {
    return empty({count, plane.height, plane.width, plane.channels});
  }
  // a's shape and w's, or [0] where not needed
  Tensor empty_input(bool needed) const {
    return needed ? empty(like.sizes()) : empty({0});
  }
  Tensor empty_weights(bool needed) const {
    return needed ? empty({students, 3, 3, in_channels, plane.channels}) : empty({0});
  }

  int64_t images() const { return students * batch; }

  const char* op;
  const Tensor& like;
  int64_t students, batch, in_channels;
  Plane plane;
};

// The parts of a contiguous tensor: its images, or one part a student.
template <typename T>
struct Parts {
  T* operator[](int64_t i) const { return data + i * size; }
  T* data;
  int64_t size;
};

template <typename T>
Parts<const T> read(const Tensor& t, int64_t count) {
  return {t.const_data_ptr<T>(), t.numel() / count};
}

template <typename T>
Parts<T> write(const Tensor& t, int64_t count) {
  return {t.mutable_data_ptr<T>(), t.numel() / count};
}

// Images first .. first + count - 1 of a student.
struct Chunk {
  int64_t student, first, count;
  Tensor of(const Tensor& t) const { return t.select(0, student).narrow(0, first, count); }
};

// work(chunk) for every chunk of a student's images.
template <typename Work>
void for_chunks(const Block& block, int64_t student, const Work& work) {
  const int64_t most = std::max<int64_t>(1, kChunk / block.plane.size());
  const int64_t size = at::divup(block.batch, at::divup(block.batch, most));
  for (int64_t first = 0; first < block.batch; first += size) {
    work(Chunk{student, first, std::min(size, block.batch - first)});
  }
}

// work(image in the chunk, image in the whole [S*B], scratch) for every image of a chunk;
// work is FASTMTT_INLINE.
template <typename T, typename Work>
void for_images(const Block& block, const Chunk& chunk, const Work& work) {
  at::parallel_for(0, chunk.count, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(block.plane);
    run_widest([&]() FASTMTT_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        work(i, chunk.student * block.batch + chunk.first + i, scratch);
      }
    });
  });
}

// Per-image shares of a gradient of gamma and beta, added up in the order of the images.
struct AffineGradients {
  explicit AffineGradients(const Block& block)
      : block(block), shares(2 * block.students * block.batch * block.plane.channels) {}

  double* gamma(int64_t image) { return &shares[2 * image * block.plane.channels]; }
  double* beta(int64_t image) { return gamma(image) + block.plane.channels; }

  // [S,C] each, or [0] where not needed
  std::tuple<Tensor, Tensor> sums(bool needed) const {
    if (!needed) return {block.empty({0}), block.empty({0})};
    const int64_t channels = block.plane.channels;
    const Tensor total =
        at::zeros({2, block.students, channels}, block.like.options().dtype(at::kDouble));
    for (int64_t image = 0; image < block.images(); ++image) {
      const double* share = &shares[2 * image * channels];
      for (int64_t k = 0; k < 2; ++k) {
        double* sum = total.mutable_data_ptr<double>() +
                      (k * block.students + image / block.batch) * channels;
        for (int64_t c = 0; c < channels; ++c) sum[c] += share[k * channels + c];
      }
    }
    const auto rounded = [&](int64_t k) {
      return total[k].to(block.like.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
    };
    return {rounded(0), rounded(1)};
  }

  const Block& block;
  std::vector<double> shares;
};

inline void accumulate(Tensor& total, const Tensor& term) {
  if (total.defined()) {
    total.add_(term);
  } else {
    total = term;
  }
}

}  // namespace fastmtt
