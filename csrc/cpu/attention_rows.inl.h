// Rows of an attention: out of the matrices and into them, their softmax, its gradient, dropout. Everything has
// internal linkage: see mae_distill_rows.inl.h.
#pragma once

#include <math.h>
#include <string.h>

#include "cpu/attention.h"
#include "cpu/attention_mask.inl.h"
#include "cpu/bfloat16.inl.h"
#include "cpu/vectors.inl.h"

namespace sdfast {
namespace {

template <typename T>
T* row_of(const Heads& heads, int64_t token, int64_t head) {
  return static_cast<T*>(heads.data) + token * heads.token_stride + head * heads.head_stride;
}

void scatter(const float* from, int64_t width, const Heads& to, int64_t begin, int64_t end, int64_t head, int64_t dim) {
  for (int64_t token = begin; token < end; ++token, from += width) {
    if (to.bf16) {
      narrow(from, dim, row_of<uint16_t>(to, token, head));
    } else {
      float* row = row_of<float>(to, token, head);
      for (int64_t i = 0; i < dim; ++i) row[i] = from[i];
    }
  }
}

float* aligned(float* pointer) {
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(pointer) + 63) & ~uintptr_t{63});
}

float largest(const float* row, int64_t count) {
  float top = row[0];
  int64_t i = 0;
  if (count >= kLanes) {
    Floats tops = load(row);
    for (i = kLanes; i + kLanes <= count; i += kLanes) {
      const Floats next = load(row + i);
      tops = next > tops ? next : tops;
    }
    top = tops[0];
    for (int64_t lane = 1; lane < kLanes; ++lane) top = tops[lane] > top ? tops[lane] : top;
  }
  for (; i < count; ++i) top = row[i] > top ? row[i] : top;
  return top;
}

// row[i] = exp(row[i] - top) for i < count and 0 for the padding; returns the sum.
float exponentials(float* row, int64_t count, int64_t padded, float top) {
  for (int64_t i = count; i < padded; ++i) row[i] = -HUGE_VALF;
  Floats sums = {};
  for (int64_t i = 0; i < padded; i += kLanes) {
    const Floats value = exp_of(load(row + i) - top);
    store(row + i, value);
    sums += value;
  }
  float sum = 0.0f;
  for (int64_t lane = 0; lane < kLanes; ++lane) sum += sums[lane];
  return sum;
}

// Zeros for the weights that are dropped; the others keep their size.
void drop(const AttentionOperands& x, int64_t head, int64_t query, float* row, int64_t padded) {
  if (x.dropout.threshold == 0) return;
  Mask mask(x.dropout, head, query);
  for (int64_t i = 0; i < padded; i += kLanes) store(row + i, load(row + i) * mask.next());
}

// With `weights` a row after the softmax, `grads` of the weights after dropout and `delta` the sum of their products:
// `grads` becomes the gradient of the scores and `weights` what dropout makes of them.
void score_gradients(const AttentionOperands& x, int64_t head, int64_t query, float delta, float* weights, float* grads,
                     int64_t padded) {
  if (x.dropout.threshold == 0) {
    for (int64_t i = 0; i < padded; i += kLanes) store(grads + i, load(weights + i) * (load(grads + i) - delta));
    return;
  }
  Mask mask(x.dropout, head, query);
  for (int64_t i = 0; i < padded; i += kLanes) {
    const Floats weight = load(weights + i), kept = mask.next() * x.dropout.scale;
    store(grads + i, weight * (load(grads + i) * kept - delta));
    store(weights + i, weight * kept);
  }
}

}  // namespace
}  // namespace sdfast
