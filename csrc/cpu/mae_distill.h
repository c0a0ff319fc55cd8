// Masked-pixel and representation loss on the CPU: what a kernel is given. Nothing here needs torch.
//
//   mae     = 1/(P |M|) sum over masked patches of ||pred - norm(x)||^2
//   distill = 1/B sum_b ||student_b - teacher_b||^2   (also divided by N*D for the mean over features)
//
// A kernel takes a range of rows, returns their sum of squares and writes their gradient in the same pass.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SDFAST_ANY_SIDE __host__ __device__
#else
#define SDFAST_ANY_SIDE
#endif

namespace sdfast {

enum class Kind : int { f32, f64, bf16, f16, u8, i8 };

// The pixel part: row r = sample * rows_per_sample + position; P = patch_size^2 * channels values a row.
struct PixelRows {
  const void* pred = nullptr;  // values of a row lie side by side
  Kind pred_kind = Kind::f32;
  int64_t pred_stride[2] = {0, 0};  // sample, position (in elements)
  const void* images = nullptr;
  Kind image_kind = Kind::f32;
  int64_t image_stride[4] = {0, 0, 0, 0};  // sample, channel, row, column (in elements)
  const uint8_t* mask = nullptr;           // [batch, rows_per_sample], a row counts when not 0; null: all count
  const int64_t* ids = nullptr;            // [batch, rows_per_sample], the patch of a row; null: the position itself
  void* grad = nullptr;                    // contiguous, kind of pred; null: not wanted
  int64_t rows_per_sample = 0;
  int64_t channels = 0;
  int64_t patch_size = 0;
  int64_t patch_columns = 0;        // patches side by side in an image
  const double* gain = nullptr;     // per channel: pixel = raw * gain + offset; null: pixel = raw
  const double* offset = nullptr;
  bool norm_pix = true;
  double grad_factor = 0.0;  // gradient = grad_factor * (pred - target)
  bool stream = false;       // write the gradient past the caches
};

// The representation part: row r = sample * tokens + token; `features` values a row.
struct TokenRows {
  const void* student = nullptr;
  Kind student_kind = Kind::f32;
  int64_t student_stride[2] = {0, 0};  // sample, token (in elements)
  const void* teacher = nullptr;
  Kind teacher_kind = Kind::f32;
  int64_t teacher_stride[2] = {0, 0};
  const int64_t* bank_rows = nullptr;    // [batch]; null: the sample itself
  const void* teacher_scale = nullptr;   // [bank or batch, tokens]; null: 1
  Kind scale_kind = Kind::f32;
  int64_t scale_stride[2] = {0, 0};
  void* grad = nullptr;  // contiguous, kind of student; null: not wanted
  int64_t tokens = 0;
  int64_t features = 0;
  double grad_factor = 0.0;
  bool stream = false;
};

// One instruction set's kernels: the sum of squares of rows [begin, end), their gradient written on the way. `wide`
// computes in double, otherwise in float. `scratch` holds mae_distill_scratch_bytes(P) bytes.
struct MaeDistillKernels {
  double (*pixel_rows)(const PixelRows&, int64_t begin, int64_t end, bool wide, void* scratch);
  double (*token_rows)(const TokenRows&, int64_t begin, int64_t end, bool wide, void* scratch);
};

MaeDistillKernels mae_distill_plain();
#ifdef SDFAST_X86_SIMD
MaeDistillKernels mae_distill_avx2();
MaeDistillKernels mae_distill_avx512();
#endif

// Those of simd_level().
MaeDistillKernels mae_distill_kernels();

SDFAST_ANY_SIDE constexpr int64_t kind_size(Kind kind) {
  return kind == Kind::f64 ? 8 : kind == Kind::f32 ? 4 : kind == Kind::bf16 || kind == Kind::f16 ? 2 : 1;
}

constexpr int64_t kMaeDistillBlock = 4096;  // values of a token row taken at once

constexpr int64_t mae_distill_scratch_bytes(int64_t patch_values) {
  const int64_t widest = patch_values > kMaeDistillBlock ? patch_values : kMaeDistillBlock;
  return 5 * (widest + 32) * static_cast<int64_t>(sizeof(double)) + 64;
}

}  // namespace sdfast
