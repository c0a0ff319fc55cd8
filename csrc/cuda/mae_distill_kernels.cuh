// The device code of csrc/cuda/mae_distill.cu. It names CUDA's built-ins and includes none of CUDA's headers, so that
// csrc/tests/test_mae_distill_cuda.cpp can run it, thread by thread, on a CPU.
//
// One warp takes one row (a patch or a token) at a time; everything is read once, 16 bytes a lane where rows are
// aligned, and the gradient is written on the way. Blocks stay and take every n-th row, so a block's partial sum is the
// same every run; the block that finishes last adds the partial sums in a fixed order. An index out of range gives NaN.
#pragma once

#include "cuda/mae_distill.h"
#include "cuda/mae_distill_values.cuh"

namespace sdfast {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kKeptBytes = 4096;  // of a patch that a warp keeps in shared memory: 1,024 float values
// Of the main kernel, at the same time: double does not fit into the 64 registers a thread that four would leave.
template <typename T>
constexpr int kBlocksAMultiprocessor = sizeof(T) == 8 ? 3 : 4;

struct PixelScale {
  float gain[kMaxScaledChannels], offset[kMaxScaledChannels];
  double wide_gain[kMaxScaledChannels], wide_offset[kMaxScaledChannels];
  bool used;
};

inline PixelScale pixel_scale(const PixelRows& x) {
  PixelScale scale{};
  scale.used = x.gain != nullptr;
  for (int64_t channel = 0; scale.used && channel < x.channels; ++channel) {
    scale.wide_gain[channel] = x.gain[channel];
    scale.wide_offset[channel] = x.offset[channel];
    scale.gain[channel] = static_cast<float>(x.gain[channel]);
    scale.offset[channel] = static_cast<float>(x.offset[channel]);
  }
  return scale;
}

template <typename T>
__device__ T channel_gain(const PixelScale& scale, int channel) {
  if constexpr (sizeof(T) == 8) return scale.wide_gain[channel];
  return scale.gain[channel];
}

template <typename T>
__device__ T channel_offset(const PixelScale& scale, int channel) {
  if constexpr (sizeof(T) == 8) return scale.wide_offset[channel];
  return scale.offset[channel];
}

template <typename T>
__device__ T warp_sum(T value) {
SDFAST_UNROLL
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// The sum over the block, in thread 0; the order is fixed.
template <typename T>
__device__ T block_sum(T value, T* shared) {
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  T total = 0;
  for (int warp = 0; warp < kWarps; ++warp) total += shared[warp];
  return total;
}

__device__ bool divides_16(const void* pointer, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride_bytes % 16 == 0;
}

// ---- the pixel part -------------------------------------------------------------------------------------------

// A place in a patch, in the prediction's order: row, column, channel (channel fastest).
struct Place {
  int row, column, channel;
};

__device__ Place place_of(const PixelRows& x, int index) {
  const int channels = static_cast<int>(x.channels), side = static_cast<int>(x.patch_size);
  const int pixel = index / channels;
  return {pixel / side, pixel % side, index % channels};
}

__device__ void advance(const PixelRows& x, Place& place) {
  if (++place.channel < x.channels) return;
  place.channel = 0;
  if (++place.column < x.patch_size) return;
  place.column = 0;
  ++place.row;
}

template <typename T>
__device__ T pixel_at(const PixelRows& x, const PixelScale& scale, int64_t patch_start, const Place& place) {
  const int64_t at = patch_start + place.row * x.image_stride[2] + place.column * x.image_stride[3] +
                     place.channel * x.image_stride[1];
  const T raw = read_value<T>(x.images, x.image_kind, at);
  return scale.used ? raw * channel_gain<T>(scale, place.channel) + channel_offset<T>(scale, place.channel) : raw;
}

template <typename T>
constexpr __device__ Kind own_kind() {
  return sizeof(T) == 8 ? Kind::f64 : Kind::f32;
}

template <typename T>
__device__ void read_kept(const T* from, T (&out)[kGroup]) {
  const uint4* wide = reinterpret_cast<const uint4*>(from);
SDFAST_UNROLL
  for (int word = 0; word < static_cast<int>(kGroup * sizeof(T) / 16); ++word) {
    reinterpret_cast<uint4*>(out)[word] = wide[word];
  }
}

template <typename T>
struct PatchNorm {
  T mean = 0, scale = 1;
};

__device__ float root(float x) { return sqrtf(x); }
__device__ double root(double x) { return sqrt(x); }

template <typename T>
__device__ PatchNorm<T> norm_of(T sum_of_squares_about_mean, T mean, int64_t values) {
  return {mean, T(1) / root(sum_of_squares_about_mean / static_cast<T>(values - 1) + T(1e-6))};
}

// The patch stays in shared memory between the mean, the variance and the difference. A lane reads back only what it
// wrote itself, so the lanes need not wait for each other.
template <typename T>
__device__ T kept_patch(const PixelRows& x, const PixelScale& scale, int64_t start, int64_t pred_at, int64_t grad_at,
                        int values, T factor, bool aligned, T* target) {
  const int lane = threadIdx.x % 32;
  PatchNorm<T> norm;
  T sum = 0, squares = 0, total = 0;
  for (int first = lane * kGroup; first < values; first += 32 * kGroup) {
    alignas(16) T pixels[kGroup];
    Place place = place_of(x, first);
SDFAST_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      pixels[i] = first + i < values ? pixel_at<T>(x, scale, start, place) : T(0);
      sum += pixels[i];
      advance(x, place);
    }
    write_group(target, own_kind<T>(), first, kGroup, true, pixels);
  }
  if (x.norm_pix) {
    const T mean = warp_sum(sum) / static_cast<T>(values);
    for (int first = lane * kGroup; first < values; first += 32 * kGroup) {
      alignas(16) T pixels[kGroup];
      read_kept(target + first, pixels);
SDFAST_UNROLL
      for (int i = 0; i < kGroup; ++i) {
        const T d = first + i < values ? pixels[i] - mean : T(0);
        squares += d * d;
      }
    }
    norm = norm_of(warp_sum(squares), mean, values);
  }
  for (int first = lane * kGroup; first < values; first += 32 * kGroup) {
    alignas(16) T pixels[kGroup];
    T pred[kGroup];
    read_group(x.pred, x.pred_kind, pred_at + first, values - first, aligned, pred);
    read_kept(target + first, pixels);
SDFAST_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      const T d = first + i < values ? pred[i] - (pixels[i] - norm.mean) * norm.scale : T(0);
      total += d * d;
      pred[i] = d * factor;
    }
    if (x.grad != nullptr) write_group(x.grad, x.pred_kind, grad_at + first, values - first, aligned, pred);
  }
  return total;
}

// A patch of any size, its pixels read again (from the caches) for the mean, the variance and the difference.
template <typename T>
__device__ T reread_patch(const PixelRows& x, const PixelScale& scale, int64_t start, int64_t pred_at, int64_t grad_at,
                          int values, T factor) {
  const int lane = threadIdx.x % 32;
  PatchNorm<T> norm;
  if (x.norm_pix) {
    T sum = 0, squares = 0;
    for (int i = lane; i < values; i += 32) sum += pixel_at<T>(x, scale, start, place_of(x, i));
    const T mean = warp_sum(sum) / static_cast<T>(values);
    for (int i = lane; i < values; i += 32) {
      const T d = pixel_at<T>(x, scale, start, place_of(x, i)) - mean;
      squares += d * d;
    }
    norm = norm_of(warp_sum(squares), mean, values);
  }
  T total = 0;
  for (int i = lane; i < values; i += 32) {
    const T target = (pixel_at<T>(x, scale, start, place_of(x, i)) - norm.mean) * norm.scale;
    const T d = read_value<T>(x.pred, x.pred_kind, pred_at + i) - target;
    total += d * d;
    if (x.grad != nullptr) write_value(x.grad, x.pred_kind, grad_at + i, d * factor);
  }
  return total;
}

// A row whose gradient is the same everywhere: 0 where nothing is masked, NaN where an index is out of range.
template <typename T>
__device__ void fill_row(void* grad, Kind kind, int64_t grad_at, int64_t values, bool aligned, T value) {
  T group[kGroup];
SDFAST_UNROLL
  for (int i = 0; i < kGroup; ++i) group[i] = value;
  for (int64_t first = (threadIdx.x % 32) * kGroup; first < values; first += 32 * kGroup) {
    write_group(grad, kind, grad_at + first, values - first, aligned, group);
  }
}

template <typename T>
__device__ T pixel_row(const CudaMaeDistill& call, const PixelScale& scale, int64_t row, T factor, T* kept) {
  const PixelRows& x = call.pixels;
  const int64_t bytes = kind_size(x.pred_kind), values = call.patch_values;
  const bool grad_aligned = divides_16(x.grad, values * bytes);
  const bool counted = x.mask == nullptr || x.mask[row] != 0;
  const int64_t sample = row / x.rows_per_sample, position = row % x.rows_per_sample;
  const int64_t patch = x.ids != nullptr ? x.ids[row] : position;
  const bool readable = patch >= 0 && patch < call.patches;
  if (!counted || !readable) {
    const T value = counted ? static_cast<T>(nanf("")) : T(0);
    if (x.grad != nullptr) fill_row(x.grad, x.pred_kind, row * values, values, grad_aligned, value);
    return value;
  }
  const int64_t top = (patch / x.patch_columns) * x.patch_size, left = (patch % x.patch_columns) * x.patch_size;
  const int64_t start = sample * x.image_stride[0] + top * x.image_stride[2] + left * x.image_stride[3];
  const int64_t pred_at = sample * x.pred_stride[0] + position * x.pred_stride[1];
  if (values * static_cast<int64_t>(sizeof(T)) > kKeptBytes) {
    return reread_patch<T>(x, scale, start, pred_at, row * values, static_cast<int>(values), factor);
  }
  const bool aligned = grad_aligned && divides_16(x.pred, x.pred_stride[0] * bytes) &&
                       divides_16(x.pred, x.pred_stride[1] * bytes);
  return kept_patch<T>(x, scale, start, pred_at, row * values, static_cast<int>(values), factor, aligned, kept);
}

// ---- the representation part ----------------------------------------------------------------------------------

template <typename T>
__device__ T token_row(const CudaMaeDistill& call, int64_t row, T factor) {
  const TokenRows& x = call.tokens;
  const int64_t own = kind_size(x.student_kind), theirs = kind_size(x.teacher_kind), n = x.features;
  const int64_t sample = row / x.tokens, token = row % x.tokens;
  const int64_t bank_row = x.bank_rows != nullptr ? x.bank_rows[sample] : sample;
  const bool grad_aligned = divides_16(x.grad, n * own);
  if (bank_row < 0 || bank_row >= call.bank_size) {
    const T nan = static_cast<T>(nanf(""));
    if (x.grad != nullptr) fill_row(x.grad, x.student_kind, row * n, n, grad_aligned, nan);
    return nan;
  }
  T scale = 1;
  if (x.teacher_scale != nullptr) {
    const int64_t at = bank_row * x.scale_stride[0] + token * x.scale_stride[1];
    scale = read_value<T>(x.teacher_scale, x.scale_kind, at);
  }
  const int64_t student_at = sample * x.student_stride[0] + token * x.student_stride[1];
  const int64_t teacher_at = bank_row * x.teacher_stride[0] + token * x.teacher_stride[1];
  const bool student_aligned =
      divides_16(x.student, x.student_stride[0] * own) && divides_16(x.student, x.student_stride[1] * own);
  const bool teacher_aligned =
      divides_16(x.teacher, x.teacher_stride[0] * theirs) && divides_16(x.teacher, x.teacher_stride[1] * theirs);
  T total = 0;
  for (int64_t first = (threadIdx.x % 32) * kGroup; first < n; first += 32 * kGroup) {
    const int64_t present = n - first;
    T student[kGroup], teacher[kGroup];
    read_group(x.student, x.student_kind, student_at + first, present, student_aligned, student);
    read_group(x.teacher, x.teacher_kind, teacher_at + first, present, teacher_aligned, teacher);
SDFAST_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      const T d = student[i] - teacher[i] * scale;
      total += d * d;
      student[i] = d * factor;
    }
    if (x.grad != nullptr) write_group(x.grad, x.student_kind, row * n + first, present, grad_aligned, student);
  }
  return total;
}

// ---- the two kernels ------------------------------------------------------------------------------------------

// counters[0] = counted rows, counters[1] = 0 blocks finished. One block.
__global__ void count_rows(const uint8_t* mask, int64_t rows, int* counters) {
  __shared__ int shared[kWarps];
  int count = 0;
  if (mask != nullptr) {
    for (int64_t row = threadIdx.x; row < rows; row += kThreads) count += mask[row] != 0;
  }
  count = block_sum(count, shared);
  if (threadIdx.x == 0) {
    counters[0] = mask != nullptr ? count : static_cast<int>(rows);
    counters[1] = 0;
  }
}

__device__ double pixel_divisor(const CudaMaeDistill& call) {
  const double counted = call.counters[0] > 0 ? call.counters[0] : 1;
  return counted * static_cast<double>(call.patch_values > 0 ? call.patch_values : 1);
}

template <typename T>
__device__ void finish(const CudaMaeDistill& call, double* shared) {
  const volatile T* partial = static_cast<const volatile T*>(call.partial);
  double pixels = 0, tokens = 0;
  for (unsigned block = threadIdx.x; block < gridDim.x; block += kThreads) {
    pixels += static_cast<double>(partial[block]);
    tokens += static_cast<double>(partial[gridDim.x + block]);
  }
  pixels = block_sum(pixels, shared);
  tokens = block_sum(tokens, shared);
  if (threadIdx.x != 0) return;
  const double mae = pixels / pixel_divisor(call), distill = tokens / call.token_divisor;
  *static_cast<T*>(call.mae) = static_cast<T>(mae);
  *static_cast<T*>(call.distill) = static_cast<T>(distill);
  *static_cast<T*>(call.loss) = static_cast<T>(call.mae_weight * mae + call.distill_weight * distill);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksAMultiprocessor<T>)
    both_parts(const __grid_constant__ CudaMaeDistill call, const __grid_constant__ PixelScale scale) {
  __shared__ double shared[kWarps];
  __shared__ bool last;
  __shared__ __align__(16) char patches[kWarps][kKeptBytes];
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
  const T pixel_factor = static_cast<T>(2.0 * call.mae_weight / pixel_divisor(call));
  const T token_factor = static_cast<T>(call.tokens.grad_factor);
  T pixels = 0, tokens = 0;
  T* kept = reinterpret_cast<T*>(patches[threadIdx.x / 32]);
  for (int64_t row = warp; row < call.pixel_rows; row += warps) {
    pixels += pixel_row(call, scale, row, pixel_factor, kept);
  }
  for (int64_t row = warp; row < call.token_rows; row += warps) tokens += token_row(call, row, token_factor);
  T* sums = reinterpret_cast<T*>(shared);
  pixels = block_sum(pixels, sums);
  tokens = block_sum(tokens, sums);
  if (threadIdx.x == 0) {
    static_cast<T*>(call.partial)[blockIdx.x] = pixels;
    static_cast<T*>(call.partial)[gridDim.x + blockIdx.x] = tokens;
    __threadfence();  // the partial sums come before this block counts as finished
    last = atomicAdd(call.counters + 1, 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (last) {
    __threadfence();
    finish<T>(call, shared);
  }
}

}  // namespace
}  // namespace sdfast
