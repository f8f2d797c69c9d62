// Products with patches in AMX's tile registers, their factors as sums of two bfloat16 numbers each:
// of the four products the last, of the two small ones, is left out.
//
// Everything lies in tiles of 16 rows of 64 bytes: of a left factor 16 rows of 32 terms, of a right
// one 16 pairs of terms of 16 columns, of sums 16 x 16 floats.

#pragma once

#include "patch_strips.h"
#include "tiles.h"

namespace fastmtt {
namespace FASTMTT_ISA {
namespace {

constexpr int64_t kTileElements = 512;  // bfloat16 numbers of a tile
constexpr int64_t kTileFloats = 256;

// Tiles of bfloat16, large parts and small; `across`: between tiles of rows or columns, `along`:
// between those of terms, in elements.
struct Halves {
  uint16_t *large = nullptr, *small = nullptr;
  int64_t across = 0, along = 0;
};
struct SplitProduct {
  Halves a, b;
};

// kRows x kColumns tiles of sums, from `c` on; `column` is floats between tiles of columns.
template <int kRows, int kColumns>
FASTMTT_INLINE_HERE void multiply_halves(
    const SplitProduct* products, int64_t count, int64_t steps, int64_t m, int64_t n, float* c,
    int64_t column, bool add) {
#define FASTMTT_BEGIN(i)                                                       \
  if constexpr (i / 2 < kRows && i % 2 < kColumns) {                           \
    if (add) {                                                                 \
      _tile_loadd(i, c + i / 2 * kTileFloats + i % 2 * column, kRowBytes);     \
    } else {                                                                   \
      _tile_zero(i);                                                           \
    }                                                                          \
  }
  FASTMTT_FOR_SUMS(FASTMTT_BEGIN)
#undef FASTMTT_BEGIN
  const auto load_a = [](const uint16_t* from, int64_t across) FASTMTT_HERE {
    _tile_loadd(4, from, kRowBytes);
    if constexpr (kRows > 1) _tile_loadd(5, from + across, kRowBytes);
  };
  const auto load_b = [](const uint16_t* from, int64_t across) FASTMTT_HERE {
    _tile_loadd(6, from, kRowBytes);
    if constexpr (kColumns > 1) _tile_loadd(7, from + across, kRowBytes);
  };
  const auto multiply = []() FASTMTT_HERE {
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kColumns > 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kRows > 1) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kRows > 1 && kColumns > 1) _tile_dpbf16ps(3, 5, 7);
  };
  for (int64_t i = 0; i < count; ++i) {
    const auto& [a, b] = products[i];
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t from = m * a.across + step * a.along, to = n * b.across + step * b.along;
      load_a(a.small + from, a.across);
      load_b(b.large + to, b.across);
      multiply();
      load_a(a.large + from, a.across);
      multiply();
      load_b(b.small + to, b.across);
      multiply();
    }
  }
#define FASTMTT_END(i)                                                         \
  if constexpr (i / 2 < kRows && i % 2 < kColumns) {                           \
    _tile_stored(i, c + i / 2 * kTileFloats + i % 2 * column, kRowBytes);      \
  }
  FASTMTT_FOR_SUMS(FASTMTT_END)
#undef FASTMTT_END
}

// c = (c if add) + sum of products, of `rows` x `columns` tiles.
inline void multiply_halves(
    const SplitProduct* products, int64_t count, int64_t steps, int64_t rows, int64_t columns,
    float* c, int64_t column, bool add) {
  before_tiles();
  for (int64_t m = 0; m < rows; m += 2) {
    for (int64_t n = 0; n < columns; n += 2) {
      float* to = c + m * kTileFloats + n * column;
      const bool tall = m + 1 < rows, broad = n + 1 < columns;
      if (tall && broad) {
        multiply_halves<2, 2>(products, count, steps, m, n, to, column, add);
      } else if (tall) {
        multiply_halves<2, 1>(products, count, steps, m, n, to, column, add);
      } else if (broad) {
        multiply_halves<1, 2>(products, count, steps, m, n, to, column, add);
      } else {
        multiply_halves<1, 1>(products, count, steps, m, n, to, column, add);
      }
    }
  }
}

class SplitStrips {
 public:
  using Value = float;
  using Factor = Halves;
  static constexpr int64_t kLength = kLanes<float>;

  static int64_t operand_bytes(const PatchGrid<float>& g) {
    Carver carver{nullptr};
    Room(carver, g);
    return carver.used;
  }

  SplitStrips(const PatchGrid<float>& g, const PatchRoom<float>& room)
      : g_(g), room_(room), tiles_(layout()) {
    Carver carver{static_cast<char*>(room.operands)};
    own_ = Room(carver, g);
  }

  Factor factor(const float* m, int number) const {
    return in_pairs(m, g_.out_panels, g_.depth, own_.factors[number]);
  }
  Factor flipped(const float* m, int number) const {
    return in_pairs(m, g_.tap_panels, g_.outs, own_.flipped[number]);
  }
  Factor rest(const float* m) const { return in_pairs(m, g_.tap_panels, g_.depth, own_.rest); }

  void begin(int64_t strip, bool columns) {
    strip_ = strip;
    for (int64_t panel = 0; panel < g_.panels; panel += 2) {
      const float* x = room_.x + (panel * g_.rows + strip * kStrip) * kLength;
      for (int64_t row = 0; row < kStrip; ++row) {
        const int64_t at = (panel / 2 * kStrip + row) * kTerms;
        put(Row::load(x + row * kLength), Row::load(x + (g_.rows + row) * kLength), own_.x, at);
      }
    }
    if (!columns) return;
    for (int64_t panel = 0; panel < g_.panels; ++panel) {
      for (int64_t first = 0; first < kStrip; first += kTerms) {
        const float* x = room_.x + (panel * g_.rows + strip * kStrip + first) * kLength;
        Row low[kSide], high[kSide];
        FASTMTT_UNROLL for (int i = 0; i < kSide; ++i) {
          low[i] = Row::load(x + i * kLength);
          high[i] = Row::load(x + (kSide + i) * kLength);
        }
        transpose(low);
        transpose(high);
        const int64_t at = (first / kTerms * g_.panels + panel) * kTileElements;
        FASTMTT_UNROLL for (int i = 0; i < kSide; ++i) {
          put(low[i], high[i], own_.x_columns, at + i * kTerms);
        }
      }
    }
  }

  void multiply_by(const Factor& factor, int64_t panel, int64_t width, float* y) const {
    const SplitProduct product = {own_.x, from(factor, panel * factor.across)};
    multiply_halves(
        &product, 1, g_.depth / kTerms, kStrip / kSide, width, y, kStrip * kLength, false);
  }

  void open(const float* y, const float* gp, int64_t pools, int64_t channels, int64_t width,
            bool plain) {
    const int64_t whole = channels / (2 * kLength) * 2;  // panels
    for (int64_t pool = 0; pool < kStrip / kPool; ++pool) {
      const float* const from = gp + pool * g_.out;
      for (int64_t n = 0; n < width; n += 2) {
        if (pool < pools && n < whole) {
          const float* const at = from + n * kLength;
          open_pool(y, Parts(Row::load(at), Row::load(at + kLength)), pool, n, plain);
          continue;
        }
        float lanes[2 * kLength] = {};
        for (int64_t l = n * kLength; pool < pools && l < channels && l < (n + 2) * kLength; ++l) {
          lanes[l - n * kLength] = from[l];
        }
        open_pool(y, Parts(Row::load(lanes), Row::load(lanes + kLength)), pool, n, plain);
      }
    }
  }

  void multiply_columns(int64_t panel, int64_t width, float* q, bool add) const {
    const SplitProduct product = {own_.x_columns, own_.g_pairs};
    const int64_t stride = g_.depth * kLength;
    multiply_halves(
        &product, 1, kStrip / kTerms, g_.panels, width, q + panel * stride, stride, add);
  }

  void multiply_back(const Factor& back, int64_t panel, int64_t width, bool add) const {
    const SplitProduct product = {own_.g_rows, from(back, panel / 2 * kTileElements)};
    multiply_halves(
        &product, 1, parts(width, 2), kStrip / kSide, g_.tap_panels, gx(), g_.rows * kLength, add);
  }

  void multiply_rest(const Factor& factor) const {
    const SplitProduct product = {own_.x, factor};
    multiply_halves(
        &product, 1, g_.depth / kTerms, kStrip / kSide, g_.tap_panels, gx(), g_.rows * kLength,
        true);
  }

 private:
  using Row = Panel<float>;

  struct Carver {
    char* base;
    int64_t used = 0;
    Halves halves(int64_t tiles, int64_t across, int64_t along) {
      const int64_t bytes = tiles * kTileElements * 2;
      char* at = base == nullptr ? nullptr : base + used;
      used += 2 * bytes;
      return {
          reinterpret_cast<uint16_t*>(at),
          reinterpret_cast<uint16_t*>(at == nullptr ? nullptr : at + bytes),
          across * kTileElements, along * kTileElements};
    }
  };
  struct Room {
    Room() = default;
    Room(Carver& carver, const PatchGrid<float>& g) {
      const int64_t steps = g.depth / kTerms, strip = kStrip / kSide, long_steps = parts(g.outs, kTerms);
      x = carver.halves(steps * strip, 1, strip);
      x_columns = carver.halves(kStrip / kTerms * g.panels, 1, g.panels);
      g_pairs = carver.halves(kStripPanels * kStrip / kTerms, kStrip / kTerms, 1);
      g_rows = carver.halves(kStripPanels / 2 * strip, 1, strip);
      for (Halves& factor : factors) factor = carver.halves(g.out_panels * steps, steps, 1);
      for (Halves& factor : flipped) {
        factor = carver.halves(g.tap_panels * long_steps, long_steps, 1);
      }
      rest = carver.halves(g.tap_panels * steps, steps, 1);
    }
    Halves x, x_columns, g_pairs, g_rows, factors[2], flipped[2], rest;
  };

  static Shapes::Layout layout() {
    Shapes::Layout layout;
    for (int tile = 0; tile < 8; ++tile) shape(layout, tile, kSide, kRowBytes);
    return layout;
  }
  static Halves from(const Halves& x, int64_t elements) {
    return {x.large + elements, x.small + elements, x.across, x.along};
  }
  float* gx() const { return room_.gx + strip_ * kStrip * kLength; }

  static __m512i bits(const __m512bh& x) { return __m512i(x); }
  FASTMTT_INLINE_HERE static Row widened(__m256i half) {
    Row r;
    r.v[0] = Row::Native(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    return r;
  }
  // The large parts of two rows, and the small: what the large leave.
  struct Parts {
    __m512i large, small;
    FASTMTT_INLINE_HERE Parts(const Row& low, const Row& high) {
      large = bits(_mm512_cvtne2ps_pbh(__m512(high.v[0]), __m512(low.v[0])));
      const Row rest_low = low - widened(_mm512_castsi512_si256(large));
      const Row rest_high = high - widened(_mm512_extracti64x4_epi64(large, 1));
      small = bits(_mm512_cvtne2ps_pbh(__m512(rest_high.v[0]), __m512(rest_low.v[0])));
    }
  };
  FASTMTT_INLINE_HERE static void put(
      const Row& low, const Row& high, const Halves& to, int64_t at) {
    const Parts x(low, high);
    _mm512_store_si512(to.large + at, x.large);
    _mm512_store_si512(to.small + at, x.small);
  }

  // A factor's rows, [panels][rows][lane], in pairs; what follows the last is zero.
  static Halves in_pairs(const float* m, int64_t panels, int64_t rows, const Halves& to) {
    const Row none = Row::all(0);
    for (int64_t panel = 0; panel < panels; ++panel) {
      for (int64_t row = 0; row < to.across / kSide; row += 2) {
        const float* at = m + (panel * rows + row) * kLength;
        Row both[2];
        interleave(
            row < rows ? Row::load(at) : none, row < rows ? Row::load(at + kLength) : none, both);
        put(both[0], both[1], to, panel * to.across + row * kLength);
      }
    }
    return to;
  }

  // Where a lane is open, `x` of the lanes of two pixels in turn: both have their pool's.
  FASTMTT_INLINE_HERE static __m512i of_pixels(__m256i x, __mmask16 first, __mmask16 second) {
    const __m512i low = _mm512_cvtepu16_epi32(x), high = _mm512_slli_epi32(low, 16);
    const __m512i one = _mm512_maskz_mov_epi32(first, low);
    return _mm512_mask_or_epi32(one, second, one, high);
  }
  // A pool's cotangents of two panels, from the n-th on, to its four pixels.
  FASTMTT_INLINE_HERE void open_pool(
      const float* y, const Parts& x, int64_t pool, int64_t n, bool plain) const {
    const int64_t across = own_.g_pairs.across;
    __mmask16 open[2][kPool];
    FASTMTT_UNROLL for (int panel = 0; panel < 2; ++panel) {
      FASTMTT_UNROLL for (int i = 0; i < kPool; ++i) {
        const float* at = y + ((n + panel) * kStrip + pool * kPool + i) * kLength;
        open[panel][i] = _mm512_cmp_ps_mask(_mm512_loadu_ps(at), _mm512_setzero_ps(), _CMP_GT_OQ);
      }
    }
    const auto put_half = [&](const __m512i& half, uint16_t* pairs, uint16_t* rows) FASTMTT_HERE {
      FASTMTT_UNROLL for (int i = 0; i < kPool; i += 2) {
        uint16_t* at = pairs + n * across + (pool * kPool + i) * kLength;
        _mm512_store_si512(
            at, of_pixels(_mm512_castsi512_si256(half), open[0][i], open[0][i + 1]));
        _mm512_store_si512(
            at + across,
            of_pixels(_mm512_extracti64x4_epi64(half, 1), open[1][i], open[1][i + 1]));
      }
      if (!plain) return;
      FASTMTT_UNROLL for (int i = 0; i < kPool; ++i) {
        const __mmask32 both = open[0][i] | __mmask32(open[1][i]) << 16;
        _mm512_store_si512(
            rows + (n / 2 * kStrip + pool * kPool + i) * kTerms,
            _mm512_maskz_mov_epi16(both, half));
      }
    };
    put_half(x.large, own_.g_pairs.large, own_.g_rows.large);
    put_half(x.small, own_.g_pairs.small, own_.g_rows.small);
  }

  const PatchGrid<float>& g_;
  const PatchRoom<float>& room_;
  Room own_;
  Shapes tiles_;
  int64_t strip_ = 0;
};

}  // namespace
}  // namespace FASTMTT_ISA
}  // namespace fastmtt
