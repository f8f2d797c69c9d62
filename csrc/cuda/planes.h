// How a block of threads goes over one image's planes, for kernels that need sums of whole planes.
//
// Images are [H,W,C]. Threads side by side take a few neighbouring channels each; rows of threads
// take the pool's 2x2 windows in turn, those too that an odd edge cuts. Planes of few windows stay
// in registers, so that they are read once; others are read again once their sums are known. Which
// thread takes what, and the order of all sums, follow from one image's sizes.

#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernel.h"
#include "memory.h"

namespace fastmtt::cuda {

// Bytes of a pixel that a thread takes, and an item at least: memory gives no less than these. With
// 16 a thread's sums and parameters crowd out what it holds.
constexpr int kBeside = 8, kLeast = 32;
constexpr int kPlaneThreads = 256;
constexpr int kHeld = 4;  // windows that a thread keeps

template <typename T>
constexpr int kOwn = kBeside / sizeof(T);  // channels of a thread

template <typename T, bool kTangent>  // float64 holds more
constexpr int kPlaneResident = (kTangent ? 2 : 3) - (sizeof(T) == 8);

// A window of the pool: corner k lies k / 2 below and k % 2 right of its first pixel.
struct Window {
  FASTMTT_BODY bool holds(int corner) const {
    return (corner / 2 == 0 || below) && (corner % 2 == 0 || right);
  }

  int y, x;           // in the pool's grid
  bool below, right;  // whether the plane goes on there
};

template <typename T>
struct Planes {
  // Side by side enough for a thread to have kHeld windows. All images are `aligned` if they begin
  // at multiples of kBeside bytes.
  Planes(
      int64_t students, int64_t batch, int64_t height, int64_t width, int64_t channels,
      bool aligned)
      : students(students),
        batch(batch),
        height(static_cast<int>(height)),
        width(static_cast<int>(width)),
        channels(static_cast<int>(channels)),
        together(aligned && channels % kOwn<T> == 0),
        inverse_area(1.0 / double(height * width)) {
    const auto wider = [&] { return kHeld * rows() > windows() && group() < channels; };
    while (group() < kMostChannels && wider()) ++lanes_log;
    groups = static_cast<int>(pieces_of(channels, group()));
    down_step = rows() / across();
    right_step = rows() % across();
  }

  FASTMTT_ANYWHERE int rows() const { return kPlaneThreads >> lanes_log; }
  FASTMTT_BODY int row(int thread) const { return thread >> lanes_log; }
  FASTMTT_BODY int lane(int thread) const { return thread & ((1 << lanes_log) - 1); }
  // Whether registers hold the planes: where no edge or channel is an exception, so that nothing
  // is asked at each pixel; else instructions, and not memory, would set the pace.
  bool whole() const {
    return together && height % 2 == 0 && width % 2 == 0 && windows() <= kHeld * rows();
  }
  FASTMTT_ANYWHERE int across() const { return (width + 1) / 2; }
  FASTMTT_ANYWHERE int down() const { return (height + 1) / 2; }
  FASTMTT_ANYWHERE int windows() const { return down() * across(); }
  FASTMTT_ANYWHERE int64_t area() const { return int64_t(height) * width; }
  FASTMTT_ANYWHERE int64_t pools() const { return int64_t(height / 2) * (width / 2); }
  FASTMTT_ANYWHERE int group() const { return kOwn<T> << lanes_log; }  // channels of an item
  FASTMTT_ANYWHERE int64_t items() const { return students * batch * groups; }

  static constexpr int kMostChannels = kPlaneThreads;  // of an item: a sum for each thread
  int64_t students, batch;
  int height, width, channels;
  int lanes_log = std::bit_width(unsigned(kLeast / kBeside)) - 1;  // of threads side by side
  int groups;                                                       // items of an image
  int down_step, right_step;  // from a thread's window to its next: a thread divides but once
  bool together;              // whether a thread's channels can be loaded as one
  double inverse_area;
};

// What a thread has of an item: some of an image's channels, which may not all exist. kWhole if its
// windows stay in registers.
template <typename T, bool kWhole>
struct Part {
  using Own = T[kOwn<T>];

  FASTMTT_BODY Part(const Planes<T>& of, int64_t item, int thread) : of(of), thread(thread) {
    const auto place = static_cast<uint32_t>(item);  // of fewer than memory could hold
    const uint32_t groups = of.groups, batch = static_cast<uint32_t>(of.batch);
    first = place % groups * of.group();
    channel = first + of.lane(thread) * kOwn<T>;
    image = place / groups % batch;
    student = place / groups / batch;
  }

  // Its channels of the image's first pixel in a tensor [S,B,pixels,C], or null as the tensor.
  template <typename U>
  FASTMTT_BODY U* in(const Students<U>& tensor, int64_t pixels) const {
    return tensor.data == nullptr
               ? nullptr
               : tensor[student] + image * pixels * of.channels + channel;
  }
  FASTMTT_BODY void load(const T* from, Own& to) const {
    if (kWhole || of.together) return cuda::load<kOwn<T>>(from, to);
    load_some(from, to);
  }
  FASTMTT_BODY void store(const Own& from, T* to) const {
    if (kWhole || of.together) return cuda::store<kOwn<T>>(from, to);
    store_some(from, to);
  }
  // Where a window's corner, or its pool, is from the image's first pixel on.
  FASTMTT_BODY int corner(const Window& window, int k) const {
    return (window.y * of.width + window.x) * (2 * of.channels) +
           (k / 2 * of.width + k % 2) * of.channels;
  }
  FASTMTT_BODY int pooled(const Window& window) const {
    return (window.y * (of.width / 2) + window.x) * of.channels;
  }
  // Of parameters [S,C], where students may begin anywhere.
  FASTMTT_BODY void load_parameter(const Students<const T>& parameter, Own& to) const {
    load_some(parameter[student] + channel, to);
  }
  // Of a statistic [S,B,C], the place of the item's channel that `thread` sums, or null: none.
  template <typename U>
  FASTMTT_BODY U* sum_of(const Students<U>& statistic) const {
    const bool has = statistic.data != nullptr && thread < of.group() &&
                     first + thread < of.channels;
    return has ? statistic[student] + int64_t(image) * of.channels + first + thread : nullptr;
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
    FASTMTT_UNROLL for (int k = 0; k < 4; ++k) {
      for (T& value : to[k]) value = 0;
      if (window.holds(k)) load(first + corner(window, k), to[k]);
    }
  }

  // Reads kHeld windows, `first` on, and gives the one after them. read(Stage<k>, window, values),
  // k = 0 and 1, is for all of them before the next: what 0 loads, 1 may wait for.
  template <class Values, class Read>
  FASTMTT_BODY Window fill(Values (&held)[kHeld], const Window& first, const Read& read) const {
    Window next = first;
    for_stages<2>([&](auto stage) {
      next = each_held(held, first, [&](const Window& window, Values& values) {
        read(stage, window, values);
      });
    });
    return next;
  }
  template <class Values, class Work>
  FASTMTT_BODY Window each_held(Values (&held)[kHeld], Window window, const Work& work) const {
    FASTMTT_UNROLL for (int turn = 0; turn < kHeld; ++turn) {
      if (has(window)) work(window, held[turn]);
      advance(window);
    }
    return window;
  }
  // Reads the windows that stay in registers.
  template <class Values, class Read>
  FASTMTT_BODY void keep(Values (&held)[kHeld], const Read& read) const {
    if constexpr (kWhole) fill(held, begin(), read);
  }
  // work(first) with the thread's windows, `first` on, in `held`, kHeld at a time.
  template <class Values, class Read, class Work>
  FASTMTT_BODY void rounds(Values (&held)[kHeld], const Read& read, const Work& work) const {
    if constexpr (kWhole) {
      if (has(begin())) work(begin());
    } else {
      for (Window first = begin(); has(first);) {
        const Window next = fill(held, first, read);
        work(first);
        first = next;
      }
    }
  }
  // work(window, values) for the thread's windows: kept ones, or each read once more.
  template <class Values, class Read, class Work>
  FASTMTT_BODY void visit(Values (&held)[kHeld], const Read& read, const Work& work) const {
    if constexpr (kWhole) {
      each_held(held, begin(), work);
    } else {
      for (Window window = begin(); has(window); advance(window)) {
        Values values;
        for_stages<2>([&](auto stage) { read(stage, window, values); });
        work(window, values);
      }
    }
  }

  FASTMTT_BODY bool has(const Window& window) const {
    return channel < of.channels && window.y < of.down();
  }
  FASTMTT_BODY Window begin() const {
    const auto row = static_cast<unsigned>(of.row(thread)), across = unsigned(of.across());
    return at(row / across, row % across);
  }
  FASTMTT_BODY void advance(Window& window) const {
    const int x = window.x + of.right_step, y = window.y + of.down_step;
    window = x < of.across() ? at(y, x) : at(y + 1, x - of.across());
  }
  FASTMTT_BODY Window at(int y, int x) const {
    return {y, x, kWhole || 2 * y + 1 < of.height, kWhole || 2 * x + 1 < of.width};
  }

  const Planes<T>& of;
  int thread, first, channel, student, image;  // first: the item's first channel
};

// Sums over an item's planes of what its threads have, `kParts` numbers a channel, among what a
// block shares; `kResults` numbers a channel come of them.
template <typename T, int kParts, int kSums, int kResults>
struct PlaneSums {
  using Own = T[kOwn<T>];

  FASTMTT_BODY void put(int k, int thread, const Own& values) {
    store<kOwn<T>>(values, parts[k] + thread * kOwn<T>);
  }
  FASTMTT_BODY double part(int k, const Planes<T>& of, int row, int column) const {
    return parts[k][row * of.group() + column];
  }

  // gather(row, column, sums) adds what a row has of a channel; finish(column, mine, sums) takes
  // the channel's sums.
  template <class Block, class Gather, class Finish>
  FASTMTT_BODY void add(
      Block& block, const Planes<T>& of, const Gather& gather, const Finish& finish) {
    block.each([&](int thread, auto&) {
      const int share = of.row(thread) / kOwn<T>, column = thread - share * of.group();
      double sums[kSums] = {};
      FASTMTT_UNROLL for (int row = 0; row < kOwn<T>; ++row) {
        gather(share * kOwn<T> + row, column, sums);
      }
      FASTMTT_UNROLL for (int k = 0; k < kSums; ++k) halfway[k][thread] = sums[k];
    });
    block.each([&](int thread, auto& mine) {
      if (thread >= of.group()) return;
      double sums[kSums] = {};
      for (int n = thread; n < kPlaneThreads; n += of.group()) {
        FASTMTT_UNROLL for (int k = 0; k < kSums; ++k) sums[k] += halfway[k][n];
      }
      finish(thread, mine, sums);
    });
  }

  // The gather for which sums are those of parts.
  FASTMTT_BODY auto plain(const Planes<T>& of) const {
    return [this, &of](int row, int column, double (&sums)[kSums]) {
      FASTMTT_UNROLL for (int k = 0; k < kSums; ++k) sums[k] += part(k, of, row, column);
    };
  }

  // Of a thread's channels.
  FASTMTT_BODY void result(int k, const Planes<T>& of, int thread, Own& to) const {
    load<kOwn<T>>(results[k] + of.lane(thread) * kOwn<T>, to);
  }

  alignas(16) T parts[kParts][kPlaneThreads * kOwn<T>];
  alignas(16) T results[kResults][Planes<T>::kMostChannels];
  double halfway[kSums][kPlaneThreads];
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
