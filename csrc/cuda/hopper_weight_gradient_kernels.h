// The weight gradient of the 3x3 convolution of 128 channels on planes of 16x16 or 8x8, by Hopper's
// tensor cores: gw[tap, ci, co] sums a[pixel + tap, ci] * gz[pixel, co], in tf32, to which copies
// round.
//
// Pixels are the terms, and lie far apart in both tensors. So gz is turned over in shared memory,
// once for all taps, and a comes from registers, where a thread may take its numbers from anywhere.
// A strip of eight columns is walked down row by row: a's row, once in registers, is multiplied
// with gz's rows above, at and below it. What lies beyond the strip's ends is left out; beyond its
// sides, the copy fills in zeros.
//
// Within a row of eight pixels, term k < 4 is pixel 2k, and term 4 + k pixel 2k + 1; rows 8 * h + i
// of sixteen are channels 2i + h. So a thread reads two channels at once, and no bank twice.

#pragma once

#include "hopper_registers.h"
#include "hopper_ring.h"
#include "hopper_weight_gradient.h"

namespace fastmtt::cuda::hopper::gradient {

constexpr int kStrip = 8;                   // columns of a strip
constexpr int kRows = 4;                    // of a strip, copied at a time
constexpr int kTerms = kRows * kStrip;
constexpr int kDeep = 32;                   // channels of a box
constexpr int kLine = 128;                  // bytes of kDeep channels, and of kTerms terms
constexpr int kHalf = 64;                   // channels of a that a warpgroup multiplies
constexpr int kWarps = 4;                   // of a warpgroup
constexpr int kGroup = 32 * kWarps;
constexpr int kTurners = kWarps - 1;        // warps that turn gz over; one copies

// A block's share of the product: kHalves times 64 channels of a, kShifts of the three columns of
// taps, kColumns channels of gz. A warpgroup has 64 channels and one column of taps.
template <int kSide_, int kHalves_, int kShifts_, int kColumns_>
struct Plan {
  static constexpr int kSide = kSide_;
  static constexpr int kHalves = kHalves_, kShifts = kShifts_, kColumns = kColumns_;
  static constexpr int kGroups = kHalves * kShifts;
  static constexpr int kThreads = (kGroups + 1) * kGroup;
  static constexpr int kShares = 2 / kHalves * (3 / kShifts) * (kChannels / kColumns);
  static constexpr int kStrips = kSide / kStrip;  // of a plane
  static constexpr int kSteps = kSide / kRows;    // of a strip

  static constexpr int kWide = kStrip + kShifts - 1;
  static constexpr int kBoxes = kHalves * kHalf / kDeep;
  static constexpr int kBoxBytes = kRows * kWide * kLine;
  static constexpr int kABytes = kBoxes * kBoxBytes;
  static constexpr int kGzBytes = kColumns * kTerms * 4;
  static_assert(kBoxBytes % 1024 == 0 && kGzBytes % 1024 == 0);

  // Three turned stages are at work at once where a row of a reaches into the next.
  static constexpr int kAStages = kColumns == 128 ? 5 : 8;
  static constexpr int kGzStages = kColumns == 128 ? 4 : 8;
  static constexpr int kTurnedStages = kColumns == 128 ? 4 : 6;

  static constexpr int kMultiplying = kGroups == 2 ? 232 : 144;  // registers
  static constexpr int kHelping = kGroups == 2 ? 40 : 80;

  struct Barriers {
    uint64_t a_full[kAStages], a_empty[kAStages];
    uint64_t gz_full[kGzStages], gz_empty[kGzStages];
    uint64_t turned_full[kTurnedStages], turned_empty[kTurnedStages];
  };
  static constexpr int kBytes = kAStages * kABytes + (kGzStages + kTurnedStages) * kGzBytes +
      static_cast<int>(sizeof(Barriers)) + 1024;
  static_assert(kBytes <= 227 * 1024);
};

struct Maps {
  CUtensorMap a[2], gz[2];
};

struct Task {
  float* parts;
  int images, pairs, count;
};

// A block's share of the product, and its share of all strips of both pairs.
template <class P>
struct Work {
  __device__ explicit Work(const Task& task) : strips(task.images * P::kStrips) {
    int share = blockIdx.x % P::kShares;
    part = blockIdx.x / P::kShares;
    column = share % (kChannels / P::kColumns) * P::kColumns;
    share /= kChannels / P::kColumns;
    shift = share % (3 / P::kShifts) * P::kShifts;
    channel = share / (3 / P::kShifts) * (P::kHalves * kHalf);
    student = part / task.count;
    const int64_t all = int64_t(strips) * task.pairs, place = part % task.count;
    first = static_cast<int>(all * place / task.count);
    end = static_cast<int>(all * (place + 1) / task.count);
  }
  FASTMTT_BODY int pair(int strip) const { return strip / strips; }
  FASTMTT_BODY int image(int strip) const {
    return student * (strips / P::kStrips) + strip % strips / P::kStrips;
  }
  FASTMTT_BODY int x(int strip) const { return strip % P::kStrips * kStrip; }

  int strips;  // of a student and a pair
  int part, student, channel, shift, column, first, end;
};

template <class P>
struct Shared {
  __device__ explicit Shared(char* memory) {
    char* aligned = memory + (1024 - shared_address(memory) % 1024) % 1024;
    a = shared_address(aligned);
    gz = a + P::kAStages * P::kABytes;
    turned = gz + P::kGzStages * P::kGzBytes;
    barriers = reinterpret_cast<typename P::Barriers*>(
        aligned + (turned - a) + P::kTurnedStages * P::kGzBytes);
  }
  uint32_t a, gz, turned;
  typename P::Barriers* barriers;
};

template <class P>
FASTMTT_BODY void prepare(const Shared<P>& shared) {
  if (threadIdx.x == 0) {
    auto& b = *shared.barriers;
    for (auto& barrier : b.a_full) init(shared_address(&barrier), 1);
    for (auto& barrier : b.a_empty) init(shared_address(&barrier), P::kGroups * kWarps);
    for (auto& barrier : b.gz_full) init(shared_address(&barrier), 1);
    for (auto& barrier : b.gz_empty) init(shared_address(&barrier), kTurners);
    for (auto& barrier : b.turned_full) init(shared_address(&barrier), kTurners);
    for (auto& barrier : b.turned_empty) init(shared_address(&barrier), P::kGroups * kWarps);
    show_inits();
  }
  __syncthreads();
}

// By one lane for its warp, whose accesses are over.
FASTMTT_BODY void tell(const uint64_t& barrier) {
  if (threadIdx.x % 32 == 0) arrive(shared_address(&barrier));
}

// --- the thread that copies ----------------------------------------------------------------------

template <class P>
FASTMTT_BODY void copy_strips(const Shared<P>& shared, const Maps& maps, const Work<P>& work) {
  const auto& b = *shared.barriers;
  Ring<P::kAStages> a;
  Ring<P::kGzStages> gz;
#pragma unroll 1
  for (int strip = work.first; strip < work.end; ++strip) {
    const int pair = work.pair(strip), image = work.image(strip), x = work.x(strip);
#pragma unroll 1
    for (int step = 0; step < P::kSteps; ++step) {
      const uint32_t a_full = shared_address(&b.a_full[a.at]);
      wait(shared_address(&b.a_empty[a.at]), a.turn ^ 1);
      expect(a_full, P::kABytes);
#pragma unroll
      for (int box = 0; box < P::kBoxes; ++box) {
        copy(
            shared.a + a.at * P::kABytes + box * P::kBoxBytes, maps.a[pair], a_full,
            work.channel + box * kDeep, x + work.shift - 1, step * kRows, image);
      }
      a.advance();
      const uint32_t gz_full = shared_address(&b.gz_full[gz.at]);
      wait(shared_address(&b.gz_empty[gz.at]), gz.turn ^ 1);
      expect(gz_full, P::kGzBytes);
      copy(
          shared.gz + gz.at * P::kGzBytes, maps.gz[pair], gz_full, work.column, x, step * kRows,
          image);
      gz.advance();
    }
  }
}

// --- the warps that turn gz over -----------------------------------------------------------------

// [row, pixel, channel] -> [channel, term], of which a line is swizzled. Warps take 32 channels and
// half of the terms in turns, a lane one channel.
template <class P>
FASTMTT_BODY void turn_stage(uint32_t from, uint32_t to, int turner, int lane) {
  constexpr int kPixel = P::kColumns * 4, kFours = kTerms / 8;
#pragma unroll 1
  for (int turn = turner; turn < P::kColumns / 32 * 2; turn += kTurners) {
    const int channel = turn / 2 * 32 + lane, half = turn % 2;
    uint32_t read[kFours][4];
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const int pixel = half * (kTerms / 2) + i / 2 * kStrip + i % 2;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        read[i][k] = load(from + (pixel + 2 * k) * kPixel + channel * 4);
      }
    }
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      store(to + channel * kLine + (((half * kFours + i) ^ (channel % 8)) << 4), read[i]);
    }
  }
}

template <class P>
FASTMTT_BODY void turn_strips(const Shared<P>& shared, const Work<P>& work, int turner) {
  const auto& b = *shared.barriers;
  const int lane = threadIdx.x % 32;
  Ring<P::kGzStages> gz;
  Ring<P::kTurnedStages> turned;
#pragma unroll 1
  for (int left = (work.end - work.first) * P::kSteps; left > 0; --left) {
    wait(shared_address(&b.gz_full[gz.at]), gz.turn);
    wait(shared_address(&b.turned_empty[turned.at]), turned.turn ^ 1);
    turn_stage<P>(
        shared.gz + gz.at * P::kGzBytes, shared.turned + turned.at * P::kGzBytes, turner, lane);
    show_stores();
    __syncwarp();
    tell(b.turned_full[turned.at]);
    tell(b.gz_empty[gz.at]);
    gz.advance();
    turned.advance();
  }
}

// --- the warps that multiply ---------------------------------------------------------------------

// Who a thread is among those that multiply.
template <class P>
struct Place {
  __device__ Place() {
    const int group = __shfl_sync(~0u, threadIdx.x / kGroup, 0);
    half = group / P::kShifts;
    shift = group % P::kShifts;
    warp = threadIdx.x % kGroup / 32;
    row = threadIdx.x % 32 / 4;
    pair = threadIdx.x % 4;
  }
  int half, shift, warp, row, pair;
};

template <class P>
struct Sums {
  float at[3][P::kColumns / 2];  // of a column's three taps
};

// A row's eight pixels of a stage, by the thread's two channels.
template <class P>
FASTMTT_BODY void load_row(uint32_t (&a)[4], uint32_t stage, const Place<P>& place, int row) {
  const uint32_t box = stage + (place.half * 2 + place.warp / 2) * P::kBoxBytes;
  const int sixteen = 4 * (place.warp % 2) + place.row / 2;  // bytes, of the line
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    const int line = row * P::kWide + place.shift + 2 * place.pair + odd;
    const uint2 two =
        load_pair(box + line * kLine + ((sixteen ^ (line % 8)) << 4) + place.row % 2 * 8);
    a[2 * odd] = two.x, a[2 * odd + 1] = two.y;
  }
}

template <class P>
struct Rings {
  Ring<P::kAStages> a;
  Ring<P::kTurnedStages> turned;
  int last = -1;  // the turned stage that unfinished products of the strip before read
};

template <class P>
FASTMTT_BODY void multiply_strip(
    Sums<P>& sums, uint32_t (&a)[2][4], const Shared<P>& shared, const Place<P>& place,
    Rings<P>& rings) {
  constexpr uint64_t kOfTurned = matrix(8 * kLine / 16);
  const auto& b = *shared.barriers;
  int turned[P::kSteps];
#pragma unroll
  for (int row = 0; row < P::kSide; ++row) {
    auto& now = a[row % 2];
    if (row % kRows == 0) wait(shared_address(&b.a_full[rings.a.at]), rings.a.turn);
    products_wait<1>();  // those of two rows before are done, and need neither a nor gz any more
    keep(now);
    if (row == 1 && rings.last >= 0) tell(b.turned_empty[rings.last]);
    if (row > kRows && row % kRows == 2) tell(b.turned_empty[turned[row / kRows - 1]]);
    load_row<P>(now, shared.a + rings.a.at * P::kABytes, place, row % kRows);
    if (row == 0 || (row % kRows == kRows - 1 && row + 1 < P::kSide)) {  // gz's row below
      wait(shared_address(&b.turned_full[rings.turned.at]), rings.turned.turn);
      turned[(row + 1) / kRows] = rings.turned.at;
      rings.turned.advance();
    }
    products_begin();
#pragma unroll
    for (int tap = 2; tap >= 0; --tap) {
      const int of_gz = row + 1 - tap;
      if (of_gz < 0 || of_gz >= P::kSide) continue;
      const uint32_t stage = shared.turned + turned[of_gz / kRows] * P::kGzBytes;
      const uint32_t terms = of_gz % kRows * kStrip * 4;
      multiply(sums.at[tap], now, kOfTurned + (stage + terms) / 16);
    }
    products_end();
    if (row % kRows == kRows - 1) {  // products have begun: a is in registers
      __syncwarp();
      tell(b.a_empty[rings.a.at]);
      rings.a.advance();
    }
  }
  rings.last = turned[P::kSteps - 1];
}

template <class P>
FASTMTT_BODY void put(
    const Sums<P>& sums, const Work<P>& work, const Place<P>& place, float* parts) {
  const int channel = work.channel + place.half * kHalf + 16 * place.warp + 2 * place.row;
#pragma unroll
  for (int tap = 0; tap < 3; ++tap) {
    const int64_t matrix = int64_t(work.part) * kTaps + 3 * tap + work.shift + place.shift;
    float* to = parts + (matrix * kChannels + channel) * kChannels + work.column + 2 * place.pair;
#pragma unroll
    for (int j = 0; j < P::kColumns / 8; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        *reinterpret_cast<float2*>(to + h * kChannels + 8 * j) =
            make_float2(sums.at[tap][4 * j + 2 * h], sums.at[tap][4 * j + 2 * h + 1]);
      }
    }
  }
}

template <class P>
FASTMTT_BODY void multiply_strips(
    const Shared<P>& shared, const Work<P>& work, const Task& task) {
  const Place<P> place;
  Rings<P> rings;
  Sums<P> sums;
  uint32_t a[2][4] = {};
#pragma unroll
  for (auto& of_tap : sums.at) {
#pragma unroll
    for (float& sum : of_tap) sum = 0;
    keep(of_tap);
  }
#pragma unroll 1
  for (int strip = work.first; strip < work.end; ++strip) {
    multiply_strip<P>(sums, a, shared, place, rings);
  }
  products_wait<0>();
#pragma unroll
  for (auto& of_row : a) keep(of_row);
#pragma unroll
  for (auto& of_tap : sums.at) keep(of_tap);
  put<P>(sums, work, place, task.parts);
}

template <class P>
__global__ void __launch_bounds__(P::kThreads, 1)
    weight_gradient(const __grid_constant__ Maps maps, const __grid_constant__ Task task) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ char memory[];
  const Shared<P> shared(memory);
  const Work<P> work(task);
  prepare<P>(shared);
  if (threadIdx.x / kGroup == P::kGroups) {
    give_registers<P::kHelping>();
    const int warp = threadIdx.x % kGroup / 32;
    if (warp < kTurners) {
      turn_strips<P>(shared, work, warp);
    } else if (threadIdx.x % kGroup == 32 * kTurners) {
      copy_strips<P>(shared, maps, work);
    }
  } else {
    take_registers<P::kMultiplying>();
    multiply_strips<P>(shared, work, task);
  }
#endif
}

}  // namespace fastmtt::cuda::hopper::gradient
