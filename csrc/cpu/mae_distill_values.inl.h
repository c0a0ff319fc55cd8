// Conversions between storage and the computing type, and writing past the caches: the lower half of
// mae_distill_rows.inl.h, which see for why everything has internal linkage.
#pragma once

#include <string.h>

#include "cpu/mae_distill.h"
#include "cpu/vectors.inl.h"

namespace sdfast {
namespace {

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

#if defined(__AVX512F__)
__m256i to_bfloat16(const float* values) {  // sixteen
  const __mmask16 all = 0xffff;
  const __m512i bits = _mm512_loadu_si512(values), upper = _mm512_maskz_srli_epi32(all, bits, 16);
  const __m512i odd = _mm512_maskz_and_epi32(all, upper, _mm512_set1_epi32(1));
  const __m512i half = _mm512_maskz_add_epi32(all, odd, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_maskz_srli_epi32(all, _mm512_maskz_add_epi32(all, bits, half), 16);
  const __m512i magnitude = _mm512_maskz_and_epi32(all, bits, _mm512_set1_epi32(0x7fffffff));
  const __mmask16 nan = _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7f800000));
  const __m512i chosen = _mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40));
  return _mm512_maskz_cvtepi32_epi16(all, chosen);
}
#endif

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
    int64_t i = 0;
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      for (; i + 16 <= n; i += 16) _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + i), to_bfloat16(values + i));
    }
#endif
    for (; i < n; ++i) target[i] = to_bfloat16(static_cast<float>(values[i]));
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

}  // namespace
}  // namespace sdfast
