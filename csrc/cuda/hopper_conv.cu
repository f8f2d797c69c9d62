// The Hopper block as plain C functions on device pointers; each returns a cudaError_t, or a
// CUresult of the tensor maps as a negative number.

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "hopper_conv_kernels.h"

namespace fastmtt::cuda::hopper {

struct Operands {
  const float *x, *x_dot, *w;  // w laid out, w_dot behind it
};

// A tensor of floats that arrive rounded to tf32; sizes and box from the fastest dimension on.
template <int kRank>
int describe(
    CUtensorMap* map, const float* data, const uint64_t (&sizes)[kRank],
    const uint64_t (&strides)[kRank - 1], const uint32_t (&box)[kRank], bool swizzled) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult how;
    cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &how);
    return reinterpret_cast<Encode>(found);
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  uint32_t ones[kRank];
  std::fill(ones, ones + kRank, 1);
  return -static_cast<int>(encode(
      map, CU_TENSOR_MAP_DATA_TYPE_TFLOAT32, kRank, const_cast<float*>(data), sizes, strides, box,
      ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
      swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
}

template <class P>
int describe_images(CUtensorMap* map, const float* data, int images) {
  constexpr uint64_t kSide = P::kSide, kPixel = kChannels * 4, kDown = kSide * kPixel;
  constexpr uint32_t kWide = P::kPitch, kHigh = P::kRows, kPlanes = P::kPlanes;
  const auto count = static_cast<uint64_t>(images);
  if constexpr (P::kSwizzled) {
    return describe<4>(
        map, data, {kChannels, kSide, kSide, count}, {kPixel, kDown, kSide * kDown},
        {kDeep, kWide, kHigh, kPlanes}, true);
  } else {
    return describe<5>(
        map, data, {4, kSide, kSide, kChannels / 4, count}, {kPixel, kDown, 16, kSide * kDown},
        {4, kWide, kHigh, kDeep / 4, kPlanes}, false);
  }
}

template <class P>
int describe_weights(CUtensorMap* map, const float* data, int students) {
  constexpr uint64_t kRow = kChannels * 4;
  const uint64_t matrices = uint64_t(students) * kTaps * (P::kMode == kPrimal ? 1 : 2);
  return describe<3>(
      map, data, {kChannels, kChannels, matrices}, {kRow, kChannels * kRow},
      {kDeep, P::kLinesOfCopy, 1}, true);
}

// Clusters that the device can hold at once.
template <class P>
cudaError_t resident(cudaLaunchConfig_t config, int* clusters) {
  static int known = 0;
  if (known == 0) {
    if (const auto error = cudaFuncSetAttribute(
            conv_block<P>, cudaFuncAttributeMaxDynamicSharedMemorySize, P::kBytes)) {
      return error;
    }
    config.gridDim = dim3(P::kCluster);
    if (const auto error = cudaOccupancyMaxActiveClusters(&known, conv_block<P>, &config)) {
      return error;
    }
    if (known == 0) return cudaErrorLaunchOutOfResources;
  }
  *clusters = known;
  return cudaSuccess;
}

template <class P>
int run(const Operands& operands, const Arguments& arguments, cudaStream_t stream) {
  Maps maps;
  const int images = arguments.students * arguments.images;
  if (const int error = describe_images<P>(&maps.x, operands.x, images)) return error;
  const float* x_dot = P::kSources == 2 ? operands.x_dot : operands.x;
  if (const int error = describe_images<P>(&maps.x_dot, x_dot, images)) return error;
  if (const int error = describe_weights<P>(&maps.w, operands.w, arguments.students)) return error;

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
  if (const auto error = resident<P>(config, &clusters)) return error;
  const int groups = (arguments.images + P::kClusterPlanes - 1) / P::kClusterPlanes;
  config.gridDim = dim3(P::kCluster * std::min(clusters, groups * arguments.students));
  return cudaLaunchKernelEx(&config, conv_block<P>, maps, arguments);
}

using Run = int (*)(const Operands&, const Arguments&, cudaStream_t);

struct Choice {
  int mode, side;
  const char* name;
  Run run;
};

#define FASTMTT_PLAN(mode, side, tiles, groups, cluster, swizzled)                \
  {                                                                               \
    mode, side, #tiles "x" #groups " tiles, cluster " #cluster ", " #swizzled,    \
        run<Plan<mode, side, tiles, groups, cluster, swizzled>>                   \
  }
constexpr bool swizzled = true, plain = false;
const Choice kChoices[] = {
    FASTMTT_PLAN(kPrimal, 16, 2, 2, 1, plain),
    FASTMTT_PLAN(kPrimal, 16, 2, 2, 1, swizzled),
    FASTMTT_PLAN(kPrimal, 16, 2, 2, 2, swizzled),
    FASTMTT_PLAN(kPrimal, 16, 1, 2, 2, swizzled),
    FASTMTT_PLAN(kPrimal, 8, 2, 2, 1, plain),
    FASTMTT_PLAN(kPrimal, 8, 2, 2, 1, swizzled),
    FASTMTT_PLAN(kPrimal, 8, 2, 2, 2, swizzled),
    FASTMTT_PLAN(kPrimal, 8, 1, 2, 2, swizzled),
    FASTMTT_PLAN(kPrimal, 8, 1, 1, 2, swizzled),
    FASTMTT_PLAN(kPrimal, 8, 1, 1, 4, swizzled),
    FASTMTT_PLAN(kBoth, 16, 1, 2, 2, plain),
    FASTMTT_PLAN(kBoth, 16, 1, 2, 2, swizzled),
    FASTMTT_PLAN(kBoth, 8, 1, 2, 1, plain),
    FASTMTT_PLAN(kBoth, 8, 1, 2, 1, swizzled),
    FASTMTT_PLAN(kBoth, 8, 1, 2, 2, swizzled),
    FASTMTT_PLAN(kBoth, 8, 1, 1, 2, swizzled),
    FASTMTT_PLAN(kBoth, 8, 1, 1, 4, swizzled),
    FASTMTT_PLAN(kTangent, 16, 2, 2, 1, plain),
    FASTMTT_PLAN(kTangent, 16, 2, 2, 1, swizzled),
    FASTMTT_PLAN(kTangent, 16, 2, 2, 2, swizzled),
    FASTMTT_PLAN(kTangent, 8, 2, 2, 1, plain),
    FASTMTT_PLAN(kTangent, 8, 2, 2, 1, swizzled),
    FASTMTT_PLAN(kTangent, 8, 2, 2, 2, swizzled),
    FASTMTT_PLAN(kTangent, 8, 1, 2, 2, swizzled),
    FASTMTT_PLAN(kTangent, 8, 1, 1, 4, swizzled),
};
constexpr int kCount = sizeof(kChoices) / sizeof(kChoices[0]);

}  // namespace fastmtt::cuda::hopper

using namespace fastmtt::cuda::hopper;

extern "C" {

int fastmtt_hopper_choices() { return kCount; }
int fastmtt_hopper_mode(int choice) { return kChoices[choice].mode; }
int fastmtt_hopper_side(int choice) { return kChoices[choice].side; }
const char* fastmtt_hopper_name(int choice) { return kChoices[choice].name; }

int fastmtt_hopper_lay_out(
    const float* w, int64_t stride, const float* w_dot, int64_t stride_dot, float* out,
    int students, cudaStream_t stream) {
  constexpr int kTiles = (kChannels / LayOut::kSide) * (kChannels / LayOut::kSide);
  const dim3 grid(kTaps * kTiles, students, w_dot == nullptr ? 1 : 2);
  lay_out<<<grid, dim3(LayOut::kSide, LayOut::kRowsAtOnce), 0, stream>>>(
      {w, w_dot, stride, stride_dot, out});
  return cudaGetLastError();
}

int fastmtt_hopper_conv_block(
    int choice, const Operands* operands, const Arguments* arguments, cudaStream_t stream) {
  return kChoices[choice].run(*operands, *arguments, stream);
}
}
