// What an op needs to run kernels on the tensors' device and in torch's current stream. With
// FASTMTT_ON_HOST, in the tests, the ops take CPU tensors, and kernels run on the host.

#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <initializer_list>

#include "../cpu/results.h"
#include "memory.h"

#ifdef FASTMTT_ON_HOST
#include "on_host.h"
#define FASTMTT_CUDA_OPS(m) TORCH_LIBRARY_IMPL(fastmtt_on_host, CPU, m)
#else
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#define FASTMTT_CUDA_OPS(m) TORCH_LIBRARY_IMPL(fastmtt, CUDA, m)
#endif

namespace fastmtt::cuda {

#ifndef FASTMTT_ON_HOST
template <class Kernel>
cudaError_t launch(const Kernel& kernel, cudaStream_t stream);  // compiled in the family's .cu

template <class Kernel>
void run(const Kernel& kernel, const at::Tensor& where) {
  const c10::cuda::CUDAGuard guard(where.device());
  C10_CUDA_CHECK(launch(kernel, c10::cuda::getCurrentCUDAStream()));
}
#endif

template <typename T>
Students<const T> students_of(const at::Tensor& t) {
  return {t.const_data_ptr<T>(), t.stride(0)};
}

template <typename T>
Students<T> places_of(bool needed, const at::Tensor& t) {
  if (!needed) return {nullptr, 0};
  return {t.mutable_data_ptr<T>(), t.stride(0)};
}

// The dispatcher looks at one tensor's device; a kernel that is given another's memory faults.
inline void check_devices(const char* op, const Named& first, std::initializer_list<Named> others) {
  for (const auto& [name, t] : others) {
    TORCH_CHECK(
        t.device() == first.tensor.device(), "fastmtt::", op, ": ", name,
        " must be on the device of ", first.name, ", ", first.tensor.device(), ", got ",
        t.device());
  }
}

// As check_result, but students may lie apart.
inline void check_students_result(
    const char* op, const Named& result, at::IntArrayRef shape, const at::Tensor& like) {
  const auto& [name, t] = result;
  const bool apart = t.dim() == 0 || t.size(0) < 2 || t.stride(0) * t.size(0) >= t.numel();
  const bool fits = t.sizes() == shape && t.scalar_type() == like.scalar_type() && apart;
  TORCH_CHECK(
      fits && (t.numel() == 0 || t.dim() < 2 ? t.is_contiguous() : t.select(0, 0).is_contiguous()),
      "fastmtt::", op, ": ", name, " must be a ", like.scalar_type(), " tensor of shape ", shape,
      ", contiguous for each student, to be written into, got ", t.scalar_type(), " of shape ",
      t.sizes(), " and strides ", t.strides());
  raise_version(t);
}

}  // namespace fastmtt::cuda
