// The kernels, once for every instruction set; see mae_distill_rows.inl.h for why everything has internal linkage.
#pragma once

#include "cpu/attention_rows.inl.h"

namespace sdfast {
namespace {

// Rows and vectors of a tile of products that the registers hold.
#if defined(__AVX512F__)
constexpr int kTileRows = 6, kTileVectors = 4;
#elif defined(__AVX__)
constexpr int kTileRows = 6, kTileVectors = 2;
#else
constexpr int kTileRows = 4, kTileVectors = 2;
#endif

// ---- small matrix products ------------------------------------------------------------------------------------

// c[r, :] (+)= sum_p a[r, p] b[p, :] for R rows and V vectors of columns; a is read through two strides, so that the
// same code multiplies by a matrix and by its transpose.
template <int R, int V>
void tile(const float* a, int64_t row_stride, int64_t depth_stride, const float* b, int64_t b_stride, float* c,
          int64_t c_stride, int64_t depth, bool add) {
  Floats sums[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) sums[r][v] = add ? load(c + r * c_stride + v * kLanes) : Floats{};
  }
  for (int64_t p = 0; p < depth; ++p) {
    Floats columns[V];
    for (int v = 0; v < V; ++v) columns[v] = load(b + p * b_stride + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const float value = a[r * row_stride + p * depth_stride];
      for (int v = 0; v < V; ++v) sums[r][v] += value * columns[v];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) store(c + r * c_stride + v * kLanes, sums[r][v]);
  }
}

template <int R, int V>
void last_rows(int64_t rows, const float* a, int64_t row_stride, int64_t depth_stride, const float* b,
               int64_t b_stride, float* c, int64_t c_stride, int64_t depth, bool add) {
  if (rows == R) {
    tile<R, V>(a, row_stride, depth_stride, b, b_stride, c, c_stride, depth, add);
  } else if constexpr (R > 1) {
    last_rows<R - 1, V>(rows, a, row_stride, depth_stride, b, b_stride, c, c_stride, depth, add);
  }
}

template <int V>
void columns_of(int vectors, int64_t rows, const float* a, int64_t row_stride, int64_t depth_stride, const float* b,
                int64_t b_stride, float* c, int64_t c_stride, int64_t depth, bool add) {
  if (vectors == V) {
    int64_t r = 0;
    for (; r + kTileRows <= rows; r += kTileRows) {
      tile<kTileRows, V>(a + r * row_stride, row_stride, depth_stride, b, b_stride, c + r * c_stride, c_stride, depth,
                         add);
    }
    last_rows<kTileRows - 1, V>(rows - r, a + r * row_stride, row_stride, depth_stride, b, b_stride, c + r * c_stride,
                                c_stride, depth, add);
  } else if constexpr (V > 1) {
    columns_of<V - 1>(vectors, rows, a, row_stride, depth_stride, b, b_stride, c, c_stride, depth, add);
  }
}

// c[rows, columns] (+)= a[rows, depth] b[depth, columns]; `columns` is a multiple of the lanes.
void multiply(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t row_stride, int64_t depth_stride,
              const float* b, int64_t b_stride, float* c, int64_t c_stride, bool add) {
  int64_t left = columns / kLanes;
  for (int64_t column = 0; left > 0;) {
    int vectors = left < kTileVectors ? static_cast<int>(left) : kTileVectors;
    if (left == kTileVectors + 1 && kTileVectors > 2) vectors = kTileVectors - 1;  // never a lone vector at the end
    columns_of<kTileVectors>(vectors, rows, a, row_stride, depth_stride, b + column, b_stride, c + column, c_stride,
                             depth, add);
    column += vectors * kLanes;
    left -= vectors;
  }
}

// ---- rows in and out ------------------------------------------------------------------------------------------

// Rows [begin, end) side by side, padded with zeros to `width`.
void gather(const Heads& from, int64_t begin, int64_t end, int64_t head, int64_t dim, float factor, float* to,
            int64_t width) {
  for (int64_t token = begin; token < end; ++token, to += width) {
    if (from.bf16) {
      widen(row_of<uint16_t>(from, token, head), dim, factor, to);
    } else {
      const float* row = row_of<float>(from, token, head);
      for (int64_t i = 0; i < dim; ++i) to[i] = row[i] * factor;
    }
    for (int64_t i = dim; i < width; ++i) to[i] = 0.0f;
  }
}

// to[i, token] = from[token, i], padded with zeros to `padded` tokens.
void transpose(const float* from, int64_t tokens, int64_t dim, int64_t width, float* to, int64_t padded) {
  constexpr int64_t B = 16;
  for (int64_t i0 = 0; i0 < dim; i0 += B) {
    const int64_t i1 = i0 + B < dim ? i0 + B : dim;
    for (int64_t token = 0; token < tokens; ++token) {
      for (int64_t i = i0; i < i1; ++i) to[i * padded + token] = from[token * width + i];
    }
    for (int64_t i = i0; i < i1; ++i) {
      for (int64_t token = tokens; token < padded; ++token) to[i * padded + token] = 0.0f;
    }
  }
}

// ---- the two directions ---------------------------------------------------------------------------------------

void forward(const AttentionOperands& x, const Sequence& s, int64_t head, float* scratch) {
  const int64_t keys = s.k_end - s.k_begin, padded = attention_padded(keys), width = attention_padded(x.dim);
  float* const k = aligned(scratch);
  float* const k_columns = k + padded * width;
  float* const v = k_columns + padded * width;
  float* const q = v + padded * width;
  float* const out = q + kAttentionQueryBlock * width;
  float* const scores = out + kAttentionQueryBlock * width;
  gather(x.k, s.k_begin, s.k_end, head, x.dim, 1.0f, k, width);
  transpose(k, keys, x.dim, width, k_columns, padded);
  gather(x.v, s.k_begin, s.k_end, head, x.dim, 1.0f, v, width);
  for (int64_t first = s.q_begin; first < s.q_end; first += kAttentionQueryBlock) {
    const int64_t last = first + kAttentionQueryBlock < s.q_end ? first + kAttentionQueryBlock : s.q_end;
    const int64_t rows = last - first;
    gather(x.q, first, last, head, x.dim, x.scale, q, width);
    multiply(rows, padded, x.dim, q, width, 1, k_columns, padded, scores, padded, false);
    float sums[kAttentionQueryBlock];
    for (int64_t r = 0; r < rows; ++r) {
      float* row = scores + r * padded;
      const float top = largest(row, keys);
      sums[r] = exponentials(row, keys, padded, top);
      x.lse[head * x.queries + first + r] = top + logf(sums[r]);
      drop(x, head, first + r, row, padded);
    }
    multiply(rows, width, keys, scores, padded, 1, v, width, out, width, false);
    for (int64_t r = 0; r < rows; ++r) {
      const float factor = x.dropout.scale / sums[r];
      float* row = out + r * width;
      for (int64_t i = 0; i < width; i += kLanes) store(row + i, load(row + i) * factor);
    }
    scatter(out, width, x.out, first, last, head, x.dim);
  }
}

void backward(const AttentionOperands& x, const Sequence& s, int64_t head, float* scratch) {
  const int64_t keys = s.k_end - s.k_begin, padded = attention_padded(keys), width = attention_padded(x.dim);
  const int64_t matrix = padded * width, block = kAttentionQueryBlock * width;
  float* const k = aligned(scratch);
  float* const k_columns = k + matrix;
  float* const v = k_columns + matrix;
  float* const v_columns = v + matrix;
  float* const grad_k = v_columns + matrix;
  float* const grad_v = grad_k + matrix;
  float* const q = grad_v + matrix;
  float* const grad_q = q + block;
  float* const grad_out = grad_q + block;
  float* const out = grad_out + block;
  float* const weights = out + block;
  float* const grad_scores = weights + kAttentionQueryBlock * padded;
  gather(x.k, s.k_begin, s.k_end, head, x.dim, 1.0f, k, width);
  transpose(k, keys, x.dim, width, k_columns, padded);
  gather(x.v, s.k_begin, s.k_end, head, x.dim, 1.0f, v, width);
  transpose(v, keys, x.dim, width, v_columns, padded);
  for (int64_t first = s.q_begin; first < s.q_end; first += kAttentionQueryBlock) {
    const int64_t last = first + kAttentionQueryBlock < s.q_end ? first + kAttentionQueryBlock : s.q_end;
    const int64_t rows = last - first;
    const bool add = first > s.q_begin;
    gather(x.q, first, last, head, x.dim, x.scale, q, width);
    gather(x.grad_out, first, last, head, x.dim, 1.0f, grad_out, width);
    gather(x.out, first, last, head, x.dim, 1.0f, out, width);
    multiply(rows, padded, x.dim, q, width, 1, k_columns, padded, weights, padded, false);
    multiply(rows, padded, x.dim, grad_out, width, 1, v_columns, padded, grad_scores, padded, false);
    for (int64_t r = 0; r < rows; ++r) {
      float* row = weights + r * padded;
      float* grad_row = grad_scores + r * padded;
      exponentials(row, keys, padded, x.lse[head * x.queries + first + r]);
      Floats products = {};
      for (int64_t i = 0; i < width; i += kLanes) {
        products += load(out + r * width + i) * load(grad_out + r * width + i);
      }
      float delta = 0.0f;
      for (int64_t lane = 0; lane < kLanes; ++lane) delta += products[lane];
      score_gradients(x, head, first + r, delta, row, grad_row, padded);
    }
    multiply(keys, width, rows, weights, 1, padded, grad_out, width, grad_v, width, add);
    multiply(keys, width, rows, grad_scores, 1, padded, q, width, grad_k, width, add);
    multiply(rows, width, keys, grad_scores, padded, 1, k, width, grad_q, width, false);
    for (int64_t i = 0; i < rows * width; i += kLanes) store(grad_q + i, load(grad_q + i) * x.scale);
    scatter(grad_q, width, x.grad_q, first, last, head, x.dim);
  }
  scatter(grad_k, width, x.grad_k, s.k_begin, s.k_end, head, x.dim);
  scatter(grad_v, width, x.grad_v, s.k_begin, s.k_end, head, x.dim);
}

}  // namespace
}  // namespace sdfast
