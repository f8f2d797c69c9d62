// A block's part of a matrix product: a tile of results, summed over terms in their order.

#pragma once

#include <cstdint>

#include "kernel.h"

namespace fastmtt::cuda {

// A factor's lines for a tile, from `first` on of `count`; zero beyond. Its memory runs along the
// terms of the sum, or along the lines.
template <typename T, bool kAlongTerms>
struct Factor {
  static constexpr bool along_terms = kAlongTerms;
  FASTMTT_BODY T operator()(int64_t line, int64_t term) const {
    if (first + line >= count) return 0;
    return kAlongTerms ? data[(first + line) * stride + term] : data[term * stride + first + line];
  }

  const T* data;
  int64_t stride, first, count;
};

template <typename T>
using Lines = Factor<T, true>;
template <typename T>
using Columns = Factor<T, false>;

// A kernel that multiplies has this among what a block shares, and Sums among a thread's.
template <typename T, int kRows, int kColumns, int kThreads>
struct Tile {
  static constexpr int kSide = 16, kDeep = 32;  // threads a row of results; terms at once
  static constexpr int kDown = kThreads / kSide;
  static_assert(kRows % kDown == 0 && kColumns % kSide == 0);
  struct Sums {
    T at[kRows / kDown][kColumns / kSide];
  };

  // A thread's sums += the products of terms begin..end.
  template <class Block, class Left, class Right>
  static FASTMTT_BODY void add(
      Block& block, Tile& tile, const Left& left, const Right& right, int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kDeep) {
      const int deep = static_cast<int>(end - first < kDeep ? end - first : kDeep);
      block.each([&](int thread, auto&) {
        fill<kRows>(thread, left, first, deep, tile.left);
        fill<kColumns>(thread, right, first, deep, tile.right);
      });
      block.each([&](int thread, auto& mine) {
        const int down = thread / kSide, across = thread % kSide;
        for (int l = 0; l < deep; ++l) {
          for (int i = 0; i < kRows / kDown; ++i) {
            for (int j = 0; j < kColumns / kSide; ++j) {
              mine.sums.at[i][j] +=
                  tile.left[l][down + i * kDown] * tile.right[l][across + j * kSide];
            }
          }
        }
      });
    }
  }

  // visit(row, column, sum) for a thread's results in the tile
  template <class Visit>
  static FASTMTT_BODY void visit(int thread, const Sums& sums, const Visit& visit) {
    for (int i = 0; i < kRows / kDown; ++i) {
      for (int j = 0; j < kColumns / kSide; ++j) {
        visit(thread / kSide + i * kDown, thread % kSide + j * kSide, sums.at[i][j]);
      }
    }
  }

  template <int kLines, class Source>
  static FASTMTT_BODY void fill(
      int thread, const Source& source, int64_t first, int deep, T (&to)[kDeep][kLines + 1]) {
    for (int n = thread; n < kDeep * kLines; n += kThreads) {
      const int term = Source::along_terms ? n % kDeep : n / kLines;
      const int line = Source::along_terms ? n / kDeep : n % kLines;
      if (term < deep) to[term][line] = source(line, first + term);
    }
  }

  T left[kDeep][kRows + 1], right[kDeep][kColumns + 1];  // one more: neighbours' banks differ
};

}  // namespace fastmtt::cuda
