// Rows of bfloat16 numbers to float and back. Everything has internal linkage: see mae_distill_rows.inl.h.
#pragma once

#include <string.h>

#include "cpu/vectors.inl.h"

namespace sdfast {
namespace {

typedef uint32_t WideBits __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfBits __attribute__((vector_size(kVectorBytes / 2)));

Floats widened(HalfBits bits) {
#if defined(__AVX512F__)  // gcc makes two halves of what is one instruction
  return reinterpret_cast<Floats>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(bits)), 16));
#else
  return reinterpret_cast<Floats>(__builtin_convertvector(bits, WideBits) << 16);
#endif
}

// To the nearest, ties to even; NaN stays NaN.
HalfBits narrowed(Floats values) {
  const WideBits bits = reinterpret_cast<WideBits>(values), upper = bits >> 16;
  const WideBits rounded = (bits + (upper & 1u) + 0x7fffu) >> 16;
  const Integers nan = values != values;
  return __builtin_convertvector(nan ? upper | 0x40u : rounded, HalfBits);
}

[[maybe_unused]] void widen(const uint16_t* from, int64_t count, float factor, float* to) {
  HalfBits bits;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    memcpy(&bits, from + i, sizeof bits);
    store(to + i, widened(bits) * factor);
  }
  if (i < count) {
    const size_t rest = static_cast<size_t>(count - i);
    bits = HalfBits{};
    memcpy(&bits, from + i, rest * sizeof(uint16_t));
    const Floats values = widened(bits) * factor;
    memcpy(to + i, &values, rest * sizeof(float));
  }
}

void narrow(const float* from, int64_t count, uint16_t* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const HalfBits bits = narrowed(load(from + i));
    memcpy(to + i, &bits, sizeof bits);
  }
  if (i < count) {
    const size_t rest = static_cast<size_t>(count - i);
    Floats values = {};
    memcpy(&values, from + i, rest * sizeof(float));
    const HalfBits bits = narrowed(values);
    memcpy(to + i, &bits, rest * sizeof(uint16_t));
  }
}

// step(i, left) for every kLanes of `count` numbers: from the i-th on, `left` of them are there, fewer in the last.
template <typename Step>
[[gnu::always_inline]] inline void each_vector(int64_t count, const Step& step) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) step(i, kLanes);
  if (i < count) step(i, count - i);
}

// The first `count` of a vector, at most all of it; 0 for the others.
[[maybe_unused, gnu::always_inline]] inline Floats load_first(const float* p, int64_t count) {
  if (count >= kLanes) return load(p);
  Floats values = {};
  memcpy(&values, p, static_cast<size_t>(count) * sizeof(float));
  return values;
}

[[maybe_unused, gnu::always_inline]] inline Floats load_first(const uint16_t* p, int64_t count) {
  HalfBits bits = {};
  if (count >= kLanes) {
    memcpy(&bits, p, sizeof bits);
  } else {
    memcpy(&bits, p, static_cast<size_t>(count) * sizeof(uint16_t));
  }
  return widened(bits);
}

[[maybe_unused, gnu::always_inline]] inline void store_first(float* p, int64_t count, Floats values) {
  if (count >= kLanes) {
    store(p, values);
  } else {
    memcpy(p, &values, static_cast<size_t>(count) * sizeof(float));
  }
}

[[maybe_unused, gnu::always_inline]] inline void store_first(uint16_t* p, int64_t count, Floats values) {
  const HalfBits bits = narrowed(values);
  if (count >= kLanes) {
    memcpy(p, &bits, sizeof bits);
  } else {
    memcpy(p, &bits, static_cast<size_t>(count) * sizeof(uint16_t));
  }
}

}  // namespace
}  // namespace sdfast
