// Hopper's own instructions: barriers in shared memory, tensor copies, warpgroup products.
//
// Formats and rules are those of the PTX manual: mbarrier, cp.async.bulk.tensor, wgmma.

#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernel.h"

namespace fastmtt::cuda::hopper {

FASTMTT_BODY uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// --- barriers: a phase ends when all arrived and all announced bytes are there -------------------

FASTMTT_BODY void init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

FASTMTT_BODY void show_inits() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

FASTMTT_BODY void expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// The same place in the shared memory of another block of the cluster.
FASTMTT_BODY uint32_t of_block(uint32_t address, int rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

FASTMTT_BODY void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

FASTMTT_BODY void arrive_at(uint32_t barrier_of_block) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier_of_block) : "memory");
}

// Four bytes, which the barrier of the block they go to counts.
FASTMTT_BODY void send(uint32_t address_of_block, float value, uint32_t barrier_of_block) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
          address_of_block),
      "r"(__float_as_uint(value)), "r"(barrier_of_block)
      : "memory");
}

FASTMTT_BODY void wait(uint32_t barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

FASTMTT_BODY void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

FASTMTT_BODY int cluster_rank() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

FASTMTT_BODY void sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// --- tensor copies: what lies outside a tensor arrives as zeros ----------------------------------

FASTMTT_BODY void prefetch(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

FASTMTT_BODY void copy(
    uint32_t to, const CUtensorMap& map, uint32_t barrier, int i0, int i1, int i2, int i3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(i0), "r"(i1), "r"(i2), "r"(i3)
      : "memory");
}

FASTMTT_BODY void copy(
    uint32_t to, const CUtensorMap& map, uint32_t barrier, int i0, int i1, int i2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(i0), "r"(i1), "r"(i2)
      : "memory");
}

// To the same place in all blocks of the cluster, each of whose barriers is told.
FASTMTT_BODY void copy_to_all(
    uint32_t to, const CUtensorMap& map, uint32_t barrier, int blocks, int i0, int i1, int i2) {
  const auto mask = static_cast<uint16_t>((1 << blocks) - 1);
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(i0), "r"(i1), "r"(i2), "h"(mask)
      : "memory");
}

FASTMTT_BODY void prefetch_to_l2(const void* from, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

// --- products of a warpgroup: 64 rows of a by rows of b, along 8 columns of either ---------------
//
// A thread's sums of n columns: d[4 * j + 2 * h + e] is of row 16 * warp + 8 * h + lane / 4 and
// column 8 * j + 2 * (lane % 4) + e.

// A matrix in shared memory, its groups of eight rows `stride` units of 16 bytes apart. A row has
// 128 bytes, eight rows lie one after another, and bits 4..6 of an address are xored with bits
// 7..9, whatever row is the first.
FASTMTT_BODY constexpr uint64_t matrix(int stride) {
  return uint64_t(1) << 16 | uint64_t(stride) << 32 | uint64_t(1) << 62;
}

FASTMTT_BODY void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
FASTMTT_BODY void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until no more than so many groups of products are unfinished.
template <int kLeft>
FASTMTT_BODY void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

// So that no use of sums is moved before a wait.
FASTMTT_BODY void fence(float (&sums)[64]) {
#pragma unroll
  for (float& sum : sums) asm volatile("" : "+f"(sum)::"memory");
}

// d (+)= a * b, 128 columns
FASTMTT_BODY void multiply(float (&d)[64], uint64_t a, uint64_t b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, p, 1, 1;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
        "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
        "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
        "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
        "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
        "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
        "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
        "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
        "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]),
        "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),
        "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
      : "l"(a), "l"(b), "r"(add));
}

template <int kRegisters>
FASTMTT_BODY void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
FASTMTT_BODY void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace fastmtt::cuda::hopper
