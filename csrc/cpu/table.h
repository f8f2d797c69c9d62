// All kernels for one kind of operand, for the instruction set being compiled for.

#pragma once

#include "filters.h"
#include "norm.h"
#include "norm_backward.h"
#include "patch_block.h"
#include "products.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

// Filters of 128 x 128 channels are more than a second-level cache holds, and vectors of 64 bytes fast
// enough to wait for them: of 180 GFLOP/s, products of 16 rows reach 127, of 32 rows 133, of 64 154.
constexpr int64_t kRowsAtOnce = FASTMTT_VECTOR_BYTES == 64 ? 128 : 1;

template <typename Op>
constexpr Kernels<typename Op::Value> kTable = {
    sizeof(typename Op::Element),
    Op::kGroup,
    Op::kBeside,
    kRowsAtOnce,
    900 << 10,
    &multiply<Op>,
    &multiply_transposed<Op>,
    &Lifting<Op>::lift,
    &Lifting<Op>::lift_transposed,
    &Filters<Op>::to_rows,
    &Filters<Op>::to_columns,
    &Filters<Op>::from_rows,
    &Norm<Op>::normalise,
    &Norm<Op>::normalise_jvp,
    &NormBackward<Op>::backward,
    &NormBackward<Op>::backward_jvp,
};

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
