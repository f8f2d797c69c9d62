// The warps that multiply: who a thread is, and its sums.

#pragma once

#include "hopper_plan.h"

namespace fastmtt::cuda::hopper {

template <class P>
struct Sums {
  float at[P::kTiles * P::kParts][64];  // a tile's z and z_dot follow each other
};

// Who a thread is: the coordinates of what it sums.
template <class P>
struct Place {
  __device__ Place() {
    group = __shfl_sync(~0u, threadIdx.x / kGroup, 0);
    warp = threadIdx.x % kGroup / 32;
    lane = threadIdx.x % 32;
    right = lane / 4;
    pair = lane % 4;
    set = P::kSets == 1 ? 0 : group;
    in_set = P::kSets == 1 ? threadIdx.x : threadIdx.x % kGroup;
  }
  // A tile has 8x8 pixels. Its plane among the block's, its first row in there, and column.
  FASTMTT_BODY int tile(int t) const { return group * P::kTiles + t; }
  FASTMTT_BODY int plane(int t) const { return P::kSide == 8 ? tile(t) : 0; }
  FASTMTT_BODY int row(int t) const { return P::kSide == 8 ? 0 : tile(t) / 2 * 8; }
  FASTMTT_BODY int column(int t) const { return P::kSide == 8 ? 0 : tile(t) % 2 * 8; }
  FASTMTT_BODY int channel(int j) const { return 8 * j + 2 * pair; }

  int group, warp, lane, right, pair, set, in_set;
};

// Units of 16 bytes from a halo's begin to a pixel.
template <class P>
FASTMTT_BODY int units(int plane, int row, int column) {
  const int pixel = row * P::kPitch + column;
  return (plane * P::kPlane + pixel) * (kLine / 16);
}

constexpr int kProducts = 8;  // terms of one instruction

template <class P>
FASTMTT_BODY void multiply_tap(
    Sums<P>& sums, const Place<P>& place, uint32_t pixels, uint32_t weights, bool add) {
  constexpr int kUnits = kProducts * 4 / 16;  // of 16 bytes, along the terms
  constexpr uint64_t kOfPixels = matrix(P::kPitch * kLine / 16);
  constexpr uint64_t kOfWeights = matrix(8 * kLine / 16);
#pragma unroll
  for (int k = 0; k < kDeep / kProducts; ++k) {
#pragma unroll
    for (int t = 0; t < P::kTiles; ++t) {
      const uint32_t corner = units<P>(place.plane(t), place.row(t), place.column(t));
      const uint64_t a = kOfPixels + (pixels + corner + k * kUnits);
      const uint64_t b = kOfWeights + (weights + k * kUnits);
      if constexpr (P::kMode == kBoth) {
        const uint64_t a_dot = a + P::kHaloRoom / 16, b_dot = b + kChannels * kLine / 16;
        multiply(sums.at[2 * t], a, b, add || k > 0);
        multiply(sums.at[2 * t + 1], a, b_dot, add || k > 0);
        multiply(sums.at[2 * t + 1], a_dot, b, 1);
      } else {
        multiply(sums.at[t], a, b, add || k > 0);
      }
    }
  }
}

template <class P>
struct Rings {
  Ring<P::kSlots> slot;
  Ring<P::kStages> stage;
};

template <class P>
FASTMTT_BODY void release_stage(const Shared<P>& shared, int stage) {
  const int lane = threadIdx.x % 32;
  const uint32_t barrier = shared_address(&shared.barriers->empty[stage]);
  if constexpr (P::kCluster == 1) {
    if (lane == 0) arrive(barrier);
  } else {
    if (lane < P::kCluster) arrive_at(of_block(barrier, lane));
  }
}

template <class P>
FASTMTT_BODY void release_slot(const Shared<P>& shared, int slot) {
  if (threadIdx.x % 32 == 0) arrive(shared_address(&shared.barriers->slot_empty[slot]));
}

template <class P>
FASTMTT_BODY void convolve(
    Sums<P>& sums, const Shared<P>& shared, const Place<P>& place, Rings<P>& rings) {
  const auto& barriers = *shared.barriers;
  int last_stage = 0, last_slot = 0;
#pragma unroll 1
  for (int block = 0; block < P::kBlocks; ++block) {
    const int slot = rings.slot.at;
    wait(shared_address(&barriers.slot_full[slot]), rings.slot.turn);
    const uint32_t pixels = (shared.slots + slot * P::kSlotBytes) / 16;
#pragma unroll 1
    for (int tap = 0; tap < kTaps; ++tap) {
      const int stage = rings.stage.at;
      wait(shared_address(&barriers.full[stage]), rings.stage.turn);
      const uint32_t weights = (shared.stages + stage * P::kStageBytes) / 16;
      products_begin();
      multiply_tap<P>(
          sums, place, pixels + units<P>(0, tap / 3, tap % 3), weights, block + tap > 0);
      products_end();
      products_wait<1>();  // the ones before are done: what they read may be replaced
      if (block + tap > 0) release_stage<P>(shared, last_stage);
      if (block > 0 && tap == 0) release_slot<P>(shared, last_slot);
      last_stage = stage;
      rings.stage.advance();
    }
    last_slot = slot;
    rings.slot.advance();
  }
  products_wait<0>();
#pragma unroll
  for (auto& of : sums.at) fence(of);
  release_stage<P>(shared, last_stage);
  release_slot<P>(shared, last_slot);
}

}  // namespace fastmtt::cuda::hopper
