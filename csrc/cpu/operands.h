// Rows of the operands of products, written by kGroup at a time (kernels.h).

#pragma once

#include "transforms.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

template <typename Op>
struct Operands {
  using T = typename Op::Value;
  using E = typename Op::Element;
  using Row = Panel<T>;
  static constexpr int64_t kLength = Row::kLength;
  static constexpr int kGroup = Op::kGroup;

  static E* at(const Operand& x, int64_t position, int64_t panel, int64_t row) {
    return static_cast<E*>(x.data) + position * x.position + panel * x.panel + row * kLength;
  }

  static int64_t present(int64_t channels, int64_t panel) {
    const int64_t left = channels - panel * kLength;
    return left < kLength ? left : kLength;
  }

  // kGroup rows of one position, one after another or interleaved.
  FASTMTT_INLINE_HERE static void put(
      const Row* rows, const Operand& v, int64_t position, int64_t panel, int64_t row, bool pairs) {
    if (pairs) return Op::store_group(rows, at(v, position, panel, row));
    constexpr int64_t kBeside = Op::kBeside;
    E* to = at(v, position, panel / kBeside * kBeside, row * kBeside) + panel % kBeside * kLength;
    FASTMTT_UNROLL for (int i = 0; i < kGroup; ++i) Op::store(rows[i], to + i * kBeside * kLength);
  }

  // Step's transform of kGroup squares, load(i, y, x) from the i-th; take(position, kGroup panels).
  template <typename Step, typename Load, typename Take>
  FASTMTT_INLINE_HERE static void transform_group(const Load& load, const Take& take) {
    Row before[kPoints * kPoints][kGroup];
    FASTMTT_UNROLL for (int i = 0; i < kGroup; ++i) {
      transform<Step, T>(
          [&](int y, int x) FASTMTT_HERE { return load(i, y, x); },
          [&](int y, int x, const Row& value) FASTMTT_HERE {
            const int q = y * kPoints + x;
            if (i + 1 < kGroup) {
              before[q][i] = value;
              return;
            }
            Row rows[kGroup];
            FASTMTT_UNROLL for (int k = 0; k + 1 < kGroup; ++k) rows[k] = before[q][k];
            rows[i] = value;
            take(q, rows);
          });
    }
  }
};

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
