// Checks of the arguments of dsa and dsa_transpose, whatever computes them. Which kinds there are
// only those can check who can read them: on a GPU the host would have to wait.

#pragma once

#include <ATen/core/Tensor.h>

#include <array>

#include "cpu/results.h"
#include "dsa_kinds.h"

namespace fastmtt {

inline void check_dsa(
    const char* op, const Named& images, const at::Tensor& kind, const at::Tensor& values) {
  const auto& [name, x] = images;
  TORCH_CHECK(
      x.dim() == 5, "fastmtt::", op, ": ", name, " must have shape [S, B, C, H, W], got ",
      x.sizes());
  TORCH_CHECK(
      x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble,
      "fastmtt::", op, ": ", name, " must be float32 or float64, got ", x.scalar_type());
  const int64_t students = x.size(0);
  TORCH_CHECK(
      kind.scalar_type() == at::kLong && kind.dim() == 1 && kind.size(0) == students,
      "fastmtt::", op, ": kind must be int64 of shape [", students, "], got ", kind.scalar_type(),
      " of shape ", kind.sizes());
  const std::array<int64_t, 3> shape = {students, x.size(1), kDsaValues};
  TORCH_CHECK(
      values.is_floating_point() && values.sizes() == at::IntArrayRef(shape), "fastmtt::", op,
      ": values must be floating point of shape ", at::IntArrayRef(shape), ", got ",
      values.scalar_type(), " of shape ", values.sizes());
}

}  // namespace fastmtt
