// The thread that copies: pixels with their border, and the weights of one tap after another.

#pragma once

#include "hopper_plan.h"

namespace fastmtt::cuda::hopper {

template <class P>
FASTMTT_BODY void copy_halo(
    uint32_t to, const CUtensorMap& map, uint32_t barrier, int deep, int row, int image) {
  copy(to, map, barrier, deep * kDeep, -1, row - 1, image);
}

// A block's share of a stage; each of the cluster copies one to all.
template <class P>
FASTMTT_BODY void copy_weights(
    uint32_t to, const CUtensorMap& map, uint32_t barrier, int rank, int deep, int first, int tap,
    int students) {
  constexpr int kShare = P::kLines / P::kCluster, kLines = P::kLinesOfCopy;
  expect(barrier, P::kStageBytes);
#pragma unroll
  for (int line = 0; line < kShare; line += kLines) {
    const int at = rank * kShare + line;  // w_dot follows w
    const uint32_t place = to + at * kLine;
    const int matrix = (first + at / kChannels * students) * kTaps + tap;
    if constexpr (P::kCluster > 1) {
      copy_to_all(place, map, barrier, P::kCluster, deep * kDeep, at % kChannels, matrix);
    } else {
      copy(place, map, barrier, deep * kDeep, at % kChannels, matrix);
    }
  }
}

template <class P>
FASTMTT_BODY void produce(const Shared<P>& shared, const Maps& maps, const Convolution& call) {
  const auto& b = *shared.barriers;
  const int students = call.students;
  Ring<P::kSlots> slot;
  Ring<P::kStages> stage;
  for (Work<P> work(call); work.more(); work.next()) {
    const int student = work.student();
    const int image = student * call.images + work.image();
    if constexpr (P::kMode == kTangent && P::kNorm) {
      const int present = min(P::kPlanes, work.images - work.image());
      const auto* xhat = call.xhat + int64_t(image) * (P::kArea * kChannels);
      for (int i = 0; i < present; ++i) {
        prefetch_to_l2(xhat + i * P::kArea * kChannels, P::kArea * kChannels * 4);
      }
    }
#pragma unroll 1
    for (int block = 0; block < P::kBlocks; ++block) {
      // Where sources take turns: x times w_dot, x_dot times w.
      const bool moves = P::kMode == kTangent && block % 2;
      const int deep = P::kMode == kTangent ? block / 2 : block;
      const uint32_t full = shared_address(&b.slot_full[slot.at]);
      const uint32_t to = shared.slots + slot.at * P::kSlotBytes;
      wait(shared_address(&b.slot_empty[slot.at]), slot.turn ^ 1);
      expect(full, P::kHalos * P::kHaloBytes);
      copy_halo<P>(to, moves ? maps.x_dot : maps.x, full, deep, work.row(), image);
      if constexpr (P::kHalos == 2) {
        copy_halo<P>(to + P::kHaloRoom, maps.x_dot, full, deep, work.row(), image);
      }
      slot.advance();
      const int first = student + (P::kMode == kTangent && !moves ? students : 0);
#pragma unroll 1
      for (int tap = 0; tap < kTaps; ++tap) {
        wait(shared_address(&b.empty[stage.at]), stage.turn ^ 1);
        copy_weights<P>(
            shared.stages + stage.at * P::kStageBytes, maps.w, shared_address(&b.full[stage.at]),
            work.rank, deep, first, tap, students);
        stage.advance();
      }
    }
  }
}

}  // namespace fastmtt::cuda::hopper
