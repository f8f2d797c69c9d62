// An image through the ConvNet block of few input channels, by products with its patches
// (patch_kernels.h); Strips makes the products.

#pragma once

#include "patch_folding.h"
#include "patch_strips.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

template <typename Strips>
struct PatchBlock {
  using T = typename Strips::Value;
  using Row = Panel<T>;
  using Factor = typename Strips::Factor;
  static constexpr int64_t kLength = Row::kLength;
  using Grid = PatchGrid<T>;
  using Filters = PatchFilters<T>;
  using Image = PatchImage<T>;
  using Room = PatchRoom<T>;

  static void forward(const Grid& g, const Filters& filters, Image image, Room room) {
    Patches<T>::prepare(g, image, room);
    const Folding<T> folding{g, filters, room};
    folding.normalise(image);
    Strips strips(g, room);
    const Factor value = strips.factor(room.value, 0);
    T *const p = image.p, *const y = room.y;
    for_strips(g, strips, false, [&](int64_t strip, int64_t panel, int64_t width) {
      strips.multiply_by(value, panel, width, room.y);
      for_pools(g, strip, panel, width, [=](int64_t place, int64_t at, auto count) FASTMTT_HERE {
        Row active[kPool];
        FASTMTT_UNROLL for (int i = 0; i < kPool; ++i) {
          active[i] = positive(Row::load(y + at + i * kLength));
        }
        average(active).store(p + place, count);
      });
    });
    write_outputs(g, strips, room.xhat, image.xhat, room);
  }

  static void jvp(const Grid& g, const Filters& filters, Image image, Room room) {
    Patches<T>::prepare(g, image, room);
    const Folding<T> folding{g, filters, room};
    folding.normalise(image);
    folding.tangents(image);
    Strips strips(g, room);
    const Factor value = strips.factor(room.value, 0), tangent = strips.factor(room.tangent, 1);
    T *const p = image.p, *const p_dot = image.p_dot, *const y = room.y, *const y_dot = room.y_dot;
    for_strips(g, strips, false, [&](int64_t strip, int64_t panel, int64_t width) {
      strips.multiply_by(value, panel, width, room.y);
      strips.multiply_by(tangent, panel, width, room.y_dot);
      for_pools(g, strip, panel, width, [=](int64_t place, int64_t at, auto count) FASTMTT_HERE {
        Row active[kPool], moved[kPool];
        FASTMTT_UNROLL for (int i = 0; i < kPool; ++i) {
          const Row here = Row::load(y + at + i * kLength);
          active[i] = positive(here);
          moved[i] = where_positive(here, Row::load(y_dot + at + i * kLength));
        }
        average(active).store(p + place, count);
        average(moved).store(p_dot + place, count);
      });
    });
    write_outputs(g, strips, room.xhat, image.xhat, room);
    write_outputs(g, strips, room.xhat_dot, image.xhat_dot, room);
  }

  static void backward(const Grid& g, const Filters& filters, Image image, Room room) {
    Patches<T>::prepare(g, image, room);
    const Folding<T> folding{g, filters, room};
    folding.normalise(image);
    const bool with_a = image.ga != nullptr;
    if (with_a) folding.flip();
    Strips strips(g, room);
    const Factor value = strips.factor(room.value, 0);
    const Factor back = with_a ? strips.flipped(room.back, 0) : Factor();
    for_strips(g, strips, true, [&](int64_t strip, int64_t panel, int64_t width) {
      strips.multiply_by(value, panel, width, room.y);
      open(g, strips, image.gp, strip, panel, width, with_a, room);
      add_columns(g, strips, room.q, strip, panel, width);
      if (with_a) strips.multiply_back(back, panel, width, panel > 0);
    });
    folding.backward(image);
    const Pulled pulled = {room.by_u, filters.flipped};
    if (with_a) pull_back(g, strips, &pulled, 1, room, image.ga);
  }

  static void backward_jvp(const Grid& g, const Filters& filters, Image image, Room room) {
    Patches<T>::prepare(g, image, room);
    const Folding<T> folding{g, filters, room};
    folding.normalise(image);
    folding.tangents(image);
    const bool with_a_dot = image.ga_dot != nullptr, with_a = image.ga != nullptr;
    if (with_a_dot || with_a) folding.flip();
    if (with_a_dot) folding.flip_dot();
    Strips strips(g, room);
    const Factor value = strips.factor(room.value, 0);
    const Factor back = with_a_dot || with_a ? strips.flipped(room.back, 0) : Factor();
    const Factor moved = with_a_dot ? strips.flipped(room.back_dot, 1) : Factor();
    for_strips(g, strips, true, [&](int64_t strip, int64_t panel, int64_t width) {
      strips.multiply_by(value, panel, width, room.y);
      open(g, strips, image.gp, strip, panel, width, with_a_dot, room);
      add_columns(g, strips, room.q, strip, panel, width);
      if (with_a_dot) strips.multiply_back(moved, panel, width, panel > 0);
      open(g, strips, image.gp_dot, strip, panel, width, with_a_dot, room);
      add_columns(g, strips, room.q_dot, strip, panel, width);
      if (with_a_dot) strips.multiply_back(back, panel, width, true);
    });
    folding.backward_jvp(image);
    const Pulled both[] = {{room.by_u, filters.flipped}, {room.by_u_dot, filters.flipped_dot}};
    if (with_a_dot) pull_back(g, strips, both, 2, room, image.ga_dot);
    if (!with_a) return;
    for_strips(g, strips, false, [&](int64_t strip, int64_t panel, int64_t width) {
      strips.multiply_by(value, panel, width, room.y);
      open(g, strips, image.gp, strip, panel, width, true, room);
      strips.multiply_back(back, panel, width, panel > 0);
    });
    const Pulled pulled = {room.by_u_dot, filters.flipped};
    pull_back(g, strips, &pulled, 1, room, image.ga);
  }

 private:
  // work(strip, first panel, panels) for all of a strip's output channels, then the next's.
  template <typename Work>
  FASTMTT_INLINE_HERE static void for_strips(
      const Grid& g, Strips& strips, bool columns, const Work& work) {
    for (int64_t strip = 0; strip < g.strips; ++strip) {
      strips.begin(strip, columns);
      for (int64_t panel = 0; panel < g.out_panels; panel += kStripPanels) {
        const int64_t left = g.out_panels - panel;
        work(strip, panel, left < kStripPanels ? left : kStripPanels);
      }
    }
  }

  // A strip's part of X^T G, to the sum that is its own.
  static void add_columns(
      const Grid& g, Strips& strips, T* q, int64_t strip, int64_t panel, int64_t width) {
    strips.multiply_columns(
        panel, width, q + strip % kSums * g.outs * g.depth, strip >= kSums);
  }
  static int64_t pools_of(const Grid& g, int64_t strip) {
    const int64_t left = g.pools - strip * (kStrip / kPool);
    return left < 0 ? 0 : left < kStrip / kPool ? left : kStrip / kPool;
  }

  // work(the pool's place among the pooled, its first row among y's, channels) of a strip's panels
  template <typename Work>
  FASTMTT_INLINE_HERE static void for_pools(
      const Grid& g, int64_t strip, int64_t panel, int64_t width, const Work& work) {
    const int64_t pools = pools_of(g, strip), left = g.out - panel * kLength;
    const int64_t whole = left / kLength < width ? left / kLength : width;
    for (int64_t pool = 0; pool < pools; ++pool) {
      const int64_t place = (strip * (kStrip / kPool) + pool) * g.out + panel * kLength;
      const int64_t at = pool * kPool * kLength;
      for (int64_t n = 0; n < whole; ++n) {
        work(place + n * kLength, at + n * kStrip * kLength, Whole());
      }
      if (whole == width) continue;
      work(place + whole * kLength, at + whole * kStrip * kLength, left - whole * kLength);
    }
  }

  static void open(
      const Grid& g, Strips& strips, const T* gp, int64_t strip, int64_t panel, int64_t width,
      bool plain, const Room& room) {
    const int64_t c = panel * kLength, at = strip * (kStrip / kPool) * g.out + c;
    strips.open(room.y, gp + at, pools_of(g, strip), g.out - c, width, plain);
  }

  // A linear function of the patches, to every pixel of an image's outputs.
  static void write_outputs(
      const Grid& g, Strips& strips, const T* of_patches, T* outputs, const Room& room) {
    if (outputs == nullptr) return;
    const Factor factor = strips.factor(of_patches, 0);
    for_strips(g, strips, false, [&](int64_t strip, int64_t panel, int64_t width) {
      strips.multiply_by(factor, panel, width, room.y);
      const int64_t first = strip * kStrip, left = g.area - first;
      for (int64_t row = 0; row < (left < kStrip ? left : kStrip); ++row) {
        const Pixel pixel = room.pixels[first + row];
        for (int64_t n = 0; n < width; ++n) {
          const int64_t c = (panel + n) * kLength, channels = g.out - c;
          Row::load(room.y + (n * kStrip + row) * kLength)
              .store(
                  outputs + (pixel.y * g.width + pixel.x) * g.out + c,
                  channels < kLength ? channels : kLength);
        }
      }
    });
  }

  struct Pulled {
    const T *factor, *filters;
  };
  // What the norm subtracts is added, patches times (factors times transposed filters), and the
  // patches' cotangent becomes an image's.
  static void pull_back(
      const Grid& g, Strips& strips, const Pulled* terms, int count, const Room& room, T* ga) {
    for (int i = 0; i < count; ++i) {
      const Product product = {
          {const_cast<T*>(terms[i].factor), 0, g.depth * kLength},
          {const_cast<T*>(terms[i].filters), 0, g.outs * kLength}};
      multiply<Exact<T>>(
          &product, 1, 0, 0, g.depth, g.outs, g.tap_panels, {room.rest, 0, g.depth * kLength},
          i > 0);
    }
    const Factor rest = strips.rest(room.rest);
    for (int64_t strip = 0; strip < g.strips; ++strip) {
      strips.begin(strip, false);
      strips.multiply_rest(rest);
    }
    Patches<T>::back(g, room, ga);
  }
};

template <typename Strips>
constexpr PatchKernels<typename Strips::Value> kPatchTable = {
    &Covariance<typename Strips::Value>::numbers,
    &Strips::operand_bytes,
    &PatchBlock<Strips>::forward,
    &PatchBlock<Strips>::jvp,
    &PatchBlock<Strips>::backward,
    &PatchBlock<Strips>::backward_jvp,
};

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
