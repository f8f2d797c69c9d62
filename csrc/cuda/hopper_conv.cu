#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "device.h"
#include "hopper_conv_kernels.h"
#include "hopper_copying.h"
#include "hopper_maps.h"
#include "hopper_results.h"

namespace fastmtt::cuda::hopper {

// Its last warpgroup copies, the others multiply and write.
template <class P>
__global__ void __launch_bounds__(P::kThreads, 1)
    convolution(const __grid_constant__ Maps maps, const __grid_constant__ Convolution call) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL  // nothing else has the instructions
  extern __shared__ char memory[];
  const Shared<P> shared(memory);
  prepare<P>(shared);
  if (threadIdx.x / kGroup == P::kGroups) {
    if constexpr (P::kGroups == 2) give_registers<40>();
    if (threadIdx.x % kGroup == 0) {
      prefetch(maps.x);
      prefetch(maps.w);
      if constexpr (P::kSources == 2) prefetch(maps.x_dot);
      produce<P>(shared, maps, call);
    }
  } else {
    if constexpr (P::kGroups == 2) take_registers<232>();
    const Place<P> place;
    Rings<P> rings;
    Sums<P> sums;
    int turn = 0;
    for (Work<P> work(call); work.more(); work.next(), turn ^= 1) {
      convolve<P>(sums, shared, place, rings);
      if constexpr (!P::kNorm) {
        put_sums<P>(sums, place, work, call);
      } else if constexpr (P::kMode == kTangent) {
        find_tangent<P>(sums, shared, place, work, turn, call);
        finish<P>(sums, shared, place, work, call);
      } else {
        find<P>(sums, shared, place, work, turn, call);
        finish<P>(sums, shared, place, work, call);
      }
    }
  }
  __syncwarp();
  if (P::kCluster > 1) cluster_sync();  // none ends while others write to its memory
#endif
}

namespace {

template <class P>
CUtensorMap describe_images(const float* data, int images) {
  constexpr uint64_t kSide = P::kSide, kPixel = kChannels * 4, kDown = kSide * kPixel;
  return describe<4>(
      data, {kChannels, kSide, kSide, static_cast<uint64_t>(images)},
      {kPixel, kDown, kSide * kDown}, {kDeep, P::kPitch, P::kRows, P::kPlanes});
}

template <class P>
CUtensorMap describe_weights(const float* data, int students) {
  constexpr uint64_t kRow = kChannels * 4;
  const uint64_t matrices = uint64_t(students) * kTaps * P::kSources;
  return describe<3>(
      data, {kChannels, kChannels, matrices}, {kRow, kChannels * kRow},
      {kDeep, P::kLinesOfCopy, 1});
}

// Clusters that the current device can hold at once.
template <class P>
cudaError_t resident_clusters(cudaLaunchConfig_t config, int* clusters) {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];
  int device = 0, major = 0, minor = 0;
  if (const auto error = cudaGetDevice(&device)) return error;
  const bool keep = device < kDevices;
  if (keep && (*clusters = known[device].load()) > 0) return cudaSuccess;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (major != 9 || minor != 0) return cudaErrorNoKernelImageForDevice;
  if (const auto error = cudaFuncSetAttribute(
          convolution<P>, cudaFuncAttributeMaxDynamicSharedMemorySize, P::kBytes)) {
    return error;
  }
  config.gridDim = dim3(P::kCluster);
  if (const auto error = cudaOccupancyMaxActiveClusters(clusters, convolution<P>, &config)) {
    return error;
  }
  if (*clusters == 0) return cudaErrorLaunchOutOfResources;
  if (keep) known[device].store(*clusters);
  return cudaSuccess;
}

template <class P>
cudaError_t launch_plan(const Convolution& call, cudaStream_t stream) {
  const int images = call.students * call.images;
  Maps maps;
  maps.x = describe_images<P>(call.x, images);
  maps.x_dot = P::kSources == 2 ? describe_images<P>(call.x_dot, images) : maps.x;
  maps.w = describe_weights<P>(call.weights, call.students);

  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {P::kCluster, 1, 1};
  cudaLaunchConfig_t config = {};
  config.blockDim = dim3(P::kThreads);
  config.dynamicSmemBytes = P::kBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  int clusters = 0;
  if (const auto error = resident_clusters<P>(config, &clusters)) return error;
  const int groups = (call.images + P::kClusterPlanes - 1) / P::kClusterPlanes;
  config.gridDim = dim3(P::kCluster * std::min(clusters, groups * call.students));
  return cudaLaunchKernelEx(&config, convolution<P>, maps, call);
}

template <int kNumber, bool kNorm>
cudaError_t launch_number(const Convolution& call, cudaStream_t stream) {
  constexpr Division kOf = kPlans[kNumber];
  return launch_plan<Plan<kOf.mode, kOf.side, kOf.tiles, kOf.groups, kOf.cluster, kNorm>>(
      call, stream);
}

template <int... kNumbers>
cudaError_t launch_one_of(
    std::integer_sequence<int, kNumbers...>, const Convolution& call, cudaStream_t stream) {
  using Launch = cudaError_t (*)(const Convolution&, cudaStream_t);
  constexpr Launch kPlain[] = {launch_number<kNumbers, false>...};
  constexpr Launch kWithNorm[] = {launch_number<kNumbers, true>...};
  return (call.norm ? kWithNorm : kPlain)[call.plan](call, stream);
}

}  // namespace
}  // namespace fastmtt::cuda::hopper

namespace fastmtt::cuda {

template <>
cudaError_t launch(const hopper::Convolution& call, cudaStream_t stream) {
  using Numbers = std::make_integer_sequence<int, hopper::kPlanCount>;
  return hopper::launch_one_of(Numbers(), call, stream);
}

}  // namespace fastmtt::cuda

FASTMTT_LAUNCH(hopper::LayOut);
