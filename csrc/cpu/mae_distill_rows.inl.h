// The kernels, once for every instruction set: mae_distill_{plain,avx2,avx512}.cpp include this file and are compiled
// with that set's flags. Everything has internal linkage and nothing of the C++ library is used, so that code built
// for one processor never replaces code built for another at link time.

#include <string.h>

#include "cpu/mae_distill.h"

#if defined(__AVX__) || defined(__SSE2__)
#include <immintrin.h>
#endif

namespace sdfast {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
  static constexpr int64_t lanes = kVectorBytes / sizeof(T);
};

template <typename T>
typename VectorOf<T>::type load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::type*>(p);
}

template <typename T>
void store(T* p, typename VectorOf<T>::type v) {
  *reinterpret_cast<typename VectorOf<T>::type*>(p) = v;
}

template <typename T>
double lane_sum(typename VectorOf<T>::type v) {
  double total = 0.0;
  for (int64_t lane = 0; lane < VectorOf<T>::lanes; ++lane) total += static_cast<double>(v[lane]);
  return total;
}

// ---- conversions between storage and the computing type -------------------------------------------------------

float from_bfloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

uint16_t to_bfloat16(float value) {  // round to nearest, ties to even
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

float from_float16(uint16_t bits) {
#if defined(__F16C__)
  return _cvtsh_ss(bits);
#else
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  uint32_t wide;
  if (magnitude >= 0x7c00u) {
    wide = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
  } else if (magnitude >= 0x400u) {
    wide = sign | ((magnitude << 13) + 0x38000000u);
  } else {  // zero or subnormal: magnitude * 2^-24 is exact in float
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-08f;
    memcpy(&wide, &value, sizeof wide);
    wide |= sign;
  }
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
#endif
}

uint16_t to_float16(float value) {  // round to nearest, ties to even
#if defined(__F16C__)
  return static_cast<uint16_t>(_cvtss_sh(value, 0));
#else
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return sign | 0x7e00u;
  if (bits >= 0x477ff000u) return sign | 0x7c00u;  // rounds beyond 65504
  if (bits >= 0x38800000u) {
    return static_cast<uint16_t>(sign | ((bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13));
  }
  float magnitude;
  memcpy(&magnitude, &bits, sizeof magnitude);
  magnitude += 0.5f;  // the addition rounds at 2^-24, a subnormal's unit
  memcpy(&bits, &magnitude, sizeof bits);
  return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
#endif
}

template <typename T>
void widen(const void* source, Kind kind, int64_t start, int64_t n, T* out) {
  switch (kind) {
    case Kind::f32:
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(static_cast<const float*>(source)[start + i]);
      return;
    case Kind::f64:
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(static_cast<const double*>(source)[start + i]);
      return;
    case Kind::bf16:
      for (int64_t i = 0; i < n; ++i) out[i] = from_bfloat16(static_cast<const uint16_t*>(source)[start + i]);
      return;
    case Kind::f16: {
      const uint16_t* half = static_cast<const uint16_t*>(source) + start;
      int64_t i = 0;
#if defined(__AVX512F__)
      if constexpr (sizeof(T) == 4) {
        for (; i + 16 <= n; i += 16) {
          const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half + i));
          _mm512_storeu_ps(out + i, _mm512_maskz_cvtph_ps(0xffff, bits));
        }
      }
#elif defined(__F16C__)
      if constexpr (sizeof(T) == 4) {
        for (; i + 8 <= n; i += 8) {
          const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(half + i));
          _mm256_storeu_ps(out + i, _mm256_cvtph_ps(bits));
        }
      }
#endif
      for (; i < n; ++i) out[i] = from_float16(half[i]);
      return;
    }
    case Kind::u8:
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(static_cast<const uint8_t*>(source)[start + i]);
      return;
    case Kind::i8:
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(static_cast<const int8_t*>(source)[start + i]);
      return;
  }
}

template <typename T>
constexpr Kind kind_of() {
  return sizeof(T) == 8 ? Kind::f64 : Kind::f32;
}

// The values themselves when they are of type T already, else a widened copy in `room`.
template <typename T>
const T* as_computed(const void* source, Kind kind, int64_t start, int64_t n, T* room) {
  if (kind == kind_of<T>()) return static_cast<const T*>(source) + start;
  widen(source, kind, start, n, room);
  return room;
}

// ---- writing the gradient -------------------------------------------------------------------------------------

// Copies bytes past the caches when both ends allow it. Returns false when they do not.
bool stream_bytes(void* to, const void* from, int64_t bytes) {
#if defined(__AVX512F__) || defined(__AVX__) || defined(__SSE2__)
  if (bytes % kVectorBytes != 0 || reinterpret_cast<uintptr_t>(to) % kVectorBytes != 0) return false;
  const char* source = static_cast<const char*>(from);
  char* target = static_cast<char*>(to);
  for (int64_t i = 0; i < bytes; i += kVectorBytes) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target + i), _mm512_loadu_si512(source + i));
#elif defined(__AVX__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target + i),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i)));
#else
    _mm_stream_si128(reinterpret_cast<__m128i*>(target + i),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i)));
#endif
  }
  return true;
#else
  (void)to, (void)from, (void)bytes;
  return false;
#endif
}

void stream_zeros(void* to, int64_t bytes, bool stream) {
  static const char zeros[1024] = {};
  char* target = static_cast<char*>(to);
  while (stream && bytes > 0) {
    const int64_t piece = bytes < 1024 ? bytes : 1024;
    if (!stream_bytes(target, zeros, piece)) break;
    target += piece;
    bytes -= piece;
  }
  if (bytes > 0) memset(target, 0, static_cast<size_t>(bytes));
}

void end_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Where a row's gradient is computed: in place when it can stay there, else in `room` to be moved by put_gradient.
template <typename T>
T* gradient_room(void* grad, Kind kind, int64_t start, bool stream, T* room) {
  if (grad == nullptr) return nullptr;
  return kind == kind_of<T>() && !stream ? static_cast<T*>(grad) + start : room;
}

template <typename T>
void put_gradient(void* grad, Kind kind, int64_t start, int64_t n, bool stream, const T* values) {
  if (kind == kind_of<T>()) {
    T* target = static_cast<T*>(grad) + start;
    if (target == values) return;
    const int64_t bytes = n * static_cast<int64_t>(sizeof(T));
    if (!stream || !stream_bytes(target, values, bytes)) memcpy(target, values, static_cast<size_t>(bytes));
  } else if (kind == Kind::f32) {
    float* target = static_cast<float*>(grad) + start;
    for (int64_t i = 0; i < n; ++i) target[i] = static_cast<float>(values[i]);
  } else if (kind == Kind::bf16) {
    uint16_t* target = static_cast<uint16_t*>(grad) + start;
    for (int64_t i = 0; i < n; ++i) target[i] = to_bfloat16(static_cast<float>(values[i]));
  } else {
    uint16_t* target = static_cast<uint16_t*>(grad) + start;
    int64_t i = 0;
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      for (; i + 16 <= n; i += 16) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + i), _mm512_maskz_cvtps_ph(0xffff, _mm512_loadu_ps(values + i), 0));
      }
    }
#elif defined(__F16C__)
    if constexpr (sizeof(T) == 4) {
      for (; i + 8 <= n; i += 8) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i), _mm256_cvtps_ph(_mm256_loadu_ps(values + i), 0));
      }
    }
#endif
    for (; i < n; ++i) target[i] = to_float16(static_cast<float>(values[i]));
  }
}

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
  int64_t i = 0;
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const __m512i rg0 = _mm512_setr_epi32(0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5);
    const __m512i rg1 = _mm512_setr_epi32(21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26);
    const __m512i rg2 = _mm512_setr_epi32(0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0);
    const __m512i b0 = _mm512_setr_epi32(0, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 3, 0, 0, 4, 0);
    const __m512i b1 = _mm512_setr_epi32(0, 5, 0, 0, 6, 0, 0, 7, 0, 0, 8, 0, 0, 9, 0, 0);
    const __m512i b2 = _mm512_setr_epi32(10, 0, 0, 11, 0, 0, 12, 0, 0, 13, 0, 0, 14, 0, 0, 15);
    for (; i + 16 <= n; i += 16) {
      const __m512 red = _mm512_loadu_ps(r + i), green = _mm512_loadu_ps(g + i), blue = _mm512_loadu_ps(b + i);
      const __m512 low = _mm512_permutex2var_ps(red, rg0, green);
      const __m512 middle = _mm512_permutex2var_ps(red, rg1, green);
      const __m512 high = _mm512_permutex2var_ps(red, rg2, green);
      _mm512_storeu_ps(out + 3 * i, _mm512_mask_permutexvar_ps(low, 0x4924, b0, blue));
      _mm512_storeu_ps(out + 3 * i + 16, _mm512_mask_permutexvar_ps(middle, 0x2492, b1, blue));
      _mm512_storeu_ps(out + 3 * i + 32, _mm512_mask_permutexvar_ps(high, 0x9249, b2, blue));
    }
  }
#endif
  for (; i < n; ++i) {
    out[3 * i] = r[i];
    out[3 * i + 1] = g[i];
    out[3 * i + 2] = b[i];
  }
}

// n adjacent raw values of one channel as pixels.
template <typename T>
const T* channel_values(const PixelRows& x, int64_t channel, int64_t start, int64_t n, T* room) {
  const T* raw = as_computed(x.images, x.image_kind, start, n, room);
  if (x.gain == nullptr) return raw;
  const T gain = static_cast<T>(x.gain[channel]), offset = static_cast<T>(x.offset[channel]);
  for (int64_t i = 0; i < n; ++i) room[i] = raw[i] * gain + offset;
  return room;
}

// The patch's values as the computing type, order row, column, channel (channel fastest).
template <typename T>
void read_patch(const PixelRows& x, int64_t sample, int64_t patch, T* out, T* room) {
  const int64_t p = x.patch_size, channels = x.channels, *stride = x.image_stride;
  const int64_t top = (patch / x.patch_columns) * p, left = (patch % x.patch_columns) * p;
  const int64_t start = sample * stride[0] + top * stride[2] + left * stride[3];
  if (stride[3] == 1 && channels == 3) {  // planes of adjacent columns
    for (int64_t row = 0; row < p; ++row) {
      const int64_t at = start + row * stride[2];
      const T* r = channel_values(x, 0, at, p, room);
      const T* g = channel_values(x, 1, at + stride[1], p, room + p);
      const T* b = channel_values(x, 2, at + 2 * stride[1], p, room + 2 * p);
      interleave(r, g, b, p, out + row * p * 3);
    }
    return;
  }
  const bool side_by_side = stride[3] == channels && (stride[1] == 1 || channels == 1);  // channels last
  for (int64_t row = 0; row < p; ++row) {
    T* values = out + row * p * channels;
    const int64_t at = start + row * stride[2];
    if (side_by_side) {
      widen(x.images, x.image_kind, at, p * channels, values);
    } else {
      for (int64_t i = 0; i < p * channels; ++i) {
        widen(x.images, x.image_kind, at + (i / channels) * stride[3] + (i % channels) * stride[1], 1, values + i);
      }
    }
  }
  if (x.gain == nullptr) return;
  for (int64_t channel = 0; channel < channels; ++channel) {
    const T gain = static_cast<T>(x.gain[channel]), offset = static_cast<T>(x.offset[channel]);
    for (int64_t i = channel; i < p * p * channels; i += channels) out[i] = out[i] * gain + offset;
  }
}

void prefetch_patch(const PixelRows& x, int64_t row) {
  const int64_t sample = row / x.rows_per_sample, position = row % x.rows_per_sample;
  const int64_t patch = x.ids != nullptr ? x.ids[row] : position;
  const int64_t p = x.patch_size, bytes = kind_size(x.image_kind);
  const int64_t top = (patch / x.patch_columns) * p, left = (patch % x.patch_columns) * p;
  const char* start = static_cast<const char*>(x.images) +
                      (sample * x.image_stride[0] + top * x.image_stride[2] + left * x.image_stride[3]) * bytes;
  const int64_t planes = x.image_stride[3] == 1 ? x.channels : 1;
  for (int64_t plane = 0; plane < planes; ++plane) {
    for (int64_t line = 0; line < p; ++line) {
      __builtin_prefetch(start + (plane * x.image_stride[1] + line * x.image_stride[2]) * bytes);
    }
  }
}

int64_t next_counted(const PixelRows& x, int64_t row, int64_t end) {
  if (x.mask != nullptr) {
    while (row < end && x.mask[row] == 0) ++row;
  }
  return row;
}

template <typename T>
T* aligned(void* scratch) {
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(scratch) + 63) & ~static_cast<uintptr_t>(63));
}

template <typename T>
double pixel_rows_in(const PixelRows& x, int64_t begin, int64_t end, void* scratch) {
  const int64_t n = x.patch_size * x.patch_size * x.channels, padded = (n + 31) / 32 * 32;
  T* target = aligned<T>(scratch);
  T* pred_room = target + padded;
  T* grad_room = pred_room + padded;
  const int64_t grad_row_bytes = n * kind_size(x.pred_kind);
  double total = 0.0;
  for (int64_t row = begin; row < end; ++row) {
    if (x.mask != nullptr && x.mask[row] == 0) {
      if (x.grad != nullptr) stream_zeros(static_cast<char*>(x.grad) + row * grad_row_bytes, grad_row_bytes, x.stream);
      continue;
    }
    const int64_t following = next_counted(x, row + 1, end);
    if (following < end) prefetch_patch(x, following);
    const int64_t sample = row / x.rows_per_sample, position = row % x.rows_per_sample;
    read_patch(x, sample, x.ids != nullptr ? x.ids[row] : position, target, grad_room);
    T mean = 0, scale = 1;
    if (x.norm_pix) {
      mean = static_cast<T>(sum_of(target, n) / static_cast<double>(n));
      const double variance = squares_about(target, mean, n) / static_cast<double>(n - 1);
      scale = static_cast<T>(1.0 / __builtin_sqrt(variance + 1e-6));
    }
    const int64_t at = sample * x.pred_stride[0] + position * x.pred_stride[1];
    const T* pred = as_computed(x.pred, x.pred_kind, at, n, pred_room);
    T* grad = gradient_room(x.grad, x.pred_kind, row * n, x.stream, grad_room);
    total += distance_of(pred, target, mean, scale, static_cast<T>(x.grad_factor), n, grad);
    if (grad != nullptr) put_gradient(x.grad, x.pred_kind, row * n, n, x.stream, grad);
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
