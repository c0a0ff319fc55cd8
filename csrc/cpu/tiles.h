// The tile registers of AMX (BF16): 16 rows of 64 bytes each. For *_amx.cpp; everything has internal linkage.
//
// A product adds to the sums [16, 16] in float those of a left factor [16, 32], whose rows are 32 bfloat16 numbers, and
// a right factor [32, 16], whose rows are pairs: two numbers, one below the other, of each of 16 columns.
//
// With SDFAST_TILES_EMULATED the registers are memory, so that a test runs the same kernel on any processor with
// AVX-512 (BF16); its products round as Intel documents TDPBF16PS: even and odd depths apart, subnormals as zeros.
#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace sdfast {
namespace {

// GCC's intrinsics for configurations name 8 of the 64 bytes that they read or write, those that load a tile none.
[[maybe_unused]] void keep_in_order(const void* memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

#ifdef SDFAST_TILES_EMULATED

struct EmulatedTile {
  uint32_t words[16][16];
};

EmulatedTile* emulated_tiles() {
  static thread_local EmulatedTile tiles[8];
  return tiles;
}

void tile_load(int tile, const void* from, int64_t stride) {
  for (int64_t row = 0; row < 16; ++row) {
    memcpy(emulated_tiles()[tile].words[row], static_cast<const char*>(from) + row * stride, 64);
  }
}

void tile_store(int tile, void* to, int64_t stride) {
  for (int64_t row = 0; row < 16; ++row) {
    memcpy(static_cast<char*>(to) + row * stride, emulated_tiles()[tile].words[row], 64);
  }
}

float flushed(uint32_t bits) {
  if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

float flushed(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return flushed(bits);
}

void tile_product(int sums, int left, int right) {
  const EmulatedTile &a = emulated_tiles()[left], &b = emulated_tiles()[right];
  for (int row = 0; row < 16; ++row) {
    float even[16] = {}, odd[16] = {};
    for (int k = 0; k < 16; ++k) {
      const float first = flushed(a.words[row][k] << 16), second = flushed(a.words[row][k] & 0xffff0000u);
      for (int n = 0; n < 16; ++n) {
        even[n] = flushed(__builtin_fmaf(first, flushed(b.words[k][n] << 16), even[n]));
        odd[n] = flushed(__builtin_fmaf(second, flushed(b.words[k][n] & 0xffff0000u), odd[n]));
      }
    }
    uint32_t* out = emulated_tiles()[sums].words[row];
    for (int n = 0; n < 16; ++n) {
      const float sum = flushed(flushed(out[n]) + flushed(even[n] + odd[n]));
      memcpy(out + n, &sum, sizeof sum);
    }
  }
}

#define SDFAST_TILE_ZERO(tile) memset(emulated_tiles() + (tile), 0, sizeof(EmulatedTile))
#define SDFAST_TILE_LOAD(tile, from, stride) tile_load(tile, from, stride)
#define SDFAST_TILE_STORE(tile, to, stride) tile_store(tile, to, stride)
#define SDFAST_TILE_PRODUCT(sums, left, right) tile_product(sums, left, right)

[[maybe_unused]] void tiles_begin(void*) {}
[[maybe_unused]] void tiles_end(void*) {}

#else

#define SDFAST_TILE_ZERO(tile) _tile_zero(tile)
#define SDFAST_TILE_LOAD(tile, from, stride) _tile_loadd(tile, from, stride)
#define SDFAST_TILE_STORE(tile, to, stride) _tile_stored(tile, to, stride)
#define SDFAST_TILE_PRODUCT(sums, left, right) _tile_dpbf16ps(sums, left, right)

struct alignas(64) TileConfig {
  uint8_t palette = 0, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Eight whole tiles; `saved` takes 64 bytes, how another library had them.
void tiles_begin(void* saved) {
  _tile_storeconfig(saved);
  keep_in_order(saved);
  TileConfig ours;
  ours.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    ours.row_bytes[tile] = 64;
    ours.rows[tile] = 16;
  }
  keep_in_order(&ours);
  _tile_loadconfig(&ours);
}

void tiles_end(void* saved) {
  const bool were_configured = *static_cast<const char*>(saved) != 0;
  if (were_configured) {
    _tile_loadconfig(saved);
  } else {
    _tile_release();
  }
}

#endif

#ifdef __AVX512F__
// Turns a matrix [16, 16] of 32-bit numbers on its side.
void transpose(__m512i x[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    x[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    x[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    x[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}
#endif

}  // namespace
}  // namespace sdfast
