// Kernels on the device, for nvcc alone: the blocks of kernel.h and their launch.

#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>

#include "kernel.h"

namespace fastmtt::cuda {

template <class Kernel>
struct DeviceBlock {
  template <class Work>
  __device__ __forceinline__ void each(const Work& work) {
    work(static_cast<int>(threadIdx.x), mine);
    __syncthreads();
  }

  typename Kernel::Shared& shared;
  typename Kernel::Thread mine;
};

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kResident)
    whole(const __grid_constant__ Kernel kernel) {
  __shared__ typename Kernel::Shared shared;
  DeviceBlock<Kernel> block{shared, {}};
  for_stages<Kernel::kStages>([&](auto stage) {
    if constexpr (stage > 0) cooperative_groups::this_grid().sync();
    const int64_t items = kernel.items(stage);
    for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
      kernel.run(stage, block, item);
    }
  });
}

// Blocks that the current device can hold at once: those of several stages wait for each other.
template <class Kernel>
cudaError_t resident_blocks(int* blocks) {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];  // asking takes as long as launching
  int device = 0, processors = 0;
  if (const auto error = cudaGetDevice(&device)) return error;
  const bool keep = device < kDevices;
  if (keep && (*blocks = known[device].load()) > 0) return cudaSuccess;
  if (const auto error =
          cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)) {
    return error;
  }
  if (const auto error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
          blocks, whole<Kernel>, Kernel::kThreads, 0)) {
    return error;
  }
  *blocks *= processors;
  if (keep) known[device].store(*blocks);
  return cudaSuccess;
}

template <class Kernel>
cudaError_t launch(const Kernel& kernel, cudaStream_t stream) {
  constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;
  int64_t blocks = 0;
  for_stages<Kernel::kStages>(
      [&](auto stage) { blocks = std::max<int64_t>(blocks, kernel.items(stage)); });
  if (blocks == 0) return cudaSuccess;
  cudaLaunchAttribute together = {};
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.blockDim = dim3(Kernel::kThreads);
  config.stream = stream;
  if (Kernel::kStages > 1) {
    int resident = 0;
    if (const auto error = resident_blocks<Kernel>(&resident)) return error;
    blocks = std::min<int64_t>(blocks, resident);
    config.attrs = &together;
    config.numAttrs = 1;
  }
  config.gridDim = dim3(static_cast<unsigned>(std::min(blocks, kMostBlocks)));
  return cudaLaunchKernelEx(&config, whole<Kernel>, kernel);
}

}  // namespace fastmtt::cuda

// Compiles a kernel, and its launch for the family's ops.
#define FASTMTT_LAUNCH(...) \
  template cudaError_t fastmtt::cuda::launch(const fastmtt::cuda::__VA_ARGS__&, cudaStream_t)
