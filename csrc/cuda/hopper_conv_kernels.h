// The ConvNet block of 128 channels on planes of 16x16 or 8x8, by Hopper's tensor cores.
//
// An implicit product of pixels and weights in tf32. The pixels of a tile lie in shared memory once
// for all nine taps, 32 channels at a time, with the border around them that the copy fills with
// zeros: a tap is the same matrix from another first row on. Norm, ReLU and pool follow on the sums
// in registers, for a block or a cluster of two has whole planes.

#pragma once

#include "hopper.h"

namespace fastmtt::cuda::hopper {

constexpr int kChannels = 128, kDeep = 32, kTaps = 9;
constexpr int kDeeps = kChannels / kDeep;
constexpr int kLine = kDeep * 4;   // bytes of a pixel's or an output channel's kDeep numbers
constexpr int kWarps = 4;          // of a warpgroup
constexpr int kGroup = 32 * kWarps;
constexpr int kProducts = 8;       // terms of one instruction
constexpr float kEps = 1e-5f;

// What is computed: the block; its tangent with it; or its tangent where xhat and rstd are known.
enum Mode { kPrimal, kBoth, kTangent };

template <int kMode_, int kSide_, int kTiles_, int kGroups_, int kCluster_, bool kSwizzled_>
struct Plan {
  static constexpr int kMode = kMode_;
  static constexpr int kSide = kSide_;          // of a plane
  static constexpr int kTiles = kTiles_;        // of 64 pixels, a warpgroup
  static constexpr int kGroups = kGroups_;      // warpgroups that multiply
  static constexpr int kCluster = kCluster_;    // blocks that share what is read of the weights
  static constexpr bool kSwizzled = kSwizzled_;

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
  static constexpr int kLinesOfCopy =
      kLines / kCluster < kChannels ? kLines / kCluster : kChannels;

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
};

enum Found { kMean, kRstd, kMeanDot, kCorrelation };

struct Maps {
  CUtensorMap x, x_dot, w;
};

// One vector of 128 of each student, `stride` after the one before.
struct Vectors {
  const float* data;
  int64_t stride;
};

struct Arguments {
  int students, images;
  Vectors gamma, gamma_dot, beta, beta_dot;
  float *p, *p_dot, *xhat, *xhat_dot, *rstd, *rstd_dot;
};

// Where the warps that copy and those that multiply are in their common rings.
template <int kCount>
struct Ring {
  FASTMTT_HOPPER void advance() {
    if (++at == kCount) at = 0, turn ^= 1;
  }
  int at = 0, turn = 0;
};

template <class P>
struct Work {
  __device__ explicit Work(const Arguments& arguments) : images(arguments.images) {
    groups = (images + P::kClusterPlanes - 1) / P::kClusterPlanes;
    count = groups * arguments.students;
    item = blockIdx.x / P::kCluster;
    rank = P::kCluster == 1 ? 0 : cluster_rank();
  }
  FASTMTT_HOPPER bool more() const { return item < count; }
  FASTMTT_HOPPER void next() { item += gridDim.x / P::kCluster; }
  FASTMTT_HOPPER int student() const { return item / groups; }
  // The block's first image among its student's; some that follow may be beyond the last.
  FASTMTT_HOPPER int image() const {
    return item % groups * P::kClusterPlanes + (P::kSplit ? 0 : rank * P::kPlanes);
  }
  // The first row of the block's part of the plane.
  FASTMTT_HOPPER int row() const { return P::kSplit ? rank * (P::kSide / 2) : 0; }

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
    statistics =
        reinterpret_cast<typename P::Statistics*>(rest + sizeof(typename P::Barriers));
  }
  uint32_t slots, stages;
  typename P::Barriers* barriers;
  typename P::Statistics* statistics;
};

template <class P>
FASTMTT_HOPPER void prepare(const Shared<P>& shared) {
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

// --- the thread that copies ----------------------------------------------------------------------

template <class P>
FASTMTT_HOPPER void copy_halo(
    uint32_t to, const CUtensorMap& map, uint32_t barrier, int deep, int row, int image) {
  if constexpr (P::kSwizzled) {
    copy(to, map, barrier, deep * kDeep, -1, row - 1, image);
  } else {
    copy(to, map, barrier, 0, -1, row - 1, deep * (kDeep / 4), image);
  }
}

// A block's share of a stage; each of the cluster copies one to all.
template <class P>
FASTMTT_HOPPER void copy_weights(
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
FASTMTT_HOPPER void produce(
    const Shared<P>& shared, const Maps& maps, const Arguments& arguments) {
  const auto& b = *shared.barriers;
  const int students = arguments.students;
  Ring<P::kSlots> slot;
  Ring<P::kStages> stage;
  for (Work<P> work(arguments); work.more(); work.next()) {
    const int student = work.student();
    const int image = student * arguments.images + work.image();
    if constexpr (P::kMode == kTangent) {
      const int present = min(P::kPlanes, work.images - work.image());
      const auto* xhat = arguments.xhat + int64_t(image) * (P::kArea * kChannels);
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

// --- the warps that multiply ---------------------------------------------------------------------

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
  FASTMTT_HOPPER int tile(int t) const { return group * P::kTiles + t; }
  FASTMTT_HOPPER int plane(int t) const { return P::kSide == 8 ? tile(t) : 0; }
  FASTMTT_HOPPER int row(int t) const { return P::kSide == 8 ? 0 : tile(t) / 2 * 8; }
  FASTMTT_HOPPER int column(int t) const { return P::kSide == 8 ? 0 : tile(t) % 2 * 8; }
  FASTMTT_HOPPER int channel(int j) const { return 8 * j + 2 * pair; }

  int group, warp, lane, right, pair, set, in_set;
};

// Units of 16 bytes from a halo's begin to a pixel.
template <class P>
FASTMTT_HOPPER int units(int plane, int row, int column) {
  const int pixel = row * P::kPitch + column;
  return P::kSwizzled ? (plane * P::kPlane + pixel) * (kLine / 16)
                      : plane * P::kPlane * (kLine / 16) + pixel;
}

template <class P>
FASTMTT_HOPPER void multiply_tap(
    Sums<P>& sums, const Place<P>& place, uint32_t pixels, uint32_t weights, bool add) {
  constexpr int kUnits = kProducts * 4 / 16;  // of 16 bytes, along the terms
  constexpr uint64_t kOfPixels = matrix(
      P::kSwizzled, P::kPlane, P::kSwizzled ? P::kPitch * kLine / 16 : P::kPitch);
  constexpr uint64_t kOfWeights = matrix(true, 1, 8 * kLine / 16);
  constexpr int kAlong = P::kSwizzled ? kUnits : kUnits * P::kPlane;
#pragma unroll
  for (int k = 0; k < kDeep / kProducts; ++k) {
#pragma unroll
    for (int t = 0; t < P::kTiles; ++t) {
      const uint32_t corner = units<P>(place.plane(t), place.row(t), place.column(t));
      const uint64_t a = kOfPixels + (pixels + corner + k * kAlong);
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
FASTMTT_HOPPER void release_stage(const Shared<P>& shared, int stage) {
  const int lane = threadIdx.x % 32;
  const uint32_t barrier = shared_address(&shared.barriers->empty[stage]);
  if constexpr (P::kCluster == 1) {
    if (lane == 0) arrive(barrier);
  } else {
    if (lane < P::kCluster) arrive_at(of_block(barrier, lane));
  }
}

template <class P>
FASTMTT_HOPPER void release_slot(const Shared<P>& shared, int slot) {
  if (threadIdx.x % 32 == 0) arrive(shared_address(&shared.barriers->slot_empty[slot]));
}

template <class P>
FASTMTT_HOPPER void convolve(
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

// --- norm, ReLU and pool -------------------------------------------------------------------------
//
// Of each of its tiles a thread has two pixels, one above the other, and 32 channels:
// at[4 * j + 2 * below + e] is of channel(j) + e.

// Eight lanes have one sum each for kCount channels: then each has an eighth of them, whole.
template <int kCount>
FASTMTT_HOPPER void halve(float (&values)[32], int lane, int bit) {
  const bool upper = lane & bit;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float kept = upper ? values[i + kCount] : values[i];
    const float sent = upper ? values[i] : values[i + kCount];
    values[i] = kept + __shfl_xor_sync(~0u, sent, bit);
  }
}

FASTMTT_HOPPER float2 pair_at(const float* vector) {
  return *reinterpret_cast<const float2*>(vector);
}

FASTMTT_HOPPER void put_pair(float* to, const float (&values)[2]) {
  // nvcc would split some; without a clobber, as nothing here reads what is written here
  asm volatile("st.global.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(values[0]), "f"(values[1]));
}

// term(t, j): what the thread adds to the sums over tile t's plane of channel(j) and the next.
template <class P, class Term>
FASTMTT_HOPPER void put_partial(
    const Shared<P>& shared, const Place<P>& place, int value, const Term& term) {
#pragma unroll
  for (int plane = 0; plane < P::kSetPlanes; ++plane) {
    float values[32];
#pragma unroll
    for (int j = 0; j < kChannels / 8; ++j) {
      float2 sum = term(plane, j);
      if (P::kSide == 16) {
#pragma unroll
        for (int t = 1; t < P::kTiles; ++t) {
          const float2 more = term(t, j);
          sum.x += more.x, sum.y += more.y;
        }
      }
      values[2 * j] = sum.x, values[2 * j + 1] = sum.y;
    }
    halve<16>(values, place.lane, 16);
    halve<8>(values, place.lane, 8);
    halve<4>(values, place.lane, 4);
    const int warp = P::kSets == 1 ? place.in_set / 32 : place.warp;
    float* to = shared.statistics->partial[place.set][value][plane][warp];
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      *reinterpret_cast<float2*>(to + place.channel(2 * place.right + s)) =
          make_float2(values[2 * s], values[2 * s + 1]);
    }
  }
}

// Sums over planes of what all put, for one channel a thread: finish(plane, channel, sums).
template <class P, int kRound, class Finish>
FASTMTT_HOPPER void join(
    const Shared<P>& shared, const Place<P>& place, int rank, int turn, const Finish& finish) {
  auto& statistics = *shared.statistics;
  sync(1 + place.set, P::kSetThreads);
  if (place.in_set < kChannels) {
    const int channel = place.in_set;
    float sums[P::kSetPlanes][P::kValues];
#pragma unroll
    for (int plane = 0; plane < P::kSetPlanes; ++plane) {
#pragma unroll
      for (int value = 0; value < P::kValues; ++value) {
        float sum = 0;
#pragma unroll
        for (int warp = 0; warp < P::kSetWarps; ++warp) {
          sum += statistics.partial[place.set][value][plane][warp][channel];
        }
        sums[plane][value] = sum;
      }
    }
    if constexpr (P::kSplit) {
      float(&mail)[P::kValues][kChannels] = statistics.mail[kRound];
      const uint32_t barrier = shared_address(&shared.barriers->mail[kRound]);
      if (channel == 0) expect(barrier, sizeof(mail));
#pragma unroll
      for (int value = 0; value < P::kValues; ++value) {
        send(
            of_block(shared_address(&mail[value][channel]), rank ^ 1), sums[0][value],
            of_block(barrier, rank ^ 1));
      }
      wait(barrier, turn);
#pragma unroll
      for (int value = 0; value < P::kValues; ++value) sums[0][value] += mail[value][channel];
    }
#pragma unroll
    for (int plane = 0; plane < P::kSetPlanes; ++plane) finish(plane, channel, sums[plane]);
  }
  sync(1 + place.set, P::kSetThreads);
}

// Where a thread's upper pixel of a tile is in [S,B,H,W,C], and its window in [S,B,H/2,W/2,C].
template <class P>
struct Position {
  __device__ Position(const Work<P>& work, const Place<P>& place, int t) {
    const int image = work.image() + place.plane(t);
    const int y = work.row() + place.row(t) + 2 * place.warp;
    const int x = place.column(t) + place.right;
    const int64_t plane = int64_t(work.student()) * work.images + image;
    present = image < work.images;
    pixel = (plane * P::kArea + y * P::kSide + x) * kChannels;
    window = (plane * (P::kArea / 4) + y / 2 * (P::kSide / 2) + x / 2) * kChannels;
  }
  bool present;
  int64_t pixel, window;
};

// A set's first plane in [S,B,C], and how many of the student's are left from there on.
template <class P>
struct Planes {
  __device__ Planes(const Work<P>& work, const Place<P>& place) {
    const int image = work.image() + (P::kSide == 8 ? place.set * P::kTiles : 0);
    first = int64_t(work.student()) * work.images + image;
    present = work.images - image;
    tells = !P::kSplit || work.rank == 0;
  }
  int64_t first;
  int present;
  bool tells;
};

template <class P>
FASTMTT_HOPPER constexpr int set_plane(int t) {
  return P::kSide == 8 ? t : 0;
}

// Two channels' sums over a thread's two pixels of a tile.
FASTMTT_HOPPER float2 column(const float (&z)[64], int j) {
  return make_float2(z[4 * j] + z[4 * j + 2], z[4 * j + 1] + z[4 * j + 3]);
}

FASTMTT_HOPPER float2 column_product(const float (&y)[64], const float (&z)[64], int j) {
  const int k = 4 * j;
  return make_float2(y[k] * z[k] + y[k + 2] * z[k + 2], y[k + 1] * z[k + 1] + y[k + 3] * z[k + 3]);
}

// Mean and 1/std of z, which is centred in place, and of z_dot what its tangent takes.
template <class P>
FASTMTT_HOPPER void find(
    Sums<P>& sums, const Shared<P>& shared, const Place<P>& place, const Work<P>& work, int turn,
    const Arguments& to) {
  constexpr int kParts = P::kParts;
  constexpr float kShare = 1.0f / P::kArea;
  auto& found = shared.statistics->found[place.set];
  const Planes<P> planes(work, place);

  put_partial<P>(shared, place, 0, [&](int t, int j) { return column(sums.at[kParts * t], j); });
  if constexpr (P::kMode == kBoth) {
    put_partial<P>(
        shared, place, 1, [&](int t, int j) { return column(sums.at[kParts * t + 1], j); });
  }
  join<P, 0>(shared, place, work.rank, turn, [&](int plane, int channel, const auto& sum) {
    found[kMean][plane][channel] = sum[0] * kShare;
    if constexpr (P::kMode == kBoth) found[kMeanDot][plane][channel] = sum[1] * kShare;
  });
#pragma unroll
  for (int t = 0; t < P::kTiles; ++t) {
    auto& z = sums.at[kParts * t];
#pragma unroll
    for (int j = 0; j < kChannels / 8; ++j) {
      const float2 mean = pair_at(&found[kMean][set_plane<P>(t)][place.channel(j)]);
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        z[4 * j + 2 * below] -= mean.x;
        z[4 * j + 2 * below + 1] -= mean.y;
      }
    }
  }
  put_partial<P>(shared, place, 0, [&](int t, int j) {
    return column_product(sums.at[kParts * t], sums.at[kParts * t], j);
  });
  if constexpr (P::kMode == kBoth) {
    put_partial<P>(shared, place, 1, [&](int t, int j) {
      return column_product(sums.at[kParts * t], sums.at[kParts * t + 1], j);
    });
  }
  join<P, 1>(shared, place, work.rank, turn, [&](int plane, int channel, const auto& sum) {
    const float rstd = 1.0f / sqrtf(sum[0] * kShare + kEps);
    const int64_t at = (planes.first + plane) * kChannels + channel;
    const bool tells = planes.tells && plane < planes.present;
    found[kRstd][plane][channel] = rstd;
    if (tells) to.rstd[at] = rstd;
    if constexpr (P::kMode == kBoth) {
      const float correlation = rstd * (sum[1] * kShare);
      found[kCorrelation][plane][channel] = correlation;
      if (tells) to.rstd_dot[at] = -rstd * rstd * correlation;
    }
  });
}

// The same where xhat and rstd are known.
template <class P>
FASTMTT_HOPPER void find_tangent(
    Sums<P>& sums, const Shared<P>& shared, const Place<P>& place, const Work<P>& work, int turn,
    const Arguments& to) {
  constexpr float kShare = 1.0f / P::kArea;
  auto& found = shared.statistics->found[place.set];
  const Planes<P> planes(work, place);

  put_partial<P>(shared, place, 0, [&](int t, int j) { return column(sums.at[t], j); });
  put_partial<P>(shared, place, 1, [&](int t, int j) {
    const Position<P> at(work, place, t);
    if (!at.present) return make_float2(0, 0);
    const float* xhat = to.xhat + at.pixel + place.channel(j);
    const float2 above = pair_at(xhat), below = pair_at(xhat + P::kSide * kChannels);
    const auto& z_dot = sums.at[t];
    return make_float2(
        above.x * z_dot[4 * j] + below.x * z_dot[4 * j + 2],
        above.y * z_dot[4 * j + 1] + below.y * z_dot[4 * j + 3]);
  });
  join<P, 0>(shared, place, work.rank, turn, [&](int plane, int channel, const auto& sum) {
    const int64_t at = (planes.first + plane) * kChannels + channel;
    const float rstd = plane < planes.present ? to.rstd[at] : 0.0f;
    const float correlation = sum[1] * kShare;
    found[kMeanDot][plane][channel] = sum[0] * kShare;
    found[kCorrelation][plane][channel] = correlation;
    found[kRstd][plane][channel] = rstd;
    if (planes.tells && plane < planes.present) to.rstd_dot[at] = -rstd * rstd * correlation;
  });
}

// gamma or beta or their tangents, of one student.
FASTMTT_HOPPER float2 pair_of(const Vectors& vectors, int student, int channel) {
  return __ldg(
      reinterpret_cast<const float2*>(vectors.data + student * vectors.stride + channel));
}

// Two columns' n = relu(gamma xhat + beta), of which a thread has a window's left or right half: it
// puts the mean over the window of one, and its neighbour that of the other.
template <class P>
FASTMTT_HOPPER void put_pooled(float* to, const Place<P>& place, int j, const float (&n)[2][2]) {
  const bool odd = place.right % 2;
  float mean[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const float sent = odd ? n[0][e] : n[1][e];
    mean[e] = ((odd ? n[1][e] : n[0][e]) + __shfl_xor_sync(~0u, sent, 4)) * 0.25f;
  }
  put_pair(to + place.channel(j + odd), mean);
}

// From z, or z_dot where xhat is known, and what was found: all that the block gives.
template <class P>
FASTMTT_HOPPER void finish(
    Sums<P>& sums, const Shared<P>& shared, const Place<P>& place, const Work<P>& work,
    const Arguments& to) {
  constexpr bool kDots = P::kMode != kPrimal, kKnown = P::kMode == kTangent;
  constexpr int kDown = P::kSide * kChannels;
  const auto& found = shared.statistics->found[place.set];
  const int student = work.student();
#pragma unroll
  for (int t = 0; t < P::kTiles; ++t) {
    const int plane = set_plane<P>(t);
    const Position<P> at(work, place, t);
    if (!at.present) continue;  // a whole warp's
#pragma unroll
    for (int j = 0; j < kChannels / 8; j += 2) {
      float n[2][2] = {}, n_dot[2][2] = {};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int channel = place.channel(j + h);
        const float2 g = pair_of(to.gamma, student, channel);
        const float2 b = pair_of(to.beta, student, channel);
        const float2 rstd = pair_at(&found[kRstd][plane][channel]);
        float2 g_dot, b_dot, mean_dot, correlation;
        if constexpr (kDots) {
          g_dot = pair_of(to.gamma_dot, student, channel);
          b_dot = pair_of(to.beta_dot, student, channel);
          mean_dot = pair_at(&found[kMeanDot][plane][channel]);
          correlation = pair_at(&found[kCorrelation][plane][channel]);
        }
#pragma unroll
        for (int below = 0; below < 2; ++below) {
          const int k = 4 * (j + h) + 2 * below;
          const int64_t pixel = at.pixel + below * kDown + channel;
          float xhat[2], xhat_dot[2];
          if constexpr (kKnown) {
            const float2 known = pair_at(to.xhat + pixel);
            xhat[0] = known.x, xhat[1] = known.y;
          } else {
            const auto& z = sums.at[P::kParts * t];
            xhat[0] = z[k] * rstd.x, xhat[1] = z[k + 1] * rstd.y;
            put_pair(to.xhat + pixel, xhat);
          }
          const float m[2] = {xhat[0] * g.x + b.x, xhat[1] * g.y + b.y};
          n[h][0] += fmaxf(m[0], 0.0f);
          n[h][1] += fmaxf(m[1], 0.0f);
          if constexpr (kDots) {
            const auto& z_dot = sums.at[P::kParts * t + P::kParts - 1];
            xhat_dot[0] = rstd.x * (z_dot[k] - mean_dot.x - xhat[0] * correlation.x);
            xhat_dot[1] = rstd.y * (z_dot[k + 1] - mean_dot.y - xhat[1] * correlation.y);
            put_pair(to.xhat_dot + pixel, xhat_dot);
            n_dot[h][0] += m[0] > 0 ? xhat[0] * g_dot.x + b_dot.x + xhat_dot[0] * g.x : 0.0f;
            n_dot[h][1] += m[1] > 0 ? xhat[1] * g_dot.y + b_dot.y + xhat_dot[1] * g.y : 0.0f;
          }
        }
      }
      put_pooled(to.p + at.window, place, j, n);
      if constexpr (kDots) put_pooled(to.p_dot + at.window, place, j, n_dot);
    }
  }
}

template <class P>
__global__ void __launch_bounds__(P::kThreads, 1) conv_block(
    const __grid_constant__ Maps maps, const __grid_constant__ Arguments arguments) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ char memory[];
  const Shared<P> shared(memory);
  prepare<P>(shared);
  if (threadIdx.x / kGroup == P::kGroups) {
    if constexpr (P::kGroups == 2) give_registers<40>();
    if (threadIdx.x % kGroup == 0) {
      prefetch(maps.x);
      prefetch(maps.w);
      if constexpr (P::kSources == 2) prefetch(maps.x_dot);
      produce<P>(shared, maps, arguments);
    }
  } else {
    if constexpr (P::kGroups == 2) take_registers<232>();
    const Place<P> place;
    Rings<P> rings;
    Sums<P> sums;
    int turn = 0;
    for (Work<P> work(arguments); work.more(); work.next(), turn ^= 1) {
      convolve<P>(sums, shared, place, rings);
#ifndef FASTMTT_HOPPER_BARE  // without an end: how long do products alone take?
      if constexpr (P::kMode == kTangent) {
        find_tangent<P>(sums, shared, place, work, turn, arguments);
      } else {
        find<P>(sums, shared, place, work, turn, arguments);
      }
      finish<P>(sums, shared, place, work, arguments);
#endif
    }
  }
  __syncwarp();
  if (P::kCluster > 1) cluster_sync();  // none ends while others write to its memory
#endif
}

// Weights [S,3,3,Cin,Cout] -> [S,9,Cout,Cin], rounded; of w_dot behind those of w.
struct LayOut {
  static constexpr int kSide = 32, kRowsAtOnce = 8;
  const float *w, *w_dot;
  int64_t stride, stride_dot;
  float* out;
};

__global__ void __launch_bounds__(LayOut::kSide* LayOut::kRowsAtOnce)
    lay_out(const __grid_constant__ LayOut of) {
  constexpr int kSide = LayOut::kSide, kTilesOfSide = kChannels / kSide;
  __shared__ float tile[kSide][kSide + 1];
  const int tap = blockIdx.x % kTaps, at = blockIdx.x / kTaps;
  const int c_in = at / kTilesOfSide * kSide, c_out = at % kTilesOfSide * kSide;
  const int64_t student = blockIdx.y, students = gridDim.y, size = kTaps * kChannels * kChannels;
  const float* from = (blockIdx.z == 0 ? of.w + student * of.stride
                                       : of.w_dot + student * of.stride_dot) +
      tap * kChannels * kChannels;
  float* to = of.out + (blockIdx.z * students + student) * size + tap * kChannels * kChannels;
  for (int i = threadIdx.y; i < kSide; i += LayOut::kRowsAtOnce) {
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;"
        : "=r"(rounded)
        : "f"(from[(c_in + i) * kChannels + c_out + threadIdx.x]));
    tile[i][threadIdx.x] = __uint_as_float(rounded);
  }
  __syncthreads();
  for (int i = threadIdx.y; i < kSide; i += LayOut::kRowsAtOnce) {
    to[(c_out + i) * kChannels + c_in + threadIdx.x] = tile[threadIdx.x][i];
  }
}

}  // namespace fastmtt::cuda::hopper
