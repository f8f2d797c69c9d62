// A student's convolution as products of matrices (kernels.h), over chunks of images, by all
// threads. Every number is computed in one order, whatever the number of threads.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <initializer_list>
#include <optional>

#include "block.h"
#include "kernels.h"

namespace fastmtt {

// Bytes of the products of a chunk of images: what is written is still in the last-level cache
// when it is read. Not a matter of the number of threads: sums over chunks must not depend on it.
// Direct convolutions have nothing to reuse between images: the second-level cache does for them.
constexpr int64_t kChunkBytes = int64_t(1) << 22, kDirectChunkBytes = int64_t(1) << 20;
constexpr int64_t kRowsATask = 96;  // a multiple of the blocks of rows

template <typename T>
Panels<const T> constant(const Panels<T>& m) {
  return {m.data, m.position, m.panel};
}

template <typename Work>
void parallel(int64_t count, const Work& work) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(i);
  });
}

// Hands out parts of one buffer. A first pass without a buffer counts the bytes.
class Arena {
 public:
  explicit Arena(void* base = nullptr) : base_(static_cast<char*>(base)) {}
  void* take(int64_t bytes) {
    void* part = base_ == nullptr ? nullptr : base_ + used_;
    used_ += at::divup(bytes, kPanelBytes) * kPanelBytes;
    return part;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// The caller's scratch tensor, or one of this call's own.
inline Tensor or_fresh(const std::optional<Tensor>& scratch) {
  TORCH_CHECK(
      !scratch || (scratch->scalar_type() == at::kByte && scratch->dim() == 1),
      "fastmtt: scratch must be a uint8 tensor with one axis, got ", scratch->scalar_type(), " ",
      scratch->sizes());
  return scratch ? *scratch : at::empty({0}, at::kByte);
}

// Buffers made from an arena over a scratch tensor, which grows when it must.
template <typename Buffers, typename... Arguments>
Buffers carve(Tensor& scratch, const Arguments&... arguments) {
  Arena count;
  Buffers(count, arguments...);
  // resizing keeps what is there, which nobody needs: let go of it first
  if (scratch.numel() < count.used()) scratch.resize_({0}).resize_({count.used()});
  Arena arena(scratch.mutable_data_ptr());
  return Buffers(arena, arguments...);
}

template <typename T>
class Convolution {
 public:
  explicit Convolution(const Block& block) : kernels(fastmtt::kernels<T>(block.bf16)) {
    g.height = block.height;
    g.width = block.width;
    g.in = block.in;
    g.out = block.out;
    g.direct = block.in < kLanes<T>;
    g.positions = g.direct ? 1 : kPoints * kPoints;
    g.down = g.direct ? block.height : at::divup(block.height, kTile);
    g.across = g.direct ? block.width : at::divup(block.width, kTile);
    g.rows = padded(g.down * g.across);
    g.depth = padded(g.direct ? 9 * block.in : block.in);
    const int64_t bytes = g.positions * g.rows * std::max(in_panels(), out_panels()) * kPanelBytes;
    const int64_t room = g.direct ? kDirectChunkBytes : kChunkBytes;
    const int64_t most = std::max<int64_t>(1, room / bytes);
    chunk = at::divup(block.batch, at::divup(block.batch, most));
  }

  int64_t padded(int64_t n) const { return at::divup(n, kernels.group) * kernels.group; }
  int64_t in_panels() const { return at::divup(g.direct ? 9 * g.in : g.in, kLanes<T>); }
  int64_t out_panels() const { return at::divup(g.out, kLanes<T>); }
  // Lifting goes through panels of an image, or through whole images of few channels.
  int64_t lifted_parts() const { return g.direct ? 1 : in_panels(); }
  int64_t present(int64_t panel) const {
    return std::min(kLanes<T>, g.out - panel * kLanes<T>);
  }

  // Room for matrices. One more row between positions: else all would meet in the same cache sets.
  Operand operand(Arena& arena, int64_t rows, int64_t panels) const {
    const auto m = room<void>(arena, rows, panels, kernels.element);
    return {m.data, m.position, m.panel};
  }
  Panels<T> products(Arena& arena, int64_t rows, int64_t panels) const {
    return room<T>(arena, rows, panels, sizeof(T));
  }
  Operand lifted(Arena& arena) const { return operand(arena, chunk * g.rows, in_panels()); }
  Operand lowered(Arena& arena) const { return operand(arena, chunk * g.rows, out_panels()); }
  Operand filters(Arena& arena) const { return operand(arena, g.depth, out_panels()); }
  Operand flipped(Arena& arena) const { return operand(arena, padded(g.out), in_panels()); }
  // The second form of rows, which are interleaved where they are summed over.
  Operand pairs(Arena& arena, const Operand& rows) const {
    return kernels.group == 1 ? rows : lowered(arena);
  }
  Panels<T> filter_products(Arena& arena) const {
    return products(arena, in_panels() * kLanes<T>, out_panels());
  }

  // A thread's room for panels of one image, side by side.
  int64_t scratch_size() const {
    const int64_t bordered = (g.down * kTile + 2) * (g.across * kTile + 2);
    return std::max(kScratch * g.area(), g.direct ? 0 : bordered) * kLanes<T>;
  }
  T* scratches(Arena& arena) const {
    return static_cast<T*>(arena.take(at::get_num_threads() * scratch_size() * sizeof(T)));
  }
  T* scratch(T* scratches) const { return scratches + at::get_thread_num() * scratch_size(); }

  void to_filters(const T* w, const Operand& u) const {
    parallel(out_panels(), [&](int64_t panel) { kernels.filters(g, w, panel, u); });
  }
  void to_flipped(const T* w, const Operand& u) const {
    parallel(in_panels(), [&](int64_t panel) { kernels.filters_flipped(g, w, panel, u); });
  }
  void from_filters(const Panels<T>& gu, T* gw) const {
    parallel(out_panels(), [&](int64_t panel) {
      kernels.filters_transposed(g, constant(gu), panel, gw);
    });
  }
  void lift(const T* images, int64_t count, const Operand& v, bool pairs) const {
    parallel(count * lifted_parts(), [&](int64_t i) {
      const int64_t image = i / lifted_parts();
      kernels.lift(
          g, images + image * g.area() * g.in, i % lifted_parts(), v, image * g.rows, pairs);
    });
  }
  void lift_transposed(const Panels<T>& gv, int64_t count, T* images, T* scratches) const {
    parallel(count * lifted_parts(), [&](int64_t i) {
      const int64_t image = i / lifted_parts();
      kernels.lift_transposed(
          g, constant(gv), image * g.rows, i % lifted_parts(),
          images + image * g.area() * g.in, scratch(scratches));
    });
  }
  // Sums of products V U: rows of `count` images times filters.
  void multiply(std::initializer_list<Product> sum, int64_t count, const Panels<T>& m) const {
    multiply_rows(sum, count, g.depth, out_panels(), m);
  }
  // Sums of products Z U^T.
  void multiply_flipped(
      std::initializer_list<Product> sum, int64_t count, const Panels<T>& gv) const {
    multiply_rows(sum, count, padded(g.out), in_panels(), gv);
  }
  // gU += sums of products V^T Z.
  void multiply_transposed(
      std::initializer_list<Product> sum, int64_t count, const Panels<T>& gu) const {
    const int64_t panels = in_panels();
    parallel(g.positions * panels, [&](int64_t i) {
      kernels.multiply_transposed(
          sum.begin(), sum.size(), i / panels, i % panels, i % panels + 1, count * g.rows,
          out_panels(), gu);
    });
  }
  void clear(const Panels<T>& gu) const {
    parallel(g.positions, [&](int64_t q) {
      std::fill_n(gu.data + q * gu.position, out_panels() * gu.panel, T(0));
    });
  }

  // work(first image, number of images) for every chunk of a student's images.
  template <typename Work>
  void for_chunks(int64_t batch, const Work& work) const {
    for (int64_t first = 0; first < batch; first += chunk) {
      work(first, std::min(chunk, batch - first));
    }
  }
  // work(image of the chunk, panel) for every panel of every image of a chunk's outputs.
  template <typename Work>
  void for_panels(int64_t count, const Work& work) const {
    parallel(count * out_panels(), [&](int64_t i) { work(i / out_panels(), i % out_panels()); });
  }

  const Kernels<T>& kernels;
  Grid g;
  int64_t chunk;  // images at a time

 private:
  template <typename E>
  Panels<E> room(Arena& arena, int64_t rows, int64_t panels, int64_t element) const {
    const int64_t panel = rows * kLanes<T>, position = panels * panel + kLanes<T>;
    return {static_cast<E*>(arena.take(g.positions * position * element)), position, panel};
  }
  void multiply_rows(
      std::initializer_list<Product> sum, int64_t count, int64_t depth, int64_t panels,
      const Panels<T>& m) const {
    const int64_t rows = count * g.rows, tasks = at::divup(rows, kRowsATask);
    parallel(g.positions * tasks, [&](int64_t i) {
      const int64_t begin = i % tasks * kRowsATask, end = std::min(begin + kRowsATask, rows);
      kernels.multiply(sum.begin(), sum.size(), i / tasks, begin, end, depth, panels, m, false);
    });
  }
};

// Per-image shares of the gradients of gamma and beta, added up in the order of the images.
struct AffineShares {
  AffineShares(Arena& arena, const Block& block)
      : channels(block.out),
        batch(block.batch),
        shares(static_cast<double*>(arena.take(2 * batch * channels * sizeof(double)))) {}

  double* gamma(int64_t image) const { return shares + 2 * image * channels; }
  double* beta(int64_t image) const { return gamma(image) + channels; }

  template <typename T>
  void add_up(T* ggamma, T* gbeta) const {
    for (int64_t c = 0; c < channels; ++c) {
      double by_gamma = 0, by_beta = 0;
      for (int64_t image = 0; image < batch; ++image) {
        by_gamma += gamma(image)[c];
        by_beta += beta(image)[c];
      }
      ggamma[c] = static_cast<T>(by_gamma);
      gbeta[c] = static_cast<T>(by_beta);
    }
  }

  int64_t channels, batch;
  double* shares;
};

}  // namespace fastmtt
