// What a training step in bfloat16 does between its matrix products, on the CPU: what a kernel is given. Nothing here
// needs torch.
//
//   s = x + change      y = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias
//
// A transformer's residual stream s stays in float32; what a layer adds to it and what the next layer multiplies are
// bfloat16. So the sum, the norm and the conversion are one pass here, as are their gradients; and the gradient of a bias,
// which is the sum of the rows of another gradient, is summed in float32.
#pragma once

#include <cstdint>

namespace sdfast {

// Rows of `width` numbers each; bfloat16 numbers are their bits. A pointer that is null stands for nothing.
struct NormRows {
  int64_t rows = 0, width = 0;
  const float* x = nullptr;
  const uint16_t* change = nullptr;
  const float *weight = nullptr, *bias = nullptr;  // [width]
  float eps = 0.0f;
  float* sum = nullptr;  // s, where there is a change
  float* wide = nullptr;
  uint16_t* half = nullptr;  // y, in float32 and in bfloat16
  float* stats = nullptr;    // [rows, 2]: mean and 1 / sqrt(var + eps)
};

struct NormGradRows {
  int64_t rows = 0, width = 0;
  const float *sum = nullptr, *stats = nullptr, *weight = nullptr;  // as above
  const float* of_sum = nullptr;  // gradient of s from elsewhere
  const float* of_wide = nullptr;
  const uint16_t* of_half = nullptr;  // gradients of y
  float* wide = nullptr;              // gradient of x and of the change
  uint16_t* half = nullptr;           // the same
};

// One instruction set's kernels. Sums are added to.
struct HalfRowsKernels {
  void (*norm)(const NormRows&);
  // sums [2, width]: of the gradients of weight and bias. `scratch` holds 2 width numbers.
  void (*norm_backward)(const NormGradRows&, float* sums, float* scratch);
  // out = grad times GELU's slope at x, all [rows, columns]; sums [columns]: of out before it is rounded.
  void (*gelu_backward)(const uint16_t* grad, const uint16_t* x, uint16_t* out, float* sums, int64_t rows,
                        int64_t columns);
  void (*sum_rows)(const uint16_t* x, float* sums, int64_t rows, int64_t columns);
};

HalfRowsKernels half_rows_plain();
#ifdef SDFAST_X86_SIMD
HalfRowsKernels half_rows_avx2();
HalfRowsKernels half_rows_avx512();
#endif

// Those of simd_level().
HalfRowsKernels half_rows_kernels();

}  // namespace sdfast
