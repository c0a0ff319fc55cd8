// The kernels for AMX (BF16) with AVX-512 (BF16), for operands in bfloat16; the file's name brings the flags. With
// SDFAST_TILES_EMULATED the same for tests on a processor without AMX.
//
// Scores, softmax and sums are float32; weights and the scores' gradients are rounded to bfloat16 as factors of the
// next product. Every size is padded with zeros to multiples of 32, the depth of a product. A left factor is a matrix of
// rows of its depth, a right one a matrix of pairs: [depth / 2, columns] words.
#include "cpu/attention_rows.inl.h"
#include "cpu/tiles.h"

namespace sdfast {
namespace {

constexpr int64_t kStrip = kAttentionTileStrip;

int64_t padded_size(int64_t size) { return attention_tile_padded(size); }

// ---- products -------------------------------------------------------------------------------------------------

// c[rows, columns] (+)= left[rows, depth] right[depth, columns]; strides in bfloat16 numbers, in words and in floats.
[[gnu::noinline]] void multiply(int64_t rows, int64_t columns, int64_t depth, const uint16_t* left, int64_t left_stride,
                                const uint32_t* right, int64_t right_stride, float* c, int64_t c_stride, bool add) {
  keep_in_order(left);
  for (int64_t row = 0; row < rows; row += 32) {
    const uint16_t *upper = left + row * left_stride, *lower = upper + 16 * left_stride;
    for (int64_t column = 0; column < columns; column += 32) {
      float *above = c + row * c_stride + column, *below = above + 16 * c_stride;
      if (add) {
        SDFAST_TILE_LOAD(0, above, c_stride * 4);
        SDFAST_TILE_LOAD(1, above + 16, c_stride * 4);
        SDFAST_TILE_LOAD(2, below, c_stride * 4);
        SDFAST_TILE_LOAD(3, below + 16, c_stride * 4);
      } else {
        SDFAST_TILE_ZERO(0);
        SDFAST_TILE_ZERO(1);
        SDFAST_TILE_ZERO(2);
        SDFAST_TILE_ZERO(3);
      }
      const uint32_t* pairs = right + column;
      for (int64_t k = 0; k < depth; k += 32, pairs += 16 * right_stride) {
        SDFAST_TILE_LOAD(4, upper + k, left_stride * 2);
        SDFAST_TILE_LOAD(6, pairs, right_stride * 4);
        SDFAST_TILE_PRODUCT(0, 4, 6);
        SDFAST_TILE_LOAD(7, pairs + 16, right_stride * 4);
        SDFAST_TILE_PRODUCT(1, 4, 7);
        SDFAST_TILE_LOAD(5, lower + k, left_stride * 2);
        SDFAST_TILE_PRODUCT(2, 5, 6);
        SDFAST_TILE_PRODUCT(3, 5, 7);
      }
      SDFAST_TILE_STORE(0, above, c_stride * 4);
      SDFAST_TILE_STORE(1, above + 16, c_stride * 4);
      SDFAST_TILE_STORE(2, below, c_stride * 4);
      SDFAST_TILE_STORE(3, below + 16, c_stride * 4);
    }
  }
}

// ---- factors --------------------------------------------------------------------------------------------------

// Rows [begin, end) side by side, with zeros to `width` numbers and to `rows` rows.
void copy_rows(const Heads& from, int64_t begin, int64_t end, int64_t head, int64_t dim, uint16_t* to, int64_t rows,
               int64_t width) {
  for (int64_t token = begin; token < end; ++token, to += width) {
    const uint16_t* row = row_of<uint16_t>(from, token, head);
    for (int64_t i = 0; i < width; i += 32) {
      const __mmask32 there = dim - i >= 32 ? ~__mmask32{0} : (__mmask32{1} << (dim - i)) - 1;
      _mm512_store_si512(to + i, _mm512_maskz_loadu_epi16(there, row + i));
    }
  }
  memset(to, 0, sizeof(uint16_t) * static_cast<size_t>((rows - (end - begin)) * width));
}

// to[column, row] = from[row, column], of words; both sizes are multiples of 16.
void transpose_words(const void* from, int64_t rows, int64_t columns, void* to) {
  const uint32_t* source = static_cast<const uint32_t*>(from);
  uint32_t* target = static_cast<uint32_t*>(to);
  for (int64_t row = 0; row < rows; row += 16) {
    for (int64_t column = 0; column < columns; column += 16) {
      __m512i block[16];
      for (int64_t i = 0; i < 16; ++i) block[i] = _mm512_load_si512(source + (row + i) * columns + column);
      transpose(block);
      for (int64_t i = 0; i < 16; ++i) _mm512_store_si512(target + (column + i) * rows + row, block[i]);
    }
  }
}

// Puts each number of the upper half behind that of the lower half at its place.
__m512i interleaved(__m512i halves) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i order = _mm512_or_si512(lane, _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(16)), 16));
  return _mm512_permutexvar_epi16(order, halves);
}

// A right factor whose depth are the rows: to[i, column] = (from[2 i, column], from[2 i + 1, column]).
void pair_rows(const uint16_t* from, int64_t rows, int64_t width, uint32_t* to) {
  for (int64_t row = 0; row < rows; row += 2, from += 2 * width, to += width) {
    for (int64_t i = 0; i < width; i += 16) {
      const __m256i upper = _mm256_load_si256(reinterpret_cast<const __m256i*>(from + i));
      const __m256i lower = _mm256_load_si256(reinterpret_cast<const __m256i*>(from + width + i));
      const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(upper), lower, 1);
      _mm512_store_si512(to + i, interleaved(both));
    }
  }
}

// Rounds a row to bfloat16.
void round_row(const float* from, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; i += 32) {
    _mm512_store_si512(to + i, (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(from + i + 16), _mm512_load_ps(from + i)));
  }
}

// Rounds two rows, to pairs of them.
void round_pairs(const float* from, int64_t count, uint32_t* to) {
  for (int64_t i = 0; i < count; i += 16) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(from + count + i), _mm512_load_ps(from + i));
    _mm512_store_si512(to + i, interleaved(both));
  }
}

void multiply_row(float* row, int64_t count, float factor) {
  for (int64_t i = 0; i < count; i += kLanes) store(row + i, load(row + i) * factor);
}

float dot(const uint16_t* a, const uint16_t* b, int64_t count) {
  Floats sums = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    HalfBits left, right;
    memcpy(&left, a + i, sizeof left);
    memcpy(&right, b + i, sizeof right);
    sums += widened(left) * widened(right);
  }
  float sum = 0.0f;
  for (int64_t lane = 0; lane < kLanes; ++lane) sum += sums[lane];
  return sum;
}

// Hands out memory; all sizes are multiples of 64 bytes.
struct Scratch {
  char* next;

  template <typename T>
  T* take(int64_t count) {
    T* here = reinterpret_cast<T*>(next);
    next += count * static_cast<int64_t>(sizeof(T));
    return here;
  }
};

// ---- the two directions ---------------------------------------------------------------------------------------

void forward(const AttentionOperands& x, const Sequence& s, int64_t head, float* memory) {
  const int64_t keys = s.k_end - s.k_begin, padded = padded_size(keys), width = padded_size(x.dim);
  Scratch scratch{reinterpret_cast<char*>(aligned(memory))};
  uint16_t* const rows_of_keys = scratch.take<uint16_t>(padded * width);
  uint32_t* const k_across = scratch.take<uint32_t>(padded * width / 2);
  uint32_t* const v_pairs = scratch.take<uint32_t>(padded * width / 2);
  uint16_t* const q = scratch.take<uint16_t>(kStrip * width);
  float* const scores = scratch.take<float>(kStrip * padded);
  uint16_t* const weights = scratch.take<uint16_t>(kStrip * padded);
  float* const out = scratch.take<float>(kStrip * width);
  copy_rows(x.k, s.k_begin, s.k_end, head, x.dim, rows_of_keys, padded, width);
  transpose_words(rows_of_keys, padded, width / 2, k_across);
  copy_rows(x.v, s.k_begin, s.k_end, head, x.dim, rows_of_keys, padded, width);
  pair_rows(rows_of_keys, padded, width, v_pairs);
  for (int64_t first = s.q_begin; first < s.q_end; first += kStrip) {
    const int64_t last = first + kStrip < s.q_end ? first + kStrip : s.q_end, rows = last - first;
    copy_rows(x.q, first, last, head, x.dim, q, kStrip, width);
    multiply(kStrip, padded, width, q, width, k_across, padded, scores, padded, false);
    float sums[kStrip];
    for (int64_t r = 0; r < rows; ++r) {
      float* row = scores + r * padded;
      multiply_row(row, padded, x.scale);
      const float top = largest(row, keys);
      sums[r] = exponentials(row, keys, padded, top);
      x.lse[head * x.queries + first + r] = top + logf(sums[r]);
      drop(x, head, first + r, row, padded);
      round_row(row, padded, weights + r * padded);
    }
    memset(weights + rows * padded, 0, sizeof(uint16_t) * static_cast<size_t>((kStrip - rows) * padded));
    multiply(kStrip, width, padded, weights, padded, v_pairs, width, out, width, false);
    for (int64_t r = 0; r < rows; ++r) multiply_row(out + r * width, width, x.dropout.scale / sums[r]);
    scatter(out, width, x.out, first, last, head, x.dim);
  }
}

// A strip's weights, after dropout, and the gradients of its scores, in place.
void strip_gradients(const AttentionOperands& x, const Sequence& s, int64_t head, int64_t first, int64_t rows,
                     const uint16_t* out, const uint16_t* grad_out, int64_t width, float* weights, float* grad_scores,
                     int64_t padded) {
  for (int64_t r = 0; r < rows; ++r) {
    float* row = weights + r * padded;
    multiply_row(row, padded, x.scale);
    exponentials(row, s.k_end - s.k_begin, padded, x.lse[head * x.queries + first + r]);
    const float delta = dot(out + r * width, grad_out + r * width, width);
    score_gradients(x, head, first + r, delta, row, grad_scores + r * padded, padded);
  }
  const size_t rest = sizeof(float) * static_cast<size_t>((kStrip - rows) * padded);
  memset(weights + rows * padded, 0, rest);
  memset(grad_scores + rows * padded, 0, rest);
}

// The gradients of keys and values are summed on their sides, [dim, keys]: so the large matrices of weights and of the
// scores' gradients are right factors, of rows that lie as they were made, and only queries are turned.
void backward(const AttentionOperands& x, const Sequence& s, int64_t head, float* memory) {
  const int64_t keys = s.k_end - s.k_begin, padded = padded_size(keys), width = padded_size(x.dim);
  constexpr int64_t T = kAttentionTileQueries;
  Scratch scratch{reinterpret_cast<char*>(aligned(memory))};
  uint16_t* const rows_of_keys = scratch.take<uint16_t>(padded * width);
  uint32_t* const k_across = scratch.take<uint32_t>(padded * width / 2);
  uint32_t* const k_pairs = scratch.take<uint32_t>(padded * width / 2);
  uint32_t* const v_across = scratch.take<uint32_t>(padded * width / 2);
  float* const grad_k = scratch.take<float>(padded * width);
  float* const grad_v = scratch.take<float>(padded * width);
  uint16_t* const q = scratch.take<uint16_t>(T * width);
  uint16_t* const grad_out = scratch.take<uint16_t>(T * width);
  uint32_t* const pairs = scratch.take<uint32_t>(T * width / 2);
  uint16_t* const q_across = scratch.take<uint16_t>(T * width);
  uint16_t* const grad_out_across = scratch.take<uint16_t>(T * width);
  uint32_t* const weight_pairs = scratch.take<uint32_t>(T * padded / 2);
  uint32_t* const grad_pairs = scratch.take<uint32_t>(T * padded / 2);
  float* const weights = scratch.take<float>(kStrip * padded);
  float* const grad_scores = scratch.take<float>(kStrip * padded);
  uint16_t* const grad_rows = scratch.take<uint16_t>(kStrip * padded);
  float* const grad_q = scratch.take<float>(kStrip * width);
  uint16_t* const out = scratch.take<uint16_t>(kStrip * width);
  copy_rows(x.v, s.k_begin, s.k_end, head, x.dim, rows_of_keys, padded, width);
  transpose_words(rows_of_keys, padded, width / 2, v_across);
  copy_rows(x.k, s.k_begin, s.k_end, head, x.dim, rows_of_keys, padded, width);
  transpose_words(rows_of_keys, padded, width / 2, k_across);
  pair_rows(rows_of_keys, padded, width, k_pairs);
  for (int64_t begin = s.q_begin; begin < s.q_end; begin += T) {
    const int64_t end = begin + T < s.q_end ? begin + T : s.q_end, tall = padded_size(end - begin);
    copy_rows(x.q, begin, end, head, x.dim, q, tall, width);
    pair_rows(q, tall, width, pairs);
    transpose_words(pairs, tall / 2, width, q_across);
    copy_rows(x.grad_out, begin, end, head, x.dim, grad_out, tall, width);
    pair_rows(grad_out, tall, width, pairs);
    transpose_words(pairs, tall / 2, width, grad_out_across);
    for (int64_t first = begin; first < end; first += kStrip) {
      const int64_t last = first + kStrip < end ? first + kStrip : end, at = first - begin;
      multiply(kStrip, padded, width, q + at * width, width, k_across, padded, weights, padded, false);
      multiply(kStrip, padded, width, grad_out + at * width, width, v_across, padded, grad_scores, padded, false);
      copy_rows(x.out, first, last, head, x.dim, out, kStrip, width);
      strip_gradients(x, s, head, first, last - first, out, grad_out + at * width, width, weights, grad_scores, padded);
      for (int64_t r = 0; r < kStrip; r += 2) {
        round_pairs(weights + r * padded, padded, weight_pairs + (at + r) / 2 * padded);
        round_pairs(grad_scores + r * padded, padded, grad_pairs + (at + r) / 2 * padded);
      }
      for (int64_t r = 0; r < kStrip; ++r) round_row(grad_scores + r * padded, padded, grad_rows + r * padded);
      multiply(kStrip, width, padded, grad_rows, padded, k_pairs, width, grad_q, width, false);
      multiply_row(grad_q, kStrip * width, x.scale);
      scatter(grad_q, width, x.grad_q, first, last, head, x.dim);
    }
    const bool add = begin > s.q_begin;
    multiply(width, padded, tall, grad_out_across, tall, weight_pairs, padded, grad_v, padded, add);
    multiply(width, padded, tall, q_across, tall, grad_pairs, padded, grad_k, padded, add);
  }
  float* const upright = reinterpret_cast<float*>(rows_of_keys);  // and k_across, which is not needed any more
  transpose_words(grad_v, width, padded, upright);
  scatter(upright, width, x.grad_v, s.k_begin, s.k_end, head, x.dim);
  transpose_words(grad_k, width, padded, upright);
  multiply_row(upright, keys * width, x.scale);
  scatter(upright, width, x.grad_k, s.k_begin, s.k_end, head, x.dim);
}

}  // namespace

#ifdef SDFAST_TILES_EMULATED
AttentionKernels attention_tiles_emulated() { return {forward, backward, tiles_begin, tiles_end}; }
#else
AttentionKernels attention_amx() { return {forward, backward, tiles_begin, tiles_end}; }
#endif

}  // namespace sdfast
