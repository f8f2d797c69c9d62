// Launches of the weight gradient on Hopper.

#include "hopper_weight_gradient.h"

#include "hopper_maps.h"
#include "hopper_weight_gradient_kernels.h"

namespace fastmtt::cuda::hopper::gradient {
namespace {

// [images, side, side, channels], of which boxes of some channels, columns and kRows rows are read.
template <class P>
CUtensorMap describe_planes(
    const float* data, int images, uint32_t channels, uint32_t columns, bool swizzled) {
  constexpr uint64_t kSide = P::kSide, kPixel = kChannels * 4, kDown = kSide * kPixel;
  return describe<4>(
      data, {kChannels, kSide, kSide, static_cast<uint64_t>(images)},
      {kPixel, kDown, kSide * kDown}, {channels, columns, kRows, 1}, swizzled);
}

// The kernel is empty elsewhere.
cudaError_t check_device() {
  int device = 0, major = 0, minor = 0;
  if (const auto error = cudaGetDevice(&device)) return error;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return major == 9 && minor == 0 ? cudaSuccess : cudaErrorNoKernelImageForDevice;
}

template <class P>
cudaError_t launch_plan(const Arguments& given, cudaStream_t stream) {
  if (const auto error = check_device()) return error;
  if (const auto error = cudaFuncSetAttribute(
          weight_gradient<P>, cudaFuncAttributeMaxDynamicSharedMemorySize, P::kBytes)) {
    return error;
  }
  const int pairs = given.a_second == nullptr ? 1 : 2, images = given.students * given.images;
  Maps maps;
  maps.a[0] = describe_planes<P>(given.a, images, kDeep, P::kWide, true);
  maps.gz[0] = describe_planes<P>(given.gz, images, P::kColumns, kStrip, false);
  if (pairs == 2) {
    maps.a[1] = describe_planes<P>(given.a_second, images, kDeep, P::kWide, true);
    maps.gz[1] = describe_planes<P>(given.gz_second, images, P::kColumns, kStrip, false);
  }
  const Task task{given.parts, given.images, pairs, given.count};
  const dim3 grid(P::kShares * given.count * given.students);
  weight_gradient<P><<<grid, P::kThreads, P::kBytes, stream>>>(maps, task);
  return cudaGetLastError();
}

template <int kSide>
cudaError_t launch_side(int plan, const Arguments& given, cudaStream_t stream) {
  static_assert(kPlans == 2);
  return plan == 0 ? launch_plan<Plan<kSide, 2, 1, 128>>(given, stream)
                   : launch_plan<Plan<kSide, 1, 3, 64>>(given, stream);
}

}  // namespace

cudaError_t run(int plan, int side, const Arguments& given, cudaStream_t stream) {
  if (plan < 0 || plan >= kPlans || (side != 8 && side != 16)) return cudaErrorInvalidValue;
  return side == 16 ? launch_side<16>(plan, given, stream) : launch_side<8>(plan, given, stream);
}

}  // namespace fastmtt::cuda::hopper::gradient
