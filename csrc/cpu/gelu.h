// GELU and its slope on the CPU: what a kernel is given. Nothing here needs torch.
//
//   y = x P(x),   slope = P(x) + x p(x)     with P and p the distribution and density of the standard normal
#pragma once

#include <cstdint>

namespace sdfast {

// One instruction set's kernel: y[i] and slope[i] for i < count.
using GeluKernel = void (*)(const float* x, float* y, float* slope, int64_t count);

GeluKernel gelu_plain();
#ifdef SDFAST_X86_SIMD
GeluKernel gelu_avx2();
GeluKernel gelu_avx512();
#endif

// That of simd_level().
GeluKernel gelu_kernel();

}  // namespace sdfast
