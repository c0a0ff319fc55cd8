// Vectors as wide as the instruction set that a file is compiled for. Everything has internal linkage: see
// mae_distill_rows.inl.h.
#pragma once

#include <stdint.h>

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

using Floats = VectorOf<float>::type;
constexpr int64_t kLanes = VectorOf<float>::lanes;
typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));

// exp(x) for x <= 0 (NaN stays NaN); 0 below the smallest normal result.
Floats exp_of(Floats x) {
  const Floats shift = Floats{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const Floats rounded = x * 1.44269504088896341f + shift;
  const Integers exponent = reinterpret_cast<Integers>(rounded) - 0x4b400000;
  const Floats n = rounded - shift;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r) * r + r + 1.0f;
  const Integers scale = (exponent + 127) << 23;
  const Floats result = p * reinterpret_cast<Floats>(scale);
  const Integers vanished = x < Floats{} - 87.0f;  // not so for NaN, which stays
  return reinterpret_cast<Floats>(reinterpret_cast<Integers>(result) & ~vanished);
}

}  // namespace
}  // namespace sdfast
