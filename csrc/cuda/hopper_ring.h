// Where the warps that copy and those that multiply are in the ring of stages that they share.

#pragma once

#include "kernel.h"

namespace fastmtt::cuda::hopper {

template <int kCount>
struct Ring {
  FASTMTT_BODY void advance() {
    if (++at == kCount) at = 0, turn ^= 1;
  }
  int at = 0, turn = 0;
};

}  // namespace fastmtt::cuda::hopper
