// Descriptions of tensors for Hopper's copies, made by the driver, which need not be linked to.

#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

namespace fastmtt::cuda::hopper {

using Encode = decltype(&cuTensorMapEncodeTiled);

inline Encode find_encode() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult how;
  constexpr const char* kName = "cuTensorMapEncodeTiled";
#if CUDART_VERSION >= 12050
  const auto error = cudaGetDriverEntryPointByVersion(kName, &found, 12000, cudaEnableDefault, &how);
#else
  const auto error = cudaGetDriverEntryPoint(kName, &found, cudaEnableDefault, &how);
#endif
  if (error != cudaSuccess || found == nullptr) {
    throw std::runtime_error(
        "fastmtt_hopper: the CUDA driver has no cuTensorMapEncodeTiled; it must be of CUDA 12 or "
        "newer");
  }
  return reinterpret_cast<Encode>(found);
}

// A tensor of floats whose copies round to tf32; sizes and box from the fastest dimension on.
template <int kRank>
CUtensorMap describe(
    const float* data, const uint64_t (&sizes)[kRank], const uint64_t (&strides)[kRank - 1],
    const uint32_t (&box)[kRank], bool swizzled = true) {
  static const Encode encode = find_encode();
  uint32_t ones[kRank];
  std::fill(ones, ones + kRank, 1);
  CUtensorMap map;
  const auto error = encode(
      &map, CU_TENSOR_MAP_DATA_TYPE_TFLOAT32, kRank, const_cast<float*>(data), sizes, strides, box,
      ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
      swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (error != CUDA_SUCCESS) {
    throw std::runtime_error(
        "fastmtt_hopper: the CUDA driver refuses to describe a tensor (CUresult " +
        std::to_string(static_cast<int>(error)) + ")");
  }
  return map;
}

}  // namespace fastmtt::cuda::hopper
