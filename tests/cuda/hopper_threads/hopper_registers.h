// Hopper's instructions on the host, for kernels that use no others: a block's threads are threads.
//
// Copies are made at once, before which a stage must be free. Products are done when they are waited
// for, with what registers and shared memory have in them then.

#pragma once

#include <barrier>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <vector>

#include "kernel.h"

#define __device__
#define __global__
#define __shared__
#define __launch_bounds__(...)
#define __grid_constant__
#define __CUDA_ARCH_FEAT_SM90_ALL

struct Index {
  int x;
};
inline thread_local Index threadIdx, blockIdx;
struct float2 {
  float x, y;
};
struct uint2 {
  uint32_t x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

// [images, side, side, channels], of which boxes of channels, columns and rows are copied.
struct CUtensorMap {
  const float* data;
  int images, side, channels, box_channels, box_columns, box_rows;
  bool swizzled;
};

namespace host {

inline void check(bool holds, const char* what) {
  if (holds) return;
  std::printf("thread %d: %s\n", threadIdx.x, what);
  std::fflush(stdout);
  std::_Exit(1);
}

struct Phase {
  int arrivals, left, bytes, number;
};

struct Product {
  float* d;
  const uint32_t* a;
  uint64_t b;
  int columns;
};

constexpr int kMemory = 227 * 1024, kMostThreads = 512;
inline char* memory;  // of a block
inline std::mutex lock;
inline std::condition_variable changed;
inline std::map<uint32_t, Phase> phases;
inline std::barrier<>* block;
inline std::barrier<>*warps[kMostThreads / 32], *groups[kMostThreads / 128];
inline const uint32_t* held[kMostThreads];
inline thread_local std::vector<Product> open;
inline thread_local std::deque<std::vector<Product>> unfinished;

inline char* at(uint32_t address, int bytes) {
  check(address % bytes == 0 && address + bytes <= kMemory, "an address outside or unaligned");
  return memory + address;
}

inline uint32_t swizzled(uint32_t address) { return address ^ ((address >> 7 & 7) << 4); }

inline Phase& phase(uint32_t barrier) {
  const auto found = phases.find(barrier);
  check(found != phases.end(), "a barrier that was not made");
  return found->second;
}

inline void finish(Phase& phase) {
  check(phase.left >= 0, "more arrivals than awaited");
  if (phase.left > 0 || phase.bytes != 0) return;
  phase.left = phase.arrivals;
  ++phase.number;
  changed.notify_all();
}

// To the next number of tf32.
inline float rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = (bits + (1 << 12)) & ~((1u << 13) - 1);
  std::memcpy(&value, &bits, 4);
  return value;
}

inline float number(uint32_t bits) {
  check(bits % (1 << 13) == 0, "a factor that is not of tf32");
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void multiply(const std::vector<Product>& products) {
  const int thread = threadIdx.x, group = thread / 128, warp = thread % 128 / 32, lane = thread % 32;
  for (const auto& product : products) {
    held[thread] = product.a;
    groups[group]->arrive_and_wait();
    const uint32_t start = (product.b & 0x3fff) * 16, stride = (product.b >> 32 & 0x3fff) * 16;
    check(product.b >> 62 == 1, "not a swizzled matrix");
    for (int j = 0; j < product.columns / 8; ++j) {
      for (int h = 0; h < 2; ++h) {
        for (int e = 0; e < 2; ++e) {
          const int n = 8 * j + 2 * (lane % 4) + e;
          for (int k = 0; k < 8; ++k) {
            const int of = group * 128 + warp * 32 + lane / 4 * 4 + k % 4;
            uint32_t b;
            std::memcpy(&b, at(swizzled(start + n / 8 * stride + n % 8 * 128 + k * 4), 4), 4);
            product.d[4 * j + 2 * h + e] += number(held[of][k / 4 * 2 + h]) * number(b);
          }
        }
      }
    }
    groups[group]->arrive_and_wait();
  }
}

}  // namespace host

inline void __syncthreads() { host::block->arrive_and_wait(); }
inline void __syncwarp() { host::warps[threadIdx.x / 32]->arrive_and_wait(); }
inline int __shfl_sync(unsigned, int value, int) { return value; }

namespace fastmtt::cuda::hopper {

inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const char*>(pointer) - host::memory);
}

inline void init(uint32_t barrier, int arrivals) {
  const std::lock_guard guard(host::lock);
  host::check(barrier % 8 == 0, "an unaligned barrier");
  host::check(host::phases.insert({barrier, {arrivals, arrivals, 0, 0}}).second, "made twice");
}
inline void show_inits() {}
inline void show_stores() {}

inline void arrive(uint32_t barrier) {
  const std::lock_guard guard(host::lock);
  auto& phase = host::phase(barrier);
  --phase.left;
  host::finish(phase);
}

inline void expect(uint32_t barrier, int bytes) {
  {
    const std::lock_guard guard(host::lock);
    host::phase(barrier).bytes += bytes;
  }
  arrive(barrier);
}

inline void wait(uint32_t barrier, int parity) {
  std::unique_lock guard(host::lock);
  auto& phase = host::phase(barrier);
  host::changed.wait(guard, [&] { return phase.number % 2 != parity; });
}

inline void copy(
    uint32_t to, const CUtensorMap& map, uint32_t barrier, int channel, int x, int y, int image) {
  host::check(to % (map.swizzled ? 1024 : 128) == 0, "an unaligned box");
  host::check(image >= 0 && image < map.images, "an image outside");
  uint32_t place = to;
  for (int row = y; row < y + map.box_rows; ++row) {
    for (int column = x; column < x + map.box_columns; ++column) {
      const bool inside = row >= 0 && row < map.side && column >= 0 && column < map.side;
      const int64_t pixel = (int64_t(image) * map.side + row) * map.side + column;
      for (int c = channel; c < channel + map.box_channels; ++c, place += 4) {
        host::check(c >= 0 && c < map.channels, "a channel outside");
        const float value = inside ? host::rounded(map.data[pixel * map.channels + c]) : 0;
        std::memcpy(host::at(map.swizzled ? host::swizzled(place) : place, 4), &value, 4);
      }
    }
  }
  const std::lock_guard guard(host::lock);
  auto& phase = host::phase(barrier);
  phase.bytes -= static_cast<int>(place - to);
  host::finish(phase);
}

inline constexpr uint64_t matrix(int stride) {
  return uint64_t(1) << 16 | uint64_t(stride) << 32 | uint64_t(1) << 62;
}

inline void products_begin() {}
inline void products_end() {
  host::unfinished.push_back(host::open);
  host::open.clear();
}
template <int kLeft>
void products_wait() {
  while (host::unfinished.size() > kLeft) {
    host::multiply(host::unfinished.front());
    host::unfinished.pop_front();
  }
}

template <int kSums>
void multiply(float (&d)[kSums], const uint32_t (&a)[4], uint64_t b) {
  host::open.push_back({d, a, b, 2 * kSums});
}

template <class Number, int kCount>
void keep(Number (&)[kCount]) {}
template <int>
void give_registers() {}
template <int>
void take_registers() {}

inline uint32_t load(uint32_t address) {
  uint32_t value;
  std::memcpy(&value, host::at(address, 4), 4);
  return value;
}

inline uint2 load_pair(uint32_t address) {
  uint2 pair;
  std::memcpy(&pair, host::at(address, 8), 8);
  return pair;
}

inline void store(uint32_t address, const uint32_t (&values)[4]) {
  std::memcpy(host::at(address, 16), values, 16);
}

}  // namespace fastmtt::cuda::hopper
