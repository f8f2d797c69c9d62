// Two rows [P] of each student, which begin anywhere and lie apart, in chunks for blocks to take.
//
// Which thread takes which elements follows from the elements' places in their row: no bit depends
// on alignment or company.

#pragma once

#include <cstdint>
#include <type_traits>

#include "kernel.h"

namespace fastmtt::cuda {

constexpr int kFlatThreads = 256, kFlatResident = 4;
constexpr int64_t kChunk = 2048;

template <typename T>
constexpr int kQuad = 16 / sizeof(T);  // neighbours that a thread takes together

template <typename T>
constexpr int kTurns = kChunk / (kFlatThreads * kQuad<T>);  // how often it does in a chunk

template <int kWidth>
using Width = std::integral_constant<int, kWidth>;

template <typename T, int kWidth>
struct alignas(kWidth * sizeof(T)) Pack {
  T at[kWidth];
};

// Neighbours loaded kWidth together; they must be aligned so.
template <int kWidth, typename T, int kCount>
FASTMTT_BODY void load(const T* from, T (&to)[kCount]) {
  for (int i = 0; i < kCount; i += kWidth) {
    const auto pack = *reinterpret_cast<const Pack<T, kWidth>*>(from + i);
    for (int k = 0; k < kWidth; ++k) to[i + k] = pack.at[k];
  }
}

template <int kWidth, typename T, int kCount>
FASTMTT_BODY void store(const T (&from)[kCount], T* to) {
  for (int i = 0; i < kCount; i += kWidth) {
    Pack<T, kWidth> pack;
    for (int k = 0; k < kWidth; ++k) pack.at[k] = from[i + k];
    *reinterpret_cast<Pack<T, kWidth>*>(to + i) = pack;
  }
}

// work(width) with the most elements to load together at all of the addresses, or-ed.
template <typename T, class Work>
FASTMTT_BODY void with_width(uintptr_t addresses, const Work& work) {
  if (addresses % 16 == 0) {
    work(Width<kQuad<T>>());
  } else if (addresses % 8 == 0) {
    work(Width<8 / sizeof(T)>());
  } else {
    work(Width<1>());
  }
}

// To be or-ed with others.
template <typename T>
FASTMTT_BODY uintptr_t address(const T* place) {
  return reinterpret_cast<uintptr_t>(place);
}

struct Chunk {
  int64_t row, begin, end;
};

// Two vectors of each student.
template <typename T>
struct Pair {
  FASTMTT_ANYWHERE int64_t chunks() const { return (length + kChunk - 1) / kChunk; }
  FASTMTT_ANYWHERE int64_t items() const { return rows * chunks(); }
  FASTMTT_BODY Chunk chunk(int64_t item) const {
    const int64_t begin = item % chunks() * kChunk;
    return {item / chunks(), begin, begin + kChunk < length ? begin + kChunk : length};
  }

  // visit(j, x, y, width) for a thread's runs of elements from j on, `width` of them together;
  // `others` are the addresses of whatever else it reads and writes so.
  template <class Visit>
  FASTMTT_BODY void visit(
      const Chunk& chunk, int thread, uintptr_t others, const Visit& visit) const {
    constexpr int kRun = kQuad<T>;
    const T *x = a + chunk.row * a_row, *y = b + chunk.row * b_row;
    const int64_t first = chunk.begin + thread * kRun;
    if (chunk.end - chunk.begin < kChunk) {
      for (int64_t run = first; run < chunk.end; run += kFlatThreads * kRun) {
        for (int64_t j = run; j < run + kRun && j < chunk.end; ++j) {
          const T left[] = {x[j]}, right[] = {y[j]};
          visit(j, left, right, Width<1>());
        }
      }
      return;
    }
    with_width<T>(address(x) | address(y) | others, [&](auto width) {
      T left[kTurns<T>][kRun], right[kTurns<T>][kRun];  // all loads are under way before any use
      for (int turn = 0; turn < kTurns<T>; ++turn) {
        load<width>(x + first + turn * kFlatThreads * kRun, left[turn]);
        load<width>(y + first + turn * kFlatThreads * kRun, right[turn]);
      }
      for (int turn = 0; turn < kTurns<T>; ++turn) {
        visit(first + turn * kFlatThreads * kRun, left[turn], right[turn], width);
      }
    });
  }

  // out[j] = value(a[j], b[j]) for a thread's elements of a chunk; out may be a or b.
  template <class Value>
  FASTMTT_BODY void map(const Chunk& chunk, int thread, T* out, const Value& value) const {
    visit(chunk, thread, address(out), [&](int64_t j, const auto& x, const auto& y, auto width) {
      constexpr int kCount = sizeof(x) / sizeof(T);
      T found[kCount];
      for (int k = 0; k < kCount; ++k) found[k] = value(x[k], y[k]);
      store<width>(found, out + j);
    });
  }

  const T *a, *b;
  int64_t a_row, b_row, rows, length;
};

}  // namespace fastmtt::cuda
