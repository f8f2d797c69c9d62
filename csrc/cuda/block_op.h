// What the ConvNet block's ops share on a GPU. Their `scratch` stays as it is: the allocator gives
// memory back for nothing, and one that grew would leave a recorded graph with what is no more.

#pragma once

#include <ATen/autocast_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "../block_arguments.h"
#include "convolution.h"
#include "op.h"
#include "planes.h"

namespace fastmtt::cuda {

// Within, ATen's convolutions record no graph and compute in their operands' own dtype.
struct BlockGuard {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

template <typename T>
Planes<T> planes_of(const Block& block) {
  return {block.students, block.batch, block.height, block.width, block.out};
}

// Each image's part of the gradients of gamma and beta, which a norm's backward sums.
inline Tensor empty_shares(const Block& block, bool wanted) {
  const auto options = block.like.options().dtype(at::kDouble);
  return wanted ? at::empty({block.students, block.batch, 2, block.out}, options)
                : at::empty({0}, options);
}

}  // namespace fastmtt::cuda
