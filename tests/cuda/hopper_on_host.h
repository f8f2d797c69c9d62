// What hopper_conv.cu launches, on the host in double precision: code for tensor cores runs only on
// them, but all that leads to a launch runs here too.

#pragma once

#include <ATen/core/Tensor.h>

#include "../../csrc/cuda/hopper_conv_kernels.h"

namespace fastmtt::cuda::hopper {

void run(const Convolution& call, const at::Tensor&);

}  // namespace fastmtt::cuda::hopper
