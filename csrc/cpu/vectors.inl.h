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

}  // namespace
}  // namespace sdfast
