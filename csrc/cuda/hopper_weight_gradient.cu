// Launches of the weight gradient on Hopper, and the same as a plain C function.

#include "hopper_weight_gradient.h"

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "hopper_weight_gradient_kernels.h"

namespace fastmtt::cuda::hopper::gradient {

// [images, side, side, channels], of which boxes of some channels, columns and kRows rows are read.
static int describe(
    CUtensorMap* map, const float* data, int64_t images, int side, int channels, int columns,
    bool swizzled) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult how;
    cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &how);
    return reinterpret_cast<Encode>(found);
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  const uint64_t across = side, pixel = kChannels * 4;
  const uint64_t sizes[] = {kChannels, across, across, static_cast<uint64_t>(images)};
  const uint64_t strides[] = {pixel, across * pixel, across * across * pixel};
  const uint32_t box[] = {
      static_cast<uint32_t>(channels), static_cast<uint32_t>(columns), kRows, 1};
  const uint32_t ones[] = {1, 1, 1, 1};
  return -static_cast<int>(encode(
      map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4, const_cast<float*>(data), sizes, strides, box, ones,
      CU_TENSOR_MAP_INTERLEAVE_NONE,
      swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
}

template <class P>
static int launch(const Arguments& given, cudaStream_t stream) {
  if (const auto error = cudaFuncSetAttribute(
          weight_gradient<P>, cudaFuncAttributeMaxDynamicSharedMemorySize, P::kBytes)) {
    return error;
  }
  const int pairs = given.a_second == nullptr ? 1 : 2;
  const int64_t images = int64_t(given.students) * given.images;
  const float* a[] = {given.a, pairs == 2 ? given.a_second : given.a};
  const float* gz[] = {given.gz, pairs == 2 ? given.gz_second : given.gz};
  Maps maps;
  for (int pair = 0; pair < 2; ++pair) {
    if (const int error =
            describe(&maps.a[pair], a[pair], images, P::kSide, kDeep, P::kWide, true)) {
      return error;
    }
    if (const int error = describe(
            &maps.gz[pair], gz[pair], images, P::kSide, P::kColumns, kStrip, false)) {
      return error;
    }
  }
  const Task task{given.parts, given.images, pairs, given.count};
  const dim3 grid(P::kShares * given.count * given.students);
  weight_gradient<P><<<grid, P::kThreads, P::kBytes, stream>>>(maps, task);
  return cudaGetLastError();
}

template <int kSide>
static int launch(int plan, const Arguments& given, cudaStream_t stream) {
  static_assert(kPlans == 2);
  return plan == 0 ? launch<Plan<kSide, 2, 1, 128>>(given, stream)
                   : launch<Plan<kSide, 1, 3, 64>>(given, stream);
}

int run(int plan, int side, const Arguments& given, cudaStream_t stream) {
  if (plan < 0 || plan >= kPlans || (side != 8 && side != 16)) return cudaErrorInvalidValue;
  return side == 16 ? launch<16>(plan, given, stream) : launch<8>(plan, given, stream);
}

}  // namespace fastmtt::cuda::hopper::gradient

extern "C" int fastmtt_hopper_weight_gradient(
    int plan, int side, const fastmtt::cuda::hopper::gradient::Arguments* given,
    cudaStream_t stream) {
  return fastmtt::cuda::hopper::gradient::run(plan, side, *given, stream);
}
