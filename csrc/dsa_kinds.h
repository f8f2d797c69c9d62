// DSA's operations in the order of fastmtt/ops/reference_dsa.py, which says what their values mean.

#pragma once

#include <cstdint>

namespace fastmtt {

enum DsaKind : int64_t { kNone, kColor, kCrop, kCutout, kFlip, kScale, kRotate, kKinds };

constexpr int64_t kDsaValues = 3;  // of each image

}  // namespace fastmtt
