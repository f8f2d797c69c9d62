// A student's convolution as products of matrices (kernels.h), over chunks of images, by all
// threads. Every number is computed in one order, whatever the number of threads.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>

#include "block.h"
#include "kernels.h"

namespace fastmtt {

// A chunk of images is what one pass sums weight gradients over: what is written for that should
// still be in the last-level cache when it is read. Not a matter of the number of threads: sums over
// chunks must not depend on it.
constexpr int64_t kChunkBytes = int64_t(1) << 22;
// A group of images is what goes through a whole op together, `kWide` panels of products at a time:
// what a second-level cache holds, or more, if those are too few rows for the kernels. One thread takes
// it; or, where it is all there is, threads take its images and then its products' columns.
constexpr int64_t kWide = 4;

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
      !scratch || (scratch->scalar_type() == at::kByte && scratch->dim() == 1 &&
                   scratch->is_contiguous()),
      "fastmtt: scratch must be a contiguous uint8 tensor with one axis, got ",
      scratch->scalar_type(), " of shape ", scratch->sizes(), " and strides ", scratch->strides());
  return scratch ? *scratch : at::empty({0}, at::kByte);
}

// Buffers made from an arena over a scratch tensor, which grows when it must.
template <typename Buffers, typename... Arguments>
Buffers carve(Tensor& scratch, const Arguments&... arguments) {
  Arena count;
  Buffers(count, arguments...);
  const int64_t bytes = count.used() + kPanelBytes;  // a caller's may begin anywhere
  // resizing keeps what is there, which nobody needs: let go of it first
  if (scratch.numel() < bytes) scratch.resize_({0}).resize_({bytes});
  const auto begin = reinterpret_cast<uintptr_t>(scratch.mutable_data_ptr());
  Arena arena(reinterpret_cast<void*>(at::divup(begin, kPanelBytes) * kPanelBytes));
  return Buffers(arena, arguments...);
}

// Images of a chunk that `thread` works on. Operands that are a thread's own are those of `owner`,
// where these images begin at `row`.
struct Images {
  int64_t first, count, row;
  int owner, thread;
};

// Panels of products.
struct Columns {
  int64_t begin, end;
};

// A sum of products and where it goes.
template <typename T>
struct Sum {
  std::initializer_list<Product> products;
  Panels<T> m;
};

template <typename T>
class Convolution {
 public:
  // operands, products: how many lifted images and products an op holds at a time.
  Convolution(const Block& block, int64_t operands, int64_t products)
      : kernels(fastmtt::kernels<T>(block.bf16)), threads(at::get_num_threads()) {
    g.height = block.height;
    g.width = block.width;
    g.in = block.in;
    g.out = block.out;
    g.positions = kPoints * kPoints;
    g.down = at::divup(block.height, kTile);
    g.across = at::divup(block.width, kTile);
    g.rows = padded(g.down * g.across);
    g.depth = padded(block.in);
    const int64_t panel = g.positions * g.rows * kLanes<T>;  // of an image, in elements
    const int64_t widest = std::max(in_panels(), out_panels());
    const int64_t most = std::max<int64_t>(1, kChunkBytes / (panel * widest * sizeof(T)));
    chunk = at::divup(block.batch, at::divup(block.batch, most));
    const int64_t held =
        panel * (operands * widest * kernels.element + products * kWide * sizeof(T));
    const int64_t fill = std::max<int64_t>(1, kernels.rows_at_once / g.rows);
    const int64_t most_held = kernels.cache / held;
    group = std::min(std::max(fill, most_held / fill * fill), chunk);
    const int64_t columns = std::min(in_panels(), out_panels());
    by_columns = block.batch <= group && threads > 1 && threads <= columns;
  }

  int64_t padded(int64_t n) const { return at::divup(n, kernels.group) * kernels.group; }
  int64_t in_panels() const { return at::divup(g.in, kLanes<T>); }
  int64_t out_panels() const { return at::divup(g.out, kLanes<T>); }
  int64_t beside(int64_t panels) const {
    return at::divup(panels, kernels.beside) * kernels.beside;
  }
  int64_t present(int64_t channels, int64_t panel) const {
    return std::min(kLanes<T>, channels - panel * kLanes<T>);
  }

  // For a group of images. A thread's own, but for the operands where threads share out columns.
  Operand lifted_group(Arena& arena) const {
    return operand(arena, group * g.rows, beside(in_panels()));
  }
  Panels<T> products_group(Arena& arena) const {
    return room<T>(arena, group * g.rows, kWide, sizeof(T));
  }
  T* scratch(Arena& arena) const {
    const int64_t bordered = (g.down * kTile + 2) * (g.across * kTile + 2);
    return static_cast<T*>(arena.take(std::max(kScratch * g.area(), bordered) * kPanelBytes));
  }
  // All threads', for a chunk of images and for filters.
  Operand lifted(Arena& arena) const { return operand(arena, chunk * g.rows, in_panels()); }
  Operand lowered(Arena& arena) const {
    return operand(arena, chunk * g.rows, beside(out_panels()));
  }
  // The second form of rows, which are interleaved where they are summed over.
  Operand pairs(Arena& arena, const Operand& rows) const {
    return kernels.group == 1 ? rows : lowered(arena);
  }
  Operand filters(Arena& arena) const { return operand(arena, g.depth, out_panels()); }
  Operand flipped(Arena& arena) const { return operand(arena, padded(g.out), in_panels()); }
  Panels<T> filter_products(Arena& arena) const {
    return room<T>(arena, in_panels() * kLanes<T>, out_panels(), sizeof(T));
  }

  // Filters are transformed before the groups where threads share out the images, else within one, by
  // the thread whose columns they are.
  void filters_before(const T* w, const Operand& u) const {
    if (!by_columns) parallel(out_panels(), [&](int64_t i) { kernels.filters(g, w, i, u); });
  }
  void flipped_before(const T* w, const Operand& u) const {
    if (!by_columns) parallel(in_panels(), [&](int64_t i) { kernels.filters_flipped(g, w, i, u); });
  }
  void filters_within(const T* w, const Columns& columns, const Operand& u) const {
    if (!by_columns) return;
    for (int64_t i = columns.begin; i < columns.end; ++i) kernels.filters(g, w, i, u);
  }
  void flipped_within(const T* w, const Columns& columns, const Operand& u) const {
    if (!by_columns) return;
    for (int64_t i = columns.begin; i < columns.end; ++i) kernels.filters_flipped(g, w, i, u);
  }
  void from_filters(const Panels<T>& gu, T* gw) const {
    parallel(in_panels(), [&](int64_t block) {
      kernels.filters_transposed(g, constant(gu), block, gw);
    });
  }

  // work(first image, number of images) for every chunk of a student's images.
  template <typename Work>
  void for_chunks(int64_t batch, const Work& work) const {
    for (int64_t first = 0; first < batch; first += chunk) {
      work(first, std::min(chunk, batch - first));
    }
  }
  // For groups of `count` images prepare(images) makes operands, and multiply(images, columns) products
  // of `panels` panels, or of a part of them.
  template <typename Prepare, typename Multiply>
  void for_groups(
      int64_t count, int64_t panels, const Prepare& prepare, const Multiply& multiply) const {
    if (by_columns) {
      share_out(count, std::min(threads, count), [&](int64_t begin, int64_t end, int thread) {
        prepare(Images{begin, end - begin, begin * g.rows, 0, thread});
      });
      share_out(panels, std::min(threads, panels), [&](int64_t begin, int64_t end, int thread) {
        multiply(Images{0, count, 0, 0, thread}, Columns{begin, end});
      });
      return;
    }
    const int64_t even = at::divup(at::divup(count, group), threads) * threads;
    share_out(count, std::min(even, count), [&](int64_t begin, int64_t end, int thread) {
      const Images images = {begin, end - begin, 0, thread, thread};
      prepare(images);
      multiply(images, Columns{0, panels});
    });
  }

  // Images' inputs to rows of v, from `row` on.
  void lift(const T* images, int64_t count, const Operand& v, int64_t row, bool pairs) const {
    const int64_t panels = in_panels();
    for (int64_t i = 0; i < count * panels; ++i) {
      const int64_t image = i / panels;
      kernels.lift(
          g, images + image * g.area() * g.in, i % panels, v, row + image * g.rows, pairs);
    }
  }
  // Products V U of a group: use(image, panel, where that is among the products at hand).
  template <typename Use>
  void multiply(
      int64_t count, const Columns& columns, std::initializer_list<Sum<T>> sums,
      const Use& use) const {
    for_products(count, g.depth, columns, sums, use);
  }
  // Products Z U^T of a group, and from them the inputs' cotangents.
  void multiply_flipped(
      int64_t count, const Columns& columns, const Sum<T>& sum, T* images, T* scratch) const {
    for_products(
        count, padded(g.out), columns, {sum}, [&](int64_t image, int64_t panel, int64_t at) {
          kernels.lift_transposed(
              g, constant(sum.m), image * g.rows, at, present(g.in, panel),
              images + image * g.area() * g.in + panel * kLanes<T>, scratch);
        });
  }
  // gU = (gU if add) + sums of products V^T Z over a chunk.
  void multiply_transposed(
      std::initializer_list<Product> sum, int64_t count, const Panels<T>& gu, bool add) const {
    const int64_t rows = in_panels(), columns = at::divup(out_panels(), kWide);
    parallel(g.positions * rows * columns, [&](int64_t i) {
      const int64_t row = i / columns % rows, column = i % columns * kWide;
      std::array<Product, 2> products;
      std::transform(sum.begin(), sum.end(), products.begin(), [&](const Product& x) {
        return Product{x.a, from_panel(x.b, column)};
      });
      kernels.multiply_transposed(
          products.data(), sum.size(), i / columns / rows, row, row + 1, count * g.rows,
          std::min(kWide, out_panels() - column),
          {gu.data + column * gu.panel, gu.position, gu.panel}, add);
    });
  }
  // An operand from another panel on, or one whose columns are summed over from another row on.
  Operand from_panel(const Operand& x, int64_t panel) const { return moved(x, panel * x.panel); }
  Operand from_row(const Operand& x, int64_t row) const {
    return moved(x, row * kernels.beside * kLanes<T>);
  }

  const Kernels<T>& kernels;
  Grid g;
  // What the calling thread says of their number: a worker may be told another.
  const int64_t threads;
  int64_t chunk, group;  // images at a time
  // Whether threads share out the columns of a group's products, not the images: each reads no filters
  // but those that it transformed itself. On two threads an 8x8 op on ten images takes 0.87 of the time.
  bool by_columns;

 private:
  Operand moved(const Operand& x, int64_t elements) const {
    return {static_cast<char*>(x.data) + elements * kernels.element, x.position, x.panel};
  }
  // Room for matrices. A cache line between positions: else all would meet in the same cache sets.
  template <typename E>
  Panels<E> room(Arena& arena, int64_t rows, int64_t panels, int64_t element) const {
    const int64_t panel = rows * kLanes<T>, position = panels * panel + kPanelBytes / element;
    return {static_cast<E*>(arena.take(g.positions * position * element)), position, panel};
  }
  Operand operand(Arena& arena, int64_t rows, int64_t panels) const {
    return room<void>(arena, rows, panels, kernels.element);
  }
  // work(begin, end, thread) for even parts of 0 .. count
  template <typename Work>
  static void share_out(int64_t count, int64_t parts, const Work& work) {
    parallel(parts, [&](int64_t i) {
      work(count * i / parts, count * (i + 1) / parts, at::get_thread_num());
    });
  }
  template <typename Use>
  void for_products(
      int64_t count, int64_t depth, const Columns& columns, std::initializer_list<Sum<T>> sums,
      const Use& use) const {
    for (int64_t first = columns.begin; first < columns.end; first += kWide) {
      const int64_t width = std::min(kWide, columns.end - first);
      for (const Sum<T>& sum : sums) {
        std::array<Product, 2> products;
        std::transform(
            sum.products.begin(), sum.products.end(), products.begin(),
            [&](const Product& x) { return Product{x.a, from_panel(x.b, first)}; });
        for (int64_t q = 0; q < g.positions; ++q) {
          kernels.multiply(
              products.data(), sum.products.size(), q, 0, count * g.rows, depth, width, sum.m,
              false);
        }
      }
      for (int64_t i = 0; i < count * width; ++i) use(i / width, first + i % width, i % width);
    }
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
