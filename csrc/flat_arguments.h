// Checks of the flat-vector ops' arguments, whatever computes them.

#pragma once

#include <ATen/core/Tensor.h>

#include "cpu/results.h"

namespace fastmtt {

inline void check_first(const char* op, const char* name, const at::Tensor& t) {
  TORCH_CHECK(
      t.dim() == 2, "fastmtt::", op, ": ", name, " must have shape [S, P], got ", t.sizes());
  TORCH_CHECK(
      t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble,
      "fastmtt::", op, ": ", name, " must be float32 or float64, got ", t.scalar_type());
}

inline void check_alike(const char* op, const Named& argument, const Named& first) {
  const auto& [name, t] = argument;
  TORCH_CHECK(
      t.sizes() == first.tensor.sizes(),
      "fastmtt::", op, ": ", name, " must have the shape of ", first.name, ", ",
      first.tensor.sizes(), ", got ", t.sizes());
  TORCH_CHECK(
      t.scalar_type() == first.tensor.scalar_type(),
      "fastmtt::", op, ": ", name, " must have the dtype of ", first.name, ", ",
      first.tensor.scalar_type(), ", got ", t.scalar_type());
}

// Two vectors of one shape and dtype a student.
inline void check_pair(const char* op, const Named& first, const Named& second) {
  check_first(op, first.name, first.tensor);
  check_alike(op, second, first);
}

inline void check_rate(const char* op, const at::Tensor& lr, const at::Tensor& theta) {
  TORCH_CHECK(
      lr.dim() == 0 || (lr.dim() == 1 && lr.size(0) == theta.size(0)),
      "fastmtt::", op, ": lr must have shape [] or [S] = [", theta.size(0), "], got ",
      lr.sizes());
  TORCH_CHECK(
      lr.scalar_type() == theta.scalar_type(),
      "fastmtt::", op, ": lr must have the dtype of theta, ", theta.scalar_type(), ", got ",
      lr.scalar_type());
}

inline void check_keep(const at::Tensor& keep, const at::Tensor& theta) {
  TORCH_CHECK(
      keep.scalar_type() == at::kBool, "fastmtt::sqdist: keep must be bool, got ",
      keep.scalar_type());
  TORCH_CHECK(
      keep.sizes() == theta.sizes() || keep.sizes() == theta.sizes().slice(1),
      "fastmtt::sqdist: keep must have shape [P] or [S, P] for theta ", theta.sizes(), ", got ",
      keep.sizes());
}

}  // namespace fastmtt
