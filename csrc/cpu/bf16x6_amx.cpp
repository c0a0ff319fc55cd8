// The kernels for AMX (BF16) with AVX-512 (BF16); the file's name brings the flags.
//
// A tile register holds 16 rows of 64 bytes. Of the left factor a row is 32 numbers of one row; of the right factor it
// is two numbers of 16 columns each. So both are matrices [16, 16] of pairs in depth, the right one lying on its side.
// Which numbers of a block's depth are paired is free, if both factors do the same: here those 16 apart. A block of a
// panel is [part][half of its 32 rows or columns][tile].
#include "cpu/bf16x6.h"
#include "cpu/tiles.h"

namespace sdfast {
namespace {

constexpr int64_t kTile = 1024;      // bytes
constexpr int64_t kPart = 2 * kTile;  // from one part to the next
constexpr int64_t kHalf = 16;

__mmask16 first(int64_t count) {
  return count >= kHalf ? __mmask16(0xffff) : count <= 0 ? __mmask16(0) : __mmask16((1u << count) - 1);
}

// 16 numbers and the 16 that lie 16 further in depth, as pairs: three parts of each.
void split_pairs(__m512 first_half, __m512 second_half, __m512i parts[3]) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i order = _mm512_or_si512(lane, _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(16)), 16));
  for (int part = 0; part < 3; ++part) {
    const __m512i here = _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(second_half, first_half));
    parts[part] = here;
    first_half = _mm512_sub_ps(first_half, _mm512_castsi512_ps(_mm512_slli_epi32(here, 16)));
    second_half = _mm512_sub_ps(second_half, _mm512_castsi512_ps(_mm512_and_si512(here, _mm512_set1_epi32(~0xffff))));
  }
}

// Three tiles, kPart apart, of `outer` (at most 16) times `depth` (at most 32) numbers.
void split_tile(const float* from, int64_t outer_stride, int64_t k_stride, int64_t outer, int64_t depth, bool right,
                char* tiles) {
  __m512i parts[3], block[3][16];
  const bool along = k_stride == 1;
  const __mmask16 some = first(along ? depth : outer), more = first(along ? depth - kHalf : outer);
  for (int64_t i = 0; i < 16; ++i) {
    const float* here = from + i * (along ? outer_stride : k_stride);
    const float* further = here + kHalf * k_stride;
    _mm_prefetch(here + kBf16x6Block * k_stride, _MM_HINT_T0);
    _mm_prefetch(further + kBf16x6Block * k_stride, _MM_HINT_T0);
    const bool has_here = i < (along ? outer : depth), has_further = along ? has_here : i + kHalf < depth;
    split_pairs(_mm512_maskz_loadu_ps(has_here ? some : 0, here),
                _mm512_maskz_loadu_ps(has_further ? more : 0, further), parts);
    for (int part = 0; part < 3; ++part) block[part][i] = parts[part];
  }
  for (int part = 0; part < 3; ++part) {
    if (along == right) transpose(block[part]);
    for (int64_t i = 0; i < 16; ++i) _mm512_store_si512(tiles + part * kPart + i * 64, block[part][i]);
  }
}

void split(const Bf16x6Factor& from, bool right, void* panel) {
  char* block = static_cast<char*>(panel);
  for (int64_t k = 0; k < from.depth; k += kBf16x6Block, block += kBf16x6BlockBytes) {
    for (int64_t half = 0; half < 2; ++half) {
      split_tile(from.data + half * kHalf * from.outer_stride + k * from.k_stride, from.outer_stride, from.k_stride,
                 from.outer - half * kHalf, from.depth - k, right, block + half * kTile);
    }
  }
}

#define SDFAST_LEFT(part) \
  _tile_loadd(4, a + (part) * kPart, 64); \
  _tile_loadd(5, a + (part) * kPart + kTile, 64)
#define SDFAST_RIGHT(part) \
  _tile_loadd(6, b + (part) * kPart, 64); \
  _tile_loadd(7, b + (part) * kPart + kTile, 64)
#define SDFAST_PRODUCT() \
  _tile_dpbf16ps(0, 4, 6); \
  _tile_dpbf16ps(1, 4, 7); \
  _tile_dpbf16ps(2, 5, 6); \
  _tile_dpbf16ps(3, 5, 7)

// Some rows of the block that waits.
void write_rows(const Bf16x6State& waiting, int64_t begin, int64_t end) {
  const Bf16x6Target& to = waiting.to;
  for (int64_t half = 0; half < kBf16x6Block; half += kHalf) {
    const __mmask16 some = first(waiting.columns - half);
    for (int64_t i = begin; i < end; ++i) {
      float* out = to.out + i * to.row_stride + half;
      __m512 sum = _mm512_load_ps(waiting.sums + i * kBf16x6Block + half);
      if (to.add) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(some, out));
      if (to.bias) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(some, to.bias + half));
      if (to.residual) {
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(some, to.residual + i * to.residual_stride + half));
      }
      _mm512_mask_storeu_ps(out, some, sum);
    }
  }
}

// Fetches the lines that write_rows will want of the block after it.
void fetch_rows(const Bf16x6Target& to, int64_t columns, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t column = 0; column < columns; column += kHalf) {
      __builtin_prefetch(to.out + i * to.row_stride + column, 1, 3);
      if (to.residual) __builtin_prefetch(to.residual + i * to.residual_stride + column, 0, 3);
    }
  }
}

// The tile unit works on this block while the vector unit writes the one before.
void multiply(const void* left, const void* right, int64_t blocks, const Bf16x6Target& to, int64_t rows,
              int64_t columns, const Bf16x6Ahead& ahead, Bf16x6State& state) {
  const char *a = static_cast<const char*>(left), *b = static_cast<const char*>(right);
  const char* next = ahead.begin;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t block = 0; block < blocks; ++block, a += kBf16x6BlockBytes, b += kBf16x6BlockBytes) {
    // Six products with one factor exchanged from each to the next, beginning with small ones.
    SDFAST_LEFT(0);
    SDFAST_RIGHT(2);
    SDFAST_PRODUCT();
    SDFAST_RIGHT(1);
    SDFAST_PRODUCT();
    SDFAST_LEFT(1);
    SDFAST_PRODUCT();
    const char* until = ahead.begin + (ahead.end - ahead.begin) * (block + 1) / blocks;
    for (; next < until; next += 64) _mm_prefetch(next, _MM_HINT_T1);
    fetch_rows(to, columns, rows * block / blocks, rows * (block + 1) / blocks);
    write_rows(state, state.rows * block / blocks, state.rows * (block + 1) / blocks);
    SDFAST_RIGHT(0);
    SDFAST_PRODUCT();
    SDFAST_LEFT(2);
    SDFAST_PRODUCT();
    SDFAST_LEFT(0);
    SDFAST_PRODUCT();
  }
  _tile_stored(0, state.sums, 128);
  _tile_stored(1, state.sums + kHalf, 128);
  _tile_stored(2, state.sums + kHalf * kBf16x6Block, 128);
  _tile_stored(3, state.sums + kHalf * kBf16x6Block + kHalf, 128);
  state.to = to;
  state.rows = rows;
  state.columns = columns;
}

#undef SDFAST_LEFT
#undef SDFAST_RIGHT
#undef SDFAST_PRODUCT

void begin(Bf16x6State& state) {
  tiles_begin(state.registers);
  state.rows = 0;
}

void end(Bf16x6State& state) {
  write_rows(state, 0, state.rows);
  tiles_end(state.registers);
}

}  // namespace

Bf16x6Kernels bf16x6_amx() { return {split, begin, end, multiply}; }

}  // namespace sdfast
