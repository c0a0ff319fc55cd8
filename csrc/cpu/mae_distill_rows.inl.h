// The kernels, once for every instruction set: mae_distill_{plain,avx2,avx512}.cpp include this file and are compiled
// with that set's flags. Everything has internal linkage and nothing of the C++ library is used, so that code built
// for one processor never replaces code built for another at link time.
#pragma once

#include "cpu/mae_distill_values.inl.h"

namespace sdfast {
namespace {

// ---- arithmetic on one row ------------------------------------------------------------------------------------

template <typename T>
double sum_of(const T* x, int64_t n) {
  using V = typename VectorOf<T>::type;
  constexpr int64_t L = VectorOf<T>::lanes;
  V a = {}, b = {};
  int64_t i = 0;
  for (; i + 2 * L <= n; i += 2 * L) {
    a += load(x + i);
    b += load(x + i + L);
  }
  double total = lane_sum<T>(a + b);
  for (; i < n; ++i) total += static_cast<double>(x[i]);
  return total;
}

template <typename T>
double squares_about(const T* x, T mean, int64_t n) {
  using V = typename VectorOf<T>::type;
  constexpr int64_t L = VectorOf<T>::lanes;
  V a = {}, b = {};
  int64_t i = 0;
  for (; i + 2 * L <= n; i += 2 * L) {
    const V d = load(x + i) - mean, e = load(x + i + L) - mean;
    a += d * d;
    b += e * e;
  }
  double total = lane_sum<T>(a + b);
  for (; i < n; ++i) {
    const double d = static_cast<double>(x[i] - mean);
    total += d * d;
  }
  return total;
}

// sum (q - (t - mean) * scale)^2; grad (when not null) = factor * (q - (t - mean) * scale)
template <typename T, bool kGradient>
double distance(const T* q, const T* t, T mean, T scale, T factor, int64_t n, T* grad) {
  using V = typename VectorOf<T>::type;
  constexpr int64_t L = VectorOf<T>::lanes;
  V a = {}, b = {};
  int64_t i = 0;
  for (; i + 2 * L <= n; i += 2 * L) {
    const V d = load(q + i) - (load(t + i) - mean) * scale;
    const V e = load(q + i + L) - (load(t + i + L) - mean) * scale;
    a += d * d;
    b += e * e;
    if constexpr (kGradient) {
      store(grad + i, d * factor);
      store(grad + i + L, e * factor);
    }
  }
  double total = lane_sum<T>(a + b);
  for (; i < n; ++i) {
    const T d = q[i] - (t[i] - mean) * scale;
    total += static_cast<double>(d) * static_cast<double>(d);
    if constexpr (kGradient) grad[i] = d * factor;
  }
  return total;
}

template <typename T>
double distance_of(const T* q, const T* t, T mean, T scale, T factor, int64_t n, T* grad) {
  return grad == nullptr ? distance<T, false>(q, t, mean, scale, factor, n, grad)
                         : distance<T, true>(q, t, mean, scale, factor, n, grad);
}

// ---- reading a patch ------------------------------------------------------------------------------------------

// r, g, b -> r0 g0 b0 r1 g1 b1 ...
template <typename T>
void interleave(const T* r, const T* g, const T* b, int64_t n, T* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[3 * i] = r[i];
    out[3 * i + 1] = g[i];
    out[3 * i + 2] = b[i];
  }
}

#if defined(__AVX512F__)
template <>
void interleave(const float* r, const float* g, const float* b, int64_t n, float* out) {
  const __m512i rg0 = _mm512_setr_epi32(0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5);
  const __m512i rg1 = _mm512_setr_epi32(21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26);
  const __m512i rg2 = _mm512_setr_epi32(0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0);
  const __m512i b0 = _mm512_setr_epi32(0, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 3, 0, 0, 4, 0);
  const __m512i b1 = _mm512_setr_epi32(0, 5, 0, 0, 6, 0, 0, 7, 0, 0, 8, 0, 0, 9, 0, 0);
  const __m512i b2 = _mm512_setr_epi32(10, 0, 0, 11, 0, 0, 12, 0, 0, 13, 0, 0, 14, 0, 0, 15);
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t left = n - i < 16 ? n - i : 16;
    const __mmask16 in = static_cast<__mmask16>((1u << left) - 1u);
    const uint64_t to = (uint64_t{1} << (3 * left)) - 1u;  // three stores of sixteen
    const __m512 red = _mm512_maskz_loadu_ps(in, r + i), green = _mm512_maskz_loadu_ps(in, g + i);
    const __m512 blue = _mm512_maskz_loadu_ps(in, b + i);
    const __m512 low = _mm512_permutex2var_ps(red, rg0, green), middle = _mm512_permutex2var_ps(red, rg1, green);
    const __m512 high = _mm512_permutex2var_ps(red, rg2, green);
    float* target = out + 3 * i;
    _mm512_mask_storeu_ps(target, static_cast<__mmask16>(to), _mm512_mask_permutexvar_ps(low, 0x4924, b0, blue));
    _mm512_mask_storeu_ps(target + 16, static_cast<__mmask16>(to >> 16),
                          _mm512_mask_permutexvar_ps(middle, 0x2492, b1, blue));
    _mm512_mask_storeu_ps(target + 32, static_cast<__mmask16>(to >> 32),
                          _mm512_mask_permutexvar_ps(high, 0x9249, b2, blue));
  }
}
#elif defined(__AVX2__)
template <>
void interleave(const float* r, const float* g, const float* b, int64_t n, float* out) {
  // Each channel's values in the order in which any of the three stores takes them.
  const __m256i r0 = _mm256_setr_epi32(0, 0, 0, 1, 0, 0, 2, 0), g0 = _mm256_setr_epi32(0, 0, 0, 0, 1, 0, 0, 2);
  const __m256i b0 = _mm256_setr_epi32(0, 0, 0, 0, 0, 1, 0, 0), r1 = _mm256_setr_epi32(0, 3, 0, 0, 4, 0, 0, 5);
  const __m256i g1 = _mm256_setr_epi32(0, 0, 3, 0, 0, 4, 0, 0), b1 = _mm256_setr_epi32(2, 0, 0, 3, 0, 0, 4, 0);
  const __m256i r2 = _mm256_setr_epi32(0, 0, 6, 0, 0, 7, 0, 0), g2 = _mm256_setr_epi32(5, 0, 0, 6, 0, 0, 7, 0);
  const __m256i b2 = _mm256_setr_epi32(0, 5, 0, 0, 6, 0, 0, 7);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 red = _mm256_loadu_ps(r + i), green = _mm256_loadu_ps(g + i), blue = _mm256_loadu_ps(b + i);
    const __m256 low = _mm256_blend_ps(_mm256_permutevar8x32_ps(red, r0), _mm256_permutevar8x32_ps(green, g0), 0x92);
    const __m256 middle = _mm256_blend_ps(_mm256_permutevar8x32_ps(red, r1), _mm256_permutevar8x32_ps(green, g1), 0x24);
    const __m256 high = _mm256_blend_ps(_mm256_permutevar8x32_ps(red, r2), _mm256_permutevar8x32_ps(green, g2), 0x49);
    _mm256_storeu_ps(out + 3 * i, _mm256_blend_ps(low, _mm256_permutevar8x32_ps(blue, b0), 0x24));
    _mm256_storeu_ps(out + 3 * i + 8, _mm256_blend_ps(middle, _mm256_permutevar8x32_ps(blue, b1), 0x49));
    _mm256_storeu_ps(out + 3 * i + 16, _mm256_blend_ps(high, _mm256_permutevar8x32_ps(blue, b2), 0x92));
  }
  for (; i < n; ++i) {
    out[3 * i] = r[i];
    out[3 * i + 1] = g[i];
    out[3 * i + 2] = b[i];
  }
}
#endif

// out = bytes * gain + offset
template <typename T>
void scale_bytes(const uint8_t* bytes, int64_t n, T gain, T offset, T* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(bytes[i]) * gain + offset;
}

#if defined(__AVX512F__)
template <>
void scale_bytes(const uint8_t* bytes, int64_t n, float gain, float offset, float* out) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 in = static_cast<__mmask16>(n - i < 16 ? (1u << (n - i)) - 1u : 0xffffu);
    const __m512 raw = 
        _mm512_maskz_cvtepi32_ps(in, _mm512_maskz_cvtepu8_epi32(in, _mm_maskz_loadu_epi8(in, bytes + i)));
    _mm512_mask_storeu_ps(out + i, in, _mm512_fmadd_ps(raw, _mm512_set1_ps(gain), _mm512_set1_ps(offset)));
  }
}
#endif

// n adjacent raw values of one channel as pixels.
template <typename T>
[[gnu::always_inline]] inline const T* channel_values(const PixelRows& x, int64_t channel, int64_t start, int64_t n, T* room) {
  if (x.gain == nullptr) return as_computed(x.images, x.image_kind, start, n, room);
  const T gain = static_cast<T>(x.gain[channel]), offset = static_cast<T>(x.offset[channel]);
  scale_bytes(static_cast<const uint8_t*>(x.images) + start, n, gain, offset, room);
  return room;
}

// The first pixel of a row's patch.
int64_t patch_start(const PixelRows& x, int64_t row) {
  const int64_t patch = x.ids != nullptr ? x.ids[row] : row % x.rows_per_sample;
  const int64_t top = (patch / x.patch_columns) * x.patch_size, left = (patch % x.patch_columns) * x.patch_size;
  return row / x.rows_per_sample * x.image_stride[0] + top * x.image_stride[2] + left * x.image_stride[3];
}

// Gain and offset of every value of one line of a patch (column, channel), for pixels that do not lie in planes.
template <typename T>
struct LineScale {
  T *gain, *offset;
};

template <typename T>
LineScale<T> line_scale(const PixelRows& x, T* room) {
  const int64_t n = x.patch_size * x.channels;
  const LineScale<T> scale{room, room + n};
  for (int64_t i = 0; x.gain != nullptr && i < n; ++i) {
    scale.gain[i] = static_cast<T>(x.gain[i % x.channels]);
    scale.offset[i] = static_cast<T>(x.offset[i % x.channels]);
  }
  return scale;
}

// The patch of a row as the computing type, order row, column, channel (channel fastest).
template <typename T>
void read_patch(const PixelRows& x, int64_t row, const LineScale<T>& scale, T* out, T* room) {
  const int64_t p = x.patch_size, channels = x.channels, n = p * channels, *stride = x.image_stride;
  const bool planes = stride[3] == 1 && channels == 3;  // of adjacent columns
  const bool side_by_side = stride[3] == channels && (stride[1] == 1 || channels == 1);  // channels last
  int64_t at = patch_start(x, row);
  for (int64_t line = 0; line < p; ++line, at += stride[2], out += n) {
    if (planes) {
      const T* r = channel_values(x, 0, at, p, room);
      const T* g = channel_values(x, 1, at + stride[1], p, room + p);
      const T* b = channel_values(x, 2, at + 2 * stride[1], p, room + 2 * p);
      interleave(r, g, b, p, out);
      continue;
    }
    if (side_by_side) {
      widen(x.images, x.image_kind, at, n, out);
    } else {
      for (int64_t i = 0; i < n; ++i) {
        widen(x.images, x.image_kind, at + (i / channels) * stride[3] + (i % channels) * stride[1], 1, out + i);
      }
    }
    if (x.gain == nullptr) continue;
    for (int64_t i = 0; i < n; ++i) out[i] = out[i] * scale.gain[i] + scale.offset[i];
  }
}

const char* prediction(const PixelRows& x, int64_t row) {
  const int64_t at = (row / x.rows_per_sample) * x.pred_stride[0] + (row % x.rows_per_sample) * x.pred_stride[1];
  return static_cast<const char*>(x.pred) + at * kind_size(x.pred_kind);
}

// The next row that counts, or `end`.
int64_t next_counted(const PixelRows& x, int64_t row, int64_t end) {
  do ++row;
  while (row < end && x.mask != nullptr && x.mask[row] == 0);
  return row;
}

// The processor does not foresee the next patch: it is scattered over many lines, and rows that do not count interrupt
// the stream of predictions. Always inlined, as g++ drops the call of a function that only prefetches.
constexpr int64_t kLine = 64;

[[gnu::always_inline]] inline void prefetch_prediction(const PixelRows& x, int64_t row, int64_t n) {
  const char* first = prediction(x, row);
  for (int64_t i = 0; i < n * kind_size(x.pred_kind); i += kLine) __builtin_prefetch(first + i);
}

[[gnu::always_inline]] inline void prefetch_pixels(const PixelRows& x, int64_t row) {
  const int64_t bytes = kind_size(x.image_kind), planes = x.image_stride[3] == 1 ? x.channels : 1;
  const char* pixels = static_cast<const char*>(x.images) + patch_start(x, row) * bytes;
  for (int64_t plane = 0; plane < planes; ++plane) {
    for (int64_t line = 0; line < x.patch_size; ++line) {
      const char* first = pixels + (plane * x.image_stride[1] + line * x.image_stride[2]) * bytes;
      for (int64_t i = 0; i < x.patch_size * x.image_stride[3] * bytes; i += kLine) __builtin_prefetch(first + i);
    }
  }
}

template <typename T>
T* aligned(void* scratch) {
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(scratch) + 63) & ~static_cast<uintptr_t>(63));
}

// One row that counts; returns its sum of squares. The row that `following` names is asked for in two parts, neither of
// them while the stores of the row before are under way.
template <typename T>
double pixel_row(const PixelRows& x, int64_t row, int64_t following, int64_t n, const LineScale<T>& line, T* target,
                 T* pred_room, T* grad_room) {
  read_patch(x, row, line, target, grad_room);
  if (following >= 0) prefetch_prediction(x, following, n);
  T mean = 0, scale = 1;
  if (x.norm_pix) {
    mean = static_cast<T>(sum_of(target, n) / static_cast<double>(n));
    const double variance = squares_about(target, mean, n) / static_cast<double>(n - 1);
    scale = static_cast<T>(1.0 / __builtin_sqrt(variance + 1e-6));
  }
  if (following >= 0) prefetch_pixels(x, following);
  const T* pred = as_computed(prediction(x, row), x.pred_kind, 0, n, pred_room);
  T* grad = gradient_room(x.grad, x.pred_kind, row * n, x.stream, grad_room);
  const double squares = distance_of(pred, target, mean, scale, static_cast<T>(x.grad_factor), n, grad);
  if (grad != nullptr) put_gradient(x.grad, x.pred_kind, row * n, n, x.stream, grad);
  return squares;
}

template <typename T>
double pixel_rows_in(const PixelRows& x, int64_t begin, int64_t end, void* scratch) {
  const int64_t n = x.patch_size * x.patch_size * x.channels, padded = (n + 31) / 32 * 32;
  const int64_t row_bytes = n * kind_size(x.pred_kind);
  T* target = aligned<T>(scratch);
  const LineScale<T> line = line_scale(x, target + 3 * padded);
  double total = 0.0;
  for (int64_t row = begin; row < end; ++row) {
    if (x.mask == nullptr || x.mask[row] != 0) {
      const int64_t following = next_counted(x, row, end);
      total += pixel_row(x, row, following < end ? following : -1, n, line, target, target + padded, target + 2 * padded);
    } else if (x.grad != nullptr) {
      stream_zeros(static_cast<char*>(x.grad) + row * row_bytes, row_bytes, x.stream);
    }
  }
  if (x.stream) end_streaming();
  return total;
}

template <typename T>
double token_rows_in(const TokenRows& x, int64_t begin, int64_t end, void* scratch) {
  T* student_room = aligned<T>(scratch);
  T* teacher_room = student_room + kMaeDistillBlock;
  T* grad_room = teacher_room + kMaeDistillBlock;
  double total = 0.0;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t sample = row / x.tokens, token = row % x.tokens;
    const int64_t bank_row = x.bank_rows != nullptr ? x.bank_rows[sample] : sample;
    T scale = 1;
    if (x.teacher_scale != nullptr) {
      widen(x.teacher_scale, x.scale_kind, bank_row * x.scale_stride[0] + token * x.scale_stride[1], 1, &scale);
    }
    for (int64_t first = 0; first < x.features; first += kMaeDistillBlock) {
      const int64_t n = x.features - first < kMaeDistillBlock ? x.features - first : kMaeDistillBlock;
      const int64_t at = sample * x.student_stride[0] + token * x.student_stride[1] + first;
      const int64_t teacher_at = bank_row * x.teacher_stride[0] + token * x.teacher_stride[1] + first;
      const T* student = as_computed(x.student, x.student_kind, at, n, student_room);
      const T* teacher = as_computed(x.teacher, x.teacher_kind, teacher_at, n, teacher_room);
      const int64_t grad_at = row * x.features + first;
      T* grad = gradient_room(x.grad, x.student_kind, grad_at, x.stream, grad_room);
      total += distance_of(student, teacher, T(0), scale, static_cast<T>(x.grad_factor), n, grad);
      if (grad != nullptr) put_gradient(x.grad, x.student_kind, grad_at, n, x.stream, grad);
    }
  }
  if (x.stream) end_streaming();
  return total;
}

double pixel_rows(const PixelRows& x, int64_t begin, int64_t end, bool wide, void* scratch) {
  return wide ? pixel_rows_in<double>(x, begin, end, scratch) : pixel_rows_in<float>(x, begin, end, scratch);
}

double token_rows(const TokenRows& x, int64_t begin, int64_t end, bool wide, void* scratch) {
  return wide ? token_rows_in<double>(x, begin, end, scratch) : token_rows_in<float>(x, begin, end, scratch);
}

}  // namespace
}  // namespace sdfast
