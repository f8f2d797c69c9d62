// How a block of threads goes over one image's planes, for kernels that need sums of whole planes.
//
// Images are [H,W,C]. Threads side by side take a few neighbouring channels each; rows of threads
// take the pool's 2x2 windows in turn, those too that an odd edge cuts. Planes of few windows stay
// in registers, so that they are read once; others are read again for every sum. Which thread
// takes what, and the order of all sums, follow from one image's sizes.

#pragma once

#include <cmath>
#include <cstdint>

#include "kernel.h"
#include "memory.h"

namespace fastmtt::cuda {

// Bytes of a pixel that a thread takes: with 16 its sums and parameters crowd out what it holds.
constexpr int kBeside = 8, kPlaneThreads = 256;
constexpr int kHeld = 4;  // windows that a thread keeps

template <typename T>
constexpr int kOwn = kBeside / sizeof(T);  // channels of a thread

// A window of the pool: corner k lies k / 2 below and k % 2 right of its first pixel.
struct Window {
  FASTMTT_BODY bool holds(int corner) const {
    return (corner / 2 == 0 || below) && (corner % 2 == 0 || right);
  }
  FASTMTT_BODY int pixel(int corner) const { return first + corner / 2 * width + corner % 2; }

  int first, pooled, width;
  bool below, right;  // whether the plane goes on there
};

template <typename T>
struct Planes {
  // Side by side enough for a row to have two windows, but 32 bytes of a pixel at the least: memory
  // gives no less. All images are `aligned` if they begin at multiples of kBeside bytes.
  Planes(
      int64_t students, int64_t batch, int64_t height, int64_t width, int64_t channels,
      bool aligned)
      : students(students),
        batch(batch),
        height(static_cast<int>(height)),
        width(static_cast<int>(width)),
        channels(static_cast<int>(channels)),
        together(aligned && channels % kOwn<T> == 0) {
    while (lanes < kMostLanes && 2 * rows() > windows() && group() < channels) lanes *= 2;
  }

  FASTMTT_ANYWHERE int rows() const { return kPlaneThreads / lanes; }
  bool whole() const { return windows() <= kHeld * rows(); }  // whether registers hold a plane
  FASTMTT_ANYWHERE int across() const { return (width + 1) / 2; }
  FASTMTT_ANYWHERE int windows() const { return (height + 1) / 2 * across(); }
  FASTMTT_ANYWHERE int64_t area() const { return int64_t(height) * width; }
  FASTMTT_ANYWHERE int64_t pools() const { return int64_t(height / 2) * (width / 2); }
  FASTMTT_ANYWHERE int group() const { return lanes * kOwn<T>; }  // channels of an item
  FASTMTT_ANYWHERE int64_t items() const {
    return students * batch * pieces_of(channels, group());
  }

  static constexpr int kMostLanes = 64, kMostChannels = kMostLanes * kOwn<T>;
  int64_t students, batch;
  int height, width, channels, lanes = 32 / kBeside;
  bool together;  // whether a thread's can be loaded as one
};

// What a thread has of an item: some of an image's channels, which may not all exist. kWhole if its
// windows stay in registers.
template <typename T, bool kWhole>
struct Part {
  using Own = T[kOwn<T>];

  FASTMTT_BODY Part(const Planes<T>& of, int64_t item, int thread) : of(of), thread(thread) {
    const auto place = static_cast<uint32_t>(item);  // of fewer than memory could hold
    const uint32_t groups = pieces_of(of.channels, of.group());
    channel = place % groups * of.group() + thread % of.lanes * kOwn<T>;
    image = place / groups % static_cast<uint32_t>(of.batch);
    student = place / groups / static_cast<uint32_t>(of.batch);
  }

  // Its channels of the image's first pixel in a tensor [S,B,pixels,C], or null as the tensor.
  template <typename U>
  FASTMTT_BODY U* in(const Students<U>& tensor, int64_t pixels) const {
    return tensor.data == nullptr
               ? nullptr
               : tensor[student] + image * pixels * of.channels + channel;
  }
  FASTMTT_BODY void load(const T* first, int pixel, Own& to) const {
    const T* from = first + pixel * of.channels;
    if (of.together) return cuda::load<kOwn<T>>(from, to);
    load_some(from, to);
  }
  FASTMTT_BODY void store(const Own& from, T* first, int pixel) const {
    T* to = first + pixel * of.channels;
    if (of.together) return cuda::store<kOwn<T>>(from, to);
    store_some(from, to);
  }
  // Of statistics [S,B,C] and parameters [S,C], where students may begin anywhere.
  FASTMTT_BODY void load_statistic(const Students<const T>& statistic, Own& to) const {
    load_some(in(statistic, 1), to);
  }
  FASTMTT_BODY void load_parameter(const Students<const T>& parameter, Own& to) const {
    load_some(parameter[student] + channel, to);
  }
  FASTMTT_BODY void store_statistic(const Own& from, const Students<T>& statistic) const {
    if (thread < of.lanes) store_some(from, in(statistic, 1));
  }
  FASTMTT_BODY void load_some(const T* from, Own& to) const {
    FASTMTT_UNROLL for (int i = 0; i < kOwn<T>; ++i) {
      to[i] = channel + i < of.channels ? from[i] : T(0);
    }
  }
  FASTMTT_BODY void store_some(const Own& from, T* to) const {
    FASTMTT_UNROLL for (int i = 0; i < kOwn<T>; ++i) {
      if (channel + i < of.channels) to[i] = from[i];
    }
  }
  // A window's four pixels; zero beyond the plane.
  FASTMTT_BODY void load(const T* first, const Window& window, Own (&to)[4]) const {
    FASTMTT_UNROLL for (int corner = 0; corner < 4; ++corner) {
      for (T& value : to[corner]) value = 0;
      if (window.holds(corner)) load(first, window.pixel(corner), to[corner]);
    }
  }

  // work(window, values) for the thread's windows: held, or read(window, values) once more.
  template <class Values, class Read, class Work>
  FASTMTT_BODY void visit(Values (&held)[kHeld], const Read& read, const Work& work) const {
    if constexpr (kWhole) {
      FASTMTT_UNROLL for (int turn = 0; turn < kHeld; ++turn) {
        if (has(turn)) work(window(turn), held[turn]);
      }
    } else {
      for (int turn = 0; has(turn); ++turn) {
        Values values;
        read(window(turn), values);
        work(window(turn), values);
      }
    }
  }
  template <class Values, class Read>
  FASTMTT_BODY void fill(Values (&held)[kHeld], const Read& read) const {
    FASTMTT_UNROLL for (int turn = 0; turn < (kWhole ? kHeld : 0); ++turn) {
      if (has(turn)) read(window(turn), held[turn]);
    }
  }
  FASTMTT_BODY int number(int turn) const { return thread / of.lanes + turn * of.rows(); }
  FASTMTT_BODY bool has(int turn) const {
    return channel < of.channels && number(turn) < of.windows();
  }
  FASTMTT_BODY Window window(int turn) const {
    const int y = number(turn) / of.across() * 2, x = number(turn) % of.across() * 2;
    return {y * of.width + x, y / 2 * (of.width / 2) + x / 2, of.width, y + 1 < of.height,
            x + 1 < of.width};
  }

  const Planes<T>& of;
  int thread, channel, student, image;
};

// Sums over an item's planes of what its threads have; among what a block shares.
template <typename T, int kSums>
struct PlaneSums {
  static constexpr int kMost = kSums * Planes<T>::kMostChannels;

  FASTMTT_BODY void put(int k, int thread, const T (&values)[kOwn<T>]) {
    store<kOwn<T>>(values, parts[k] + thread * kOwn<T>);
  }

  // Adds up the first `count` sums, each in an order that has nothing to do with their number: in a
  // tangent the primal's have the primal's bits.
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
  FASTMTT_BODY void means(int k, const Planes<T>& of, int thread, T (&to)[kOwn<T>]) const {
    FASTMTT_UNROLL for (int i = 0; i < kOwn<T>; ++i) {
      to[i] = static_cast<T>(sum(k, of, thread % of.lanes * kOwn<T> + i)) / of.area();
    }
  }

  alignas(16) T parts[kSums][kPlaneThreads * kOwn<T>];
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
