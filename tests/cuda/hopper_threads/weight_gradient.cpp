// The weight gradient's kernel on the host, beside its sum written out: prints the largest error.

#include <cmath>
#include <random>
#include <thread>

#include "hopper_weight_gradient_kernels.h"

namespace fastmtt::cuda::hopper::gradient {

alignas(1024) char memory[host::kMemory];  // what a block calls so

using Numbers = std::vector<float>;

static Numbers random(int64_t count, int seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Numbers numbers(count);
  for (auto& number : numbers) number = host::rounded(normal(generator));  // products are exact
  return numbers;
}

template <class P>
static void run_block(int block, const Maps& maps, const Task& task) {
  host::phases.clear();
  host::memory = memory;
  std::memset(host::memory, 0xff, host::kMemory);  // NaN: none may be read before it is written
  std::barrier<> all(P::kThreads);
  host::block = &all;
  std::deque<std::barrier<>> barriers;
  for (int i = 0; i < P::kThreads / 32; ++i) host::warps[i] = &barriers.emplace_back(32);
  for (int i = 0; i < P::kGroups; ++i) host::groups[i] = &barriers.emplace_back(kGroup);
  std::vector<std::thread> threads;
  for (int i = 0; i < P::kThreads; ++i) {
    threads.emplace_back([&, i] {
      threadIdx.x = i;
      blockIdx.x = block;
      weight_gradient<P>(maps, task);
    });
  }
  for (auto& thread : threads) thread.join();
}

template <class P>
static double error(int students, int images, int pairs, int count) {
  constexpr int kSide = P::kSide, kArea = kSide * kSide, kSize = kTaps * kChannels * kChannels;
  const int all = students * images;
  Maps maps;
  std::vector<Numbers> a, gz;
  for (int pair = 0; pair < pairs; ++pair) {
    a.push_back(random(int64_t(all) * kArea * kChannels, 2 * pair));
    gz.push_back(random(int64_t(all) * kArea * kChannels, 2 * pair + 1));
    maps.a[pair] = {a[pair].data(), all, kSide, kChannels, kDeep, P::kWide, kRows, true};
    maps.gz[pair] = {gz[pair].data(), all, kSide, kChannels, P::kColumns, kStrip, kRows, false};
  }
  Numbers parts(int64_t(students) * count * kSize, NAN);
  const Task task{parts.data(), images, pairs, count};
  for (int block = 0; block < P::kShares * count * students; ++block) {
    run_block<P>(block, maps, task);
  }
  double worst = 0;
  for (int student = 0; student < students; ++student) {
    std::vector<double> want(kSize, 0.0);
    for (int pair = 0; pair < pairs; ++pair) {
      for (int image = student * images; image < (student + 1) * images; ++image) {
        for (int place = 0; place < kArea * kTaps; ++place) {
          const int tap = place % kTaps, y = place / kTaps / kSide, x = place / kTaps % kSide;
          const int from_y = y + tap / 3 - 1, from_x = x + tap % 3 - 1;
          if (from_y < 0 || from_y >= kSide || from_x < 0 || from_x >= kSide) continue;
          const int from = (image * kSide + from_y) * kSide + from_x;
          const float* left = &a[pair][int64_t(from) * kChannels];
          const float* right = &gz[pair][(int64_t(image) * kArea + y * kSide + x) * kChannels];
          double* to = &want[tap * kChannels * kChannels];
          for (int ci = 0; ci < kChannels; ++ci) {
            for (int co = 0; co < kChannels; ++co) to[ci * kChannels + co] += left[ci] * right[co];
          }
        }
      }
    }
    for (int i = 0; i < kSize; ++i) {
      double got = 0;
      for (int part = 0; part < count; ++part) {
        got += parts[(int64_t(student) * count + part) * kSize + i];
      }
      const double off = std::abs(got - want[i]);
      worst = off <= worst ? worst : off;  // NaN is kept
    }
  }
  return worst;
}

}  // namespace fastmtt::cuda::hopper::gradient

int main() {
  using namespace fastmtt::cuda::hopper::gradient;
  std::printf("%g\n", error<Plan<8, 2, 1, 128>>(2, 2, 2, 1));
  std::printf("%g\n", error<Plan<8, 1, 3, 64>>(2, 2, 2, 1));
  std::printf("%g\n", error<Plan<16, 2, 1, 128>>(1, 1, 2, 3));
  std::printf("%g\n", error<Plan<16, 1, 3, 64>>(1, 1, 2, 3));
}
