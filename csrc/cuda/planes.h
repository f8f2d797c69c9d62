// How a block of threads goes over one image's planes, for kernels that need sums of whole planes.
//
// Images are [H,W,C]. Threads side by side take a quad of neighbouring channels each; rows of
// threads take the pool's 2x2 windows in turn, those too that an odd edge cuts. A thread keeps its
// first windows in registers, so that planes of up to kHeld times as many windows as rows are read
// once. Which thread takes what, and the order of all sums, follow from one image's sizes.

#pragma once

#include <cstdint>

#include "kernel.h"
#include "memory.h"

namespace fastmtt::cuda {

constexpr int kPlaneThreads = 256, kHeld = 2;

// A window of the pool: corner k lies k / 2 below and k % 2 right of its first pixel.
struct Window {
  FASTMTT_BODY bool holds(int corner) const {
    return (corner / 2 == 0 || below) && (corner % 2 == 0 || right);
  }
  FASTMTT_BODY int pixel(int corner) const { return first + corner / 2 * width + corner % 2; }

  int first, pooled, width;
  bool below, right;  // whether the plane goes on there
};

// One image's part of a tensor, and of that a thread's channels: the first `count` of a quad.
template <typename T>
struct Pixels {
  using Value = std::remove_const_t<T>;
  static constexpr int kCount = kQuad<Value>;

  FASTMTT_BODY bool there() const { return at != nullptr; }
  FASTMTT_BODY void load(int pixel, Value (&to)[kCount]) const {
    const T* from = at + pixel * channels;
    if (together) return cuda::load<kCount>(from, to);
    FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) to[i] = i < count ? from[i] : Value(0);
  }
  FASTMTT_BODY void store(const Value (&from)[kCount], int pixel) const {
    T* to = at + pixel * channels;
    if (together) return cuda::store<kCount>(from, to);
    FASTMTT_UNROLL for (int i = 0; i < kCount; ++i) {
      if (i < count) to[i] = from[i];
    }
  }
  // A window's four pixels; zero beyond the plane.
  FASTMTT_BODY void load(const Window& window, Value (&to)[4][kCount]) const {
    FASTMTT_UNROLL for (int corner = 0; corner < 4; ++corner) {
      for (Value& value : to[corner]) value = 0;
      if (window.holds(corner)) load(window.pixel(corner), to[corner]);
    }
  }

  T* at;
  int channels, count;
  bool together;  // all of the quad exists and is aligned
};

template <typename T>
struct Planes {
  // Enough side by side for no row to be idle, but 32 bytes of a pixel at the least: memory gives
  // no less.
  Planes(int64_t students, int64_t batch, int64_t height, int64_t width, int64_t channels)
      : students(students),
        batch(batch),
        height(static_cast<int>(height)),
        width(static_cast<int>(width)),
        channels(static_cast<int>(channels)) {
    while (lanes < kMostLanes && rows() > windows() && lanes * kQuad<T> < channels) lanes *= 2;
  }

  FASTMTT_ANYWHERE int rows() const { return kPlaneThreads / lanes; }
  FASTMTT_ANYWHERE int across() const { return (width + 1) / 2; }
  FASTMTT_ANYWHERE int windows() const { return (height + 1) / 2 * across(); }
  FASTMTT_ANYWHERE int64_t area() const { return int64_t(height) * width; }
  FASTMTT_ANYWHERE int64_t pools() const { return int64_t(height / 2) * (width / 2); }
  FASTMTT_ANYWHERE int group() const { return lanes * kQuad<T>; }  // channels of an item
  FASTMTT_ANYWHERE int64_t items() const {
    return students * batch * pieces_of(channels, group());
  }

  static constexpr int kMostLanes = 32, kMostChannels = kMostLanes * kQuad<T>;
  int64_t students, batch;
  int height, width, channels, lanes = 2;
};

// What a thread has of an item, some channels of an image.
template <typename T>
struct Part {
  static constexpr int kCount = kQuad<T>;

  FASTMTT_BODY Part(const Planes<T>& of, int64_t item, int thread) : of(of), thread(thread) {
    channel = static_cast<int>(take(item, pieces_of(of.channels, of.group()))) * of.group() +
              thread % of.lanes * kCount;
    image = take(item, of.batch);
    student = item;
  }

  // Of a tensor [S,B,pixels,C]; nothing where it is null.
  template <typename U>
  FASTMTT_BODY Pixels<U> in(const Students<U>& tensor, int64_t pixels) const {
    if (tensor.data == nullptr) return {nullptr, 0, 0, false};
    return of_quad(tensor[student] + image * pixels * of.channels);
  }
  // Of a parameter [S,C].
  FASTMTT_BODY void load(const Students<const T>& parameter, T (&to)[kCount]) const {
    of_quad(parameter[student]).load(0, to);
  }
  template <typename U>
  FASTMTT_BODY Pixels<U> of_quad(U* first) const {
    const int left = of.channels - channel, count = left < kCount ? left < 0 ? 0 : left : kCount;
    U* at = first + (count > 0 ? channel : 0);
    const auto steps = reinterpret_cast<uintptr_t>(at) | of.channels * sizeof(T);
    return {at, of.channels, count, count == kCount && steps % 16 == 0};
  }

  // work(window, values) for the thread's windows: held, or read(window, values) once more.
  template <class Values, class Read, class Work>
  FASTMTT_BODY void visit(Values (&held)[kHeld], const Read& read, const Work& work) const {
    const int row = thread / of.lanes, rows = of.rows();
    FASTMTT_UNROLL for (int turn = 0; turn < kHeld; ++turn) {
      if (row + turn * rows < of.windows()) work(window(row + turn * rows), held[turn]);
    }
    for (int number = row + kHeld * rows; number < of.windows(); number += rows) {
      Values values;
      read(window(number), values);
      work(window(number), values);
    }
  }
  template <class Values, class Read>
  FASTMTT_BODY void fill(Values (&held)[kHeld], const Read& read) const {
    const int row = thread / of.lanes, rows = of.rows();
    FASTMTT_UNROLL for (int turn = 0; turn < kHeld; ++turn) {
      if (row + turn * rows < of.windows()) read(window(row + turn * rows), held[turn]);
    }
  }
  FASTMTT_BODY Window window(int number) const {
    const int y = number / of.across() * 2, x = number % of.across() * 2;
    return {y * of.width + x, y / 2 * (of.width / 2) + x / 2, of.width, y + 1 < of.height,
            x + 1 < of.width};
  }

  const Planes<T>& of;
  int thread, channel;
  int64_t student, image;
};

// Sums over an item's planes of what its threads have; among what a block shares.
template <typename T, int kSums>
struct PlaneSums {
  static constexpr int kMost = kSums * Planes<T>::kMostChannels;

  FASTMTT_BODY void put(int k, int thread, const T (&values)[kQuad<T>]) {
    store<kQuad<T>>(values, parts[k] + thread * kQuad<T>);
  }

  // Adds up the first `count` sums, each in an order that has nothing to do with their number: a
  // tangent's primal sums have the primal's bits.
  template <class Block>
  FASTMTT_BODY void add(Block& block, const Planes<T>& of, int count = kSums) {
    const int group = of.group(), columns = count * group;
    const int shares = 4 * group < kPlaneThreads ? kPlaneThreads / (4 * group) : 1;
    block.each([&](int thread, auto&) {
      for (int n = thread; n < columns * shares; n += kPlaneThreads) {
        const int column = n % columns, share = n / columns;
        double sum = 0;
        for (int row = share; row < of.rows(); row += shares) {
          sum += double(parts[column / group][row * group + column % group]);
        }
        halfway[n] = sum;
      }
    });
    block.each([&](int thread, auto&) {
      for (int column = thread; column < columns; column += kPlaneThreads) {
        double sum = 0;
        for (int share = 0; share < shares; ++share) sum += halfway[share * columns + column];
        sums[column] = sum;
      }
    });
  }

  FASTMTT_BODY double sum(int k, const Planes<T>& of, int channel) const {
    return sums[k * of.group() + channel];
  }
  // Means over the planes of a thread's channels.
  FASTMTT_BODY void means(int k, const Planes<T>& of, int thread, T (&to)[kQuad<T>]) const {
    FASTMTT_UNROLL for (int i = 0; i < kQuad<T>; ++i) {
      to[i] = static_cast<T>(sum(k, of, thread % of.lanes * kQuad<T> + i)) / of.area();
    }
  }

  alignas(16) T parts[kSums][kPlaneThreads * kQuad<T>];
  double halfway[kMost < kPlaneThreads ? kPlaneThreads : kMost], sums[kMost];
};

// The norm's affine output, whose sign is the ReLU's mask: every pass must see the same bits.
template <typename T>
FASTMTT_BODY T affine(T xhat, T gamma, T beta) {
  return std::fma(xhat, gamma, beta);
}

// Whether the ReLU lets nothing through; a NaN it does.
template <typename T>
FASTMTT_BODY bool closed(T n) {
  return n <= 0;
}

}  // namespace fastmtt::cuda
