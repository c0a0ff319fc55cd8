// Products of float32 matrices out of bfloat16 products: what a kernel is given. Nothing here needs torch.
//
//   x = high + middle + low     three bfloat16 numbers hold the 24 bits of a float
//   x y ~ high high' + (high middle' + middle high') + (middle middle' + high low' + low high')
//
// Each of the six is exact in float32, where they are summed; what is left out is below 2^-26 of |x y|, a quarter of
// what rounding the product to float32 costs (Henry, Tang and Heinecke, 2019, arXiv:1904.06376; "bf16x6" in Triton and
// XLA). An Intel processor with AMX has sixteen times as many bfloat16 products as float32 ones, so six of them are
// cheaper than one. Subnormal parts become zero; an infinity, or what rounds to one in bfloat16 (above 3.3895e38),
// makes a NaN.
#pragma once

#include <cstdint>

namespace sdfast {

constexpr int64_t kBf16x6Block = 32;  // rows, columns and depth of a block
constexpr int64_t kBf16x6BlockBytes = 3 * kBf16x6Block * kBf16x6Block * 2;

// A factor: element (outer, k) is data[outer * outer_stride + k * k_stride]; `outer` counts the rows of the left
// matrix or the columns of the right one, k what is summed over. One of the strides is 1.
struct Bf16x6Factor {
  const float* data = nullptr;
  int64_t outer = 0, depth = 0;
  int64_t outer_stride = 0, k_stride = 1;
};

// Where a block of the result goes, row by row.
struct Bf16x6Target {
  float* out = nullptr;  // [rows, columns]
  int64_t row_stride = 0;
  bool add = false;                 // to what is there
  const float* bias = nullptr;      // [columns], added where given
  const float* residual = nullptr;  // [rows, columns], likewise
  int64_t residual_stride = 0;
};

struct Bf16x6Ahead {
  const char* begin = nullptr;
  const char* end = nullptr;
};

// What a thread keeps from one block to the next.
struct alignas(64) Bf16x6State {
  char registers[64];                       // how another library had them
  float sums[kBf16x6Block * kBf16x6Block];  // of a block that is not written yet
  Bf16x6Target to;
  int64_t rows = 0, columns = 0;
};

// One instruction set's kernels. `panel` holds kBf16x6BlockBytes for each 32 of the depth, aligned to 64 bytes.
struct Bf16x6Kernels {
  // Split up to 32 of `outer`, all of `depth`, as the left or the right factor; zeros fill the panel.
  void (*split)(const Bf16x6Factor&, bool right, void* panel);
  // Before the first and after the last block of a thread.
  void (*begin)(Bf16x6State&);
  void (*end)(Bf16x6State&);
  // A block [rows, columns], each at most 32, from two panels of `blocks` blocks. It may be written as late as `end`.
  // The memory `ahead` is of use soon.
  void (*multiply)(const void* left, const void* right, int64_t blocks, const Bf16x6Target&, int64_t rows,
                   int64_t columns, const Bf16x6Ahead& ahead, Bf16x6State&);
};

Bf16x6Kernels bf16x6_plain();
#ifdef SDFAST_X86_SIMD
Bf16x6Kernels bf16x6_amx();
#endif

// Those of simd_level().
Bf16x6Kernels bf16x6_kernels();

}  // namespace sdfast
