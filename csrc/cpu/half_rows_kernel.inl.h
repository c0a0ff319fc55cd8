// The kernels, once for every instruction set; see mae_distill_rows.inl.h for why everything has internal linkage.
#pragma once

#include <math.h>

#include "cpu/bfloat16.inl.h"
#include "cpu/half_rows.h"
#include "cpu/vectors.inl.h"

namespace sdfast {
namespace {

void norm(const NormRows& p) {
  const double width = static_cast<double>(p.width);
  for (int64_t row = 0; row < p.rows; ++row) {
    const int64_t at = row * p.width;
    const float* x = p.x + at;
    Floats total = {};
    each_vector(p.width, [&](int64_t i, int64_t left) __attribute__((always_inline)) {
      Floats value = load_first(x + i, left);
      if (p.change) {
        value += load_first(p.change + at + i, left);
        store_first(p.sum + at + i, left, value);
      }
      total += value;
    });
    const float* s = p.change ? p.sum + at : x;
    const float mean = static_cast<float>(lane_sum<float>(total) / width);
    Floats squares = {};
    int64_t i = 0;
    for (; i + kLanes <= p.width; i += kLanes) {
      const Floats away = load(s + i) - mean;
      squares += away * away;
    }
    double variance = lane_sum<float>(squares);
    for (; i < p.width; ++i) variance += static_cast<double>(s[i] - mean) * static_cast<double>(s[i] - mean);
    const float scale = static_cast<float>(1.0 / sqrt(variance / width + static_cast<double>(p.eps)));
    p.stats[2 * row] = mean;
    p.stats[2 * row + 1] = scale;
    each_vector(p.width, [&](int64_t j, int64_t left) __attribute__((always_inline)) {
      const Floats n = (load_first(s + j, left) - mean) * scale;
      const Floats y = n * load_first(p.weight + j, left) + load_first(p.bias + j, left);
      store_first(p.half + at + j, left, y);
      if (p.wide) store_first(p.wide + at + j, left, y);
    });
  }
}

// With n = (s - mean) scale and g = the gradient of n:  scale (g - mean(g) - n mean(g n)).
void norm_backward(const NormGradRows& p, float* sums, float* scratch) {
  float *of_weight = sums, *of_bias = sums + p.width;
  float *normed = scratch, *given = scratch + p.width;
  const double width = static_cast<double>(p.width);
  for (int64_t row = 0; row < p.rows; ++row) {
    const int64_t at = row * p.width;
    const float mean = p.stats[2 * row], scale = p.stats[2 * row + 1];
    Floats total = {}, along = {};
    each_vector(p.width, [&](int64_t i, int64_t left) __attribute__((always_inline)) {
      Floats grad = {};
      if (p.of_half) grad += load_first(p.of_half + at + i, left);
      if (p.of_wide) grad += load_first(p.of_wide + at + i, left);
      const Floats n = (load_first(p.sum + at + i, left) - mean) * scale;
      store_first(of_weight + i, left, load_first(of_weight + i, left) + grad * n);
      store_first(of_bias + i, left, load_first(of_bias + i, left) + grad);
      const Floats g = grad * load_first(p.weight + i, left);  // 0 beyond the last
      store_first(normed + i, left, n);
      store_first(given + i, left, g);
      total += g;
      along += g * n;
    });
    const float share = static_cast<float>(lane_sum<float>(total) / width);
    const float slant = static_cast<float>(lane_sum<float>(along) / width);
    each_vector(p.width, [&](int64_t i, int64_t left) __attribute__((always_inline)) {
      Floats made = (load_first(given + i, left) - share - load_first(normed + i, left) * slant) * scale;
      if (p.of_sum) made += load_first(p.of_sum + at + i, left);
      store_first(p.wide + at + i, left, made);
      if (p.half) store_first(p.half + at + i, left, made);
    });
  }
}

// GELU's slope, see gelu_kernel.inl.h: with a = |x|, P(-a) = exp(-a^2 / 2) m(a). To 4e-4, a fifth of what rounding to
// bfloat16 costs at most: m is a polynomial in a on [0, 6], and constant beyond, where P(-a) is below 1e-9.
[[gnu::always_inline]] inline Floats slope_of(Floats x) {
  const Floats zero = {};
  const Floats a = reinterpret_cast<Floats>(reinterpret_cast<WideBits>(x) & 0x7fffffffu);
  const Floats near = a < 6.0f ? a : zero + 6.0f, far = 13.0f > a ? a : zero + 13.0f;
  Floats m = near * -5.601598331850255e-07f + 1.8358621673542075e-05f;
  m = m * near - 0.0002632120158523321f;
  m = m * near + 0.002182623138651252f;
  m = m * near - 0.011712482199072838f;
  m = m * near + 0.04343937337398529f;
  m = m * near - 0.1173994168639183f;
  m = m * near + 0.24298305809497833f;
  m = m * near - 0.3976210951805115f;
  m = m * near + 0.49995505809783936f;
  // exp(-a^2 / 2) = 2^t, t split into the nearest integer and what is left.
  const Floats t = far * far * -0.72134752044448170f;
  const Floats shift = zero + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const Floats rounded = t + shift, left = t - (rounded - shift);
  Floats e = left * 0.0551716685295105f + 0.2426111251115799f;
  e = e * left + 0.6932609677314758f;
  e = e * left + 0.9999280571937561f;
  e = reinterpret_cast<Floats>(reinterpret_cast<Integers>(e) + (reinterpret_cast<Integers>(rounded) << 23));
  const Floats beyond = e * m;  // P(-a)
  return (x > zero ? 1.0f - beyond : beyond) + x * (e * 0.3989422804014327f);
}

void gelu_backward(const uint16_t* grad, const uint16_t* x, uint16_t* out, float* sums, int64_t rows, int64_t columns) {
  for (int64_t row = 0; row < rows; ++row, grad += columns, x += columns, out += columns) {
    each_vector(columns, [=](int64_t i, int64_t left) __attribute__((always_inline)) {
      const Floats made = load_first(grad + i, left) * slope_of(load_first(x + i, left));
      store_first(out + i, left, made);
      store_first(sums + i, left, load_first(sums + i, left) + made);
    });
  }
}

void sum_rows(const uint16_t* x, float* sums, int64_t rows, int64_t columns) {
  for (int64_t row = 0; row < rows; ++row, x += columns) {
    each_vector(columns, [=](int64_t i, int64_t left) __attribute__((always_inline)) {
      store_first(sums + i, left, load_first(sums + i, left) + load_first(x + i, left));
    });
  }
}

}  // namespace
}  // namespace sdfast
