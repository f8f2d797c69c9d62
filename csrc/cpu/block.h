// Where a student's part of a block's tensor lies.

#pragma once

#include "../block_arguments.h"

namespace fastmtt {

// A tensor [S, ...] whose students may lie apart, as views of packed weights [S,P] do; what is one
// student's is contiguous.
template <typename T>
struct Students {
  T* operator[](int64_t student) const { return data + student * stride; }
  T* data;
  int64_t stride;
};

template <typename T>
Students<const T> read(const Tensor& t) {
  return {t.const_data_ptr<T>(), t.stride(0)};
}

template <typename T>
Students<T> write(const Tensor& t, bool wanted = true) {
  if (!wanted) return {nullptr, 0};
  return {t.mutable_data_ptr<T>(), t.stride(0)};
}

}  // namespace fastmtt
