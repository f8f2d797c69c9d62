// The weight gradient on Hopper as its op calls it.

#pragma once

#include <cuda_runtime_api.h>

namespace fastmtt::cuda::hopper::gradient {

constexpr int kChannels = 128, kTaps = 9;
constexpr int kPlans = 2;

// a, gz: [students, images, side, side, kChannels]; a second pair is added, or null.
// parts: [students, count, kTaps, kChannels, kChannels], of which each sums a share of the images.
struct Arguments {
  const float *a, *gz, *a_second, *gz_second;
  float* parts;
  int students, images, count;
};

// Throws std::runtime_error where the driver makes no descriptions for the copies.
cudaError_t run(int plan, int side, const Arguments& arguments, cudaStream_t stream);

}  // namespace fastmtt::cuda::hopper::gradient
