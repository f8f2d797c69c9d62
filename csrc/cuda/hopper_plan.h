// How the convolution divides its work, what a block shares, and where a warp is in it.
//
// An implicit product of pixels and weights in tf32. The pixels of a tile lie in shared memory once
// for all nine taps, 32 channels at a time, with the border around them that the copy fills with
// zeros: a tap is the same matrix from another first row on. Norm, ReLU and pool follow on the sums
// in registers, for a block or a cluster of two has whole planes.

#pragma once

#include "hopper.h"
#include "hopper_conv_kernels.h"
#include "hopper_ring.h"

namespace fastmtt::cuda::hopper {

constexpr int kDeep = 32;  // channels at a time
constexpr int kDeeps = kChannels / kDeep;
constexpr int kLine = kDeep * 4;  // bytes of a pixel's or an output channel's kDeep numbers
constexpr int kWarps = 4;         // of a warpgroup
constexpr int kGroup = 32 * kWarps;

// A Division and its consequences.
template <int kMode_, int kSide_, int kTiles_, int kGroups_, int kCluster_, bool kNorm_>
struct Plan {
  static constexpr int kMode = kMode_, kSide = kSide_, kTiles = kTiles_, kGroups = kGroups_;
  static constexpr int kCluster = kCluster_;
  static constexpr bool kNorm = kNorm_;

  static constexpr int kArea = kSide * kSide;
  static constexpr int kPixels = 64 * kTiles * kGroups;
  static constexpr bool kSplit = kPixels < kArea;  // a plane has two blocks
  static constexpr int kPlanes = kSplit ? 1 : kPixels / kArea;  // of a block
  static constexpr int kClusterPlanes = kSplit ? kCluster / 2 : kPlanes * kCluster;
  static_assert(kSide == 8 || kPixels == kArea || (2 * kPixels == kArea && kCluster == 2));
  static_assert(!kSplit || kMode != kTangent);  // a round of mail shows that the other was read

  static constexpr int kParts = kMode == kBoth ? 2 : 1;  // sums of 128 channels a tile
  static constexpr int kSources = kMode == kPrimal ? 1 : 2;
  static constexpr int kHalos = kMode == kBoth ? 2 : 1;  // sources in shared memory at once
  static constexpr int kBlocks = kDeeps * kSources / kHalos;  // of terms, nine taps each

  static constexpr int kPitch = kSide + 2;
  static constexpr int kRows = kSplit ? kSide / 2 + 2 : kSide + 2;
  static constexpr int kPlane = kPitch * kRows;  // pixels of a plane with its border
  static constexpr int kHaloBytes = kPlanes * kPlane * kLine;
  static constexpr int kHaloRoom = (kHaloBytes + 1023) / 1024 * 1024;
  static constexpr int kSlots = 2;
  static constexpr int kSlotBytes = kHalos * kHaloRoom;

  static constexpr int kLines = kParts * kChannels;  // of weights a stage
  static constexpr int kStageBytes = kLines * kLine;
  static constexpr int kLinesOfCopy = kLines / kCluster < kChannels ? kLines / kCluster : kChannels;

  // Warps that share planes: all, or those of a warpgroup.
  static constexpr int kSets = kSide == 8 ? kGroups : 1;
  static constexpr int kSetThreads = kGroups * kGroup / kSets;
  static constexpr int kSetWarps = kSetThreads / 32;
  static constexpr int kSetPlanes = kSide == 8 ? kTiles : 1;

  static constexpr int kValues = kMode == kPrimal ? 1 : 2;  // summed over planes at a time
  static constexpr int kThreads = (kGroups + 1) * kGroup;

  struct Statistics {
    float partial[kSets][kValues][kSetPlanes][kSetWarps][kChannels];
    float found[kSets][4][kSetPlanes][kChannels];  // by Found
    float mail[2][kValues][kChannels];             // from the block that has the plane's other half
  };
  static constexpr int kMost = 227 * 1024 - 1024 - 256 - static_cast<int>(sizeof(Statistics));
  static constexpr int kFit = (kMost - kSlots * kSlotBytes) / kStageBytes;
  static constexpr int kStages = kFit < 6 ? kFit : 6;
  static_assert(kStages >= 2);

  struct Barriers {
    uint64_t slot_full[kSlots], slot_empty[kSlots], full[kStages], empty[kStages], mail[2];
  };
  static constexpr int kBytes = kSlots * kSlotBytes + kStages * kStageBytes +
      static_cast<int>(sizeof(Statistics) + sizeof(Barriers)) + 1024;
  static_assert(kBytes <= 227 * 1024);  // of a block at most
};

enum Found { kMean, kRstd, kMeanDot, kCorrelation };

struct Maps {
  CUtensorMap x, x_dot, w;
};

template <class P>
struct Work {
  __device__ explicit Work(const Convolution& call) : images(call.images) {
    groups = (images + P::kClusterPlanes - 1) / P::kClusterPlanes;
    count = groups * call.students;
    item = blockIdx.x / P::kCluster;
    rank = P::kCluster == 1 ? 0 : cluster_rank();
  }
  FASTMTT_BODY bool more() const { return item < count; }
  FASTMTT_BODY void next() { item += gridDim.x / P::kCluster; }
  FASTMTT_BODY int student() const { return item / groups; }
  // The block's first image among its student's; some that follow may be beyond the last.
  FASTMTT_BODY int image() const {
    return item % groups * P::kClusterPlanes + (P::kSplit ? 0 : rank * P::kPlanes);
  }
  // The first row of the block's part of the plane.
  FASTMTT_BODY int row() const { return P::kSplit ? rank * (P::kSide / 2) : 0; }

  int images, groups, count, item, rank;
};

template <class P>
struct Shared {
  __device__ explicit Shared(char* memory) {
    char* aligned = memory + (1024 - shared_address(memory) % 1024) % 1024;
    slots = shared_address(aligned);
    stages = slots + P::kSlots * P::kSlotBytes;
    char* rest = aligned + P::kSlots * P::kSlotBytes + P::kStages * P::kStageBytes;
    barriers = reinterpret_cast<typename P::Barriers*>(rest);
    statistics = reinterpret_cast<typename P::Statistics*>(rest + sizeof(typename P::Barriers));
  }
  uint32_t slots, stages;
  typename P::Barriers* barriers;
  typename P::Statistics* statistics;
};

template <class P>
FASTMTT_BODY void prepare(const Shared<P>& shared) {
  if (threadIdx.x == 0) {
    auto& b = *shared.barriers;
    for (int i = 0; i < P::kSlots; ++i) {
      init(shared_address(&b.slot_full[i]), 1);
      init(shared_address(&b.slot_empty[i]), P::kGroups * kWarps);
    }
    for (int i = 0; i < P::kStages; ++i) {
      init(shared_address(&b.full[i]), 1);
      init(shared_address(&b.empty[i]), P::kGroups * kWarps * P::kCluster);
    }
    for (int i = 0; i < 2; ++i) init(shared_address(&b.mail[i]), 1);
    show_inits();
  }
  __syncthreads();
  if (P::kCluster > 1) cluster_sync();
}

}  // namespace fastmtt::cuda::hopper
