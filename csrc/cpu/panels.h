// A panel row, 64 bytes of channels, in the registers of the instruction set being compiled for,
// and how operands of products are stored.

#pragma once

#include <type_traits>

#include "kernels.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

#define FASTMTT_UNROLL _Pragma("GCC unroll 64")
#define FASTMTT_INLINE_HERE [[gnu::always_inline]] inline
#define FASTMTT_HERE __attribute__((always_inline))

// In place of the number of a panel's lanes that are present: all of them, known when compiling.
struct Whole {};

template <typename T>
struct Panel {
  typedef T Native __attribute__((vector_size(FASTMTT_VECTOR_BYTES)));
  // Anywhere in memory. Copied one by one: a whole Panel would go through the stack.
  typedef T Anywhere __attribute__((vector_size(FASTMTT_VECTOR_BYTES), aligned(alignof(T)),
                                    may_alias));
  static constexpr int kNatives = kPanelBytes / FASTMTT_VECTOR_BYTES;
  static constexpr int kLength = kLanes<T>;
  static constexpr int kEach = kLength / kNatives;

  Native v[kNatives];

  // All lanes alike. Less zero, not plus: that would turn -0 to 0, and cost an addition.
  FASTMTT_INLINE_HERE static Native same(T x) { return x - Native{}; }
  FASTMTT_INLINE_HERE static Panel all(T x) {
    Panel r;
    FASTMTT_UNROLL for (int i = 0; i < kNatives; ++i) r.v[i] = same(x);
    return r;
  }
  FASTMTT_INLINE_HERE static Panel load(const T* from) {
    Panel r;
    FASTMTT_UNROLL for (int i = 0; i < kNatives; ++i) {
      r.v[i] = *reinterpret_cast<const Anywhere*>(from + i * kEach);
    }
    return r;
  }
  // The first `count` lanes, the others zero.
  FASTMTT_INLINE_HERE static Panel load(const T* from, int64_t count) {
    if (count == kLength) return load(from);
    T lanes[kLength] = {};
    for (int64_t l = 0; l < count; ++l) lanes[l] = from[l];
    return load(lanes);
  }
  FASTMTT_INLINE_HERE static Panel load(const T* from, Whole) { return load(from); }
  FASTMTT_INLINE_HERE void store(T* to) const {
    FASTMTT_UNROLL for (int i = 0; i < kNatives; ++i) {
      *reinterpret_cast<Anywhere*>(to + i * kEach) = v[i];
    }
  }
  FASTMTT_INLINE_HERE void store(T* to, int64_t count) const {
    if (count == kLength) return store(to);
    T lanes[kLength];
    store(lanes);
    for (int64_t l = 0; l < count; ++l) to[l] = lanes[l];
  }
  FASTMTT_INLINE_HERE void store(T* to, Whole) const { store(to); }
};

// work(count), or work(Whole()) where all lanes are present: passes that look at the number for
// every pixel take half as long again.
template <typename T, typename Work>
FASTMTT_INLINE_HERE void with_present(int64_t count, const Work& work) {
  if (count == Panel<T>::kLength) {
    work(Whole());
  } else {
    work(count);
  }
}

#define FASTMTT_LANEWISE(op)                                                              \
  template <typename T>                                                                   \
  FASTMTT_INLINE_HERE Panel<T> operator op(const Panel<T>& a, const Panel<T>& b) {        \
    Panel<T> r;                                                                           \
    FASTMTT_UNROLL for (int i = 0; i < Panel<T>::kNatives; ++i) r.v[i] = a.v[i] op b.v[i]; \
    return r;                                                                             \
  }
FASTMTT_LANEWISE(+)
FASTMTT_LANEWISE(-)
FASTMTT_LANEWISE(*)
#undef FASTMTT_LANEWISE

template <typename T>
FASTMTT_INLINE_HERE Panel<T> operator*(T x, const Panel<T>& a) {
  return Panel<T>::all(x) * a;
}

// a * b + c, rounded once where the processor can. The compiler itself fuses nothing
// (-ffp-contract=off): what is computed in two places must have the same bits in both.
using Floats = Panel<float>::Native;
using Doubles = Panel<double>::Native;
#if FASTMTT_VECTOR_BYTES == 64
FASTMTT_INLINE_HERE Floats fused(Floats a, Floats b, Floats c) {
  return Floats(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
}
FASTMTT_INLINE_HERE Doubles fused(Doubles a, Doubles b, Doubles c) {
  return Doubles(_mm512_fmadd_pd(__m512d(a), __m512d(b), __m512d(c)));
}
#elif FASTMTT_VECTOR_BYTES == 32
FASTMTT_INLINE_HERE Floats fused(Floats a, Floats b, Floats c) {
  return Floats(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
}
FASTMTT_INLINE_HERE Doubles fused(Doubles a, Doubles b, Doubles c) {
  return Doubles(_mm256_fmadd_pd(__m256d(a), __m256d(b), __m256d(c)));
}
#else
FASTMTT_INLINE_HERE Floats fused(Floats a, Floats b, Floats c) { return a * b + c; }
FASTMTT_INLINE_HERE Doubles fused(Doubles a, Doubles b, Doubles c) { return a * b + c; }
#endif

template <typename T>
FASTMTT_INLINE_HERE Panel<T> fused(const Panel<T>& a, const Panel<T>& b, const Panel<T>& c) {
  Panel<T> r;
  FASTMTT_UNROLL for (int i = 0; i < Panel<T>::kNatives; ++i) {
    r.v[i] = fused(a.v[i], b.v[i], c.v[i]);
  }
  return r;
}
template <typename T>
FASTMTT_INLINE_HERE Panel<T> fused(T x, const Panel<T>& a, const Panel<T>& b) {
  return fused(Panel<T>::all(x), a, b);
}

// Where value > 0, x, else 0.
template <typename T>
FASTMTT_INLINE_HERE Panel<T> where_positive(const Panel<T>& value, const Panel<T>& x) {
  Panel<T> r;
  FASTMTT_UNROLL for (int i = 0; i < Panel<T>::kNatives; ++i) {
    const typename Panel<T>::Native zero = {};
    r.v[i] = value.v[i] > zero ? x.v[i] : zero;
  }
  return r;
}

// The ReLU; what is not a number stays so.
template <typename T>
FASTMTT_INLINE_HERE Panel<T> positive(const Panel<T>& value) {
  Panel<T> r;
  FASTMTT_UNROLL for (int i = 0; i < Panel<T>::kNatives; ++i) {
    const typename Panel<T>::Native zero = {};
    r.v[i] = value.v[i] < zero ? zero : value.v[i];
  }
  return r;
}

// Lanes of a and b in turn, as two panels.
template <typename T>
FASTMTT_INLINE_HERE void interleave(const Panel<T>& a, const Panel<T>& b, Panel<T>* both) {
  constexpr int kEach = Panel<T>::kEach, kNatives = Panel<T>::kNatives;
  using Lane = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef Lane Lanes __attribute__((vector_size(FASTMTT_VECTOR_BYTES)));
  Lanes low, high;
  FASTMTT_UNROLL for (int l = 0; l < kEach; ++l) {
    low[l] = l / 2 + l % 2 * kEach;
    high[l] = low[l] + kEach / 2;
  }
  FASTMTT_UNROLL for (int i = 0; i < kNatives; ++i) {
    const int at = 2 * i, next = 2 * i + 1;
    both[at / kNatives].v[at % kNatives] = __builtin_shuffle(a.v[i], b.v[i], low);
    both[next / kNatives].v[next % kNatives] = __builtin_shuffle(a.v[i], b.v[i], high);
  }
}

// A square of kLength panels, transposed: each round of interleaving halves with each other moves
// one bit of a row's number to its lane's.
template <typename T>
FASTMTT_INLINE_HERE void transpose(Panel<T>* rows) {
  constexpr int kLength = Panel<T>::kLength;
  for (int bits = 1; bits < kLength; bits *= 2) {
    Panel<T> mixed[kLength];
    FASTMTT_UNROLL for (int i = 0; i < kLength / 2; ++i) {
      interleave(rows[i], rows[i + kLength / 2], mixed + 2 * i);
    }
    FASTMTT_UNROLL for (int i = 0; i < kLength; ++i) rows[i] = mixed[i];
  }
}

// Elements of an operand as the kernels hold them. kGroup consecutive k lie together in a factor
// whose columns are read (b), or whose rows are summed over; kBeside panels side by side in the other.
// Sums run over kChain terms in registers before they join the total in memory. One chain over all
// terms would be 1.5 times less exact, and rounding here is most of a convolution's error; not
// so with bfloat16, whose own rounding is.
template <typename T>
struct Exact {
  using Value = T;
  using Element = T;
  static constexpr int kGroup = 1, kBeside = 1;
  static constexpr int64_t kChain = 32;
  FASTMTT_INLINE_HERE static void store(const Panel<T>& x, Element* to) { x.store(to); }
  FASTMTT_INLINE_HERE static void store_group(const Panel<T>* x, Element* to) { x[0].store(to); }
};

// Rounded to bfloat16 and kept as float: where the processor has no bfloat16 products.
struct Rounded : Exact<float> {
  static constexpr int64_t kChain = 512;
  FASTMTT_INLINE_HERE static void store(const Panel<float>& x, float* to) {
    typedef uint32_t Bits __attribute__((vector_size(FASTMTT_VECTOR_BYTES)));
    Panel<float> r;
    FASTMTT_UNROLL for (int i = 0; i < Panel<float>::kNatives; ++i) {
      const Bits bits = Bits(x.v[i]);
      const Bits rounded = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
      // rounding must not make infinite, or zero, what is not a number
      r.v[i] = x.v[i] == x.v[i] ? Floats(rounded) : Floats(bits | 0x400000);
    }
    r.store(to);
  }
  FASTMTT_INLINE_HERE static void store_group(const Panel<float>* x, float* to) { store(x[0], to); }
};

#ifdef FASTMTT_BFLOAT16
struct Bfloat16 {
  using Value = float;
  using Element = uint16_t;
  static constexpr int kGroup = 2, kBeside = 2;
  static constexpr int64_t kChain = 512;
  FASTMTT_INLINE_HERE static void store(const Panel<float>& x, Element* to) {
    const __m256bh rounded = _mm512_cvtneps_pbh(__m512(x.v[0]));
    __builtin_memcpy(to, &rounded, sizeof rounded);
  }
  // Lanes of the two rows in turn.
  FASTMTT_INLINE_HERE static void store_group(const Panel<float>* x, Element* to) {
    const __m512bh both = _mm512_cvtne2ps_pbh(__m512(x[1].v[0]), __m512(x[0].v[0]));
    alignas(64) static const uint16_t kTurn[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                   21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                   11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i turned = _mm512_permutexvar_epi16(_mm512_load_si512(kTurn), __m512i(both));
    __builtin_memcpy(to, &turned, sizeof turned);
  }
};
#endif

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
