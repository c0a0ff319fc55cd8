// How the device code of mae_distill reads and writes a value, or the eight that a lane takes at once, of any kind.
//
// A kind is known at run time only, but each type has code of its own: one union for all of them, its member chosen at
// run time, would lie in local memory.
#pragma once

#include <type_traits>

#include "cpu/mae_distill.h"

#if defined(__CUDACC__)
#define SDFAST_UNROLL _Pragma("unroll")
#else
#define SDFAST_UNROLL
#endif

namespace sdfast {
namespace {

constexpr int kGroup = 8;  // values a lane takes at once

template <typename T>
__device__ T widened(__nv_bfloat16 stored) {
  return static_cast<T>(__bfloat162float(stored));
}
template <typename T>
__device__ T widened(__half stored) {
  return static_cast<T>(__half2float(stored));
}
template <typename T, typename Stored>
__device__ T widened(Stored stored) {
  return static_cast<T>(stored);
}

template <typename T>
__device__ void narrow(T value, __nv_bfloat16& stored) {
  stored = __float2bfloat16(static_cast<float>(value));
}
template <typename T>
__device__ void narrow(T value, __half& stored) {
  stored = __float2half(static_cast<float>(value));
}
template <typename T, typename Stored>
__device__ void narrow(T value, Stored& stored) {
  stored = static_cast<Stored>(value);
}

// Eight adjacent values in loads of 16 bytes (8 for bytes) when `aligned` and all are there; absent ones become 0.
template <typename Stored, typename T>
__device__ void read_as(const void* source, int64_t at, int64_t present, bool aligned, T (&out)[kGroup]) {
  const Stored* from = static_cast<const Stored*>(source) + at;
  if (!aligned || present < kGroup) {
SDFAST_UNROLL
    for (int i = 0; i < kGroup; ++i) out[i] = i < present ? widened<T>(from[i]) : T(0);
    return;
  }
  using Word = std::conditional_t<sizeof(Stored) == 1, uint2, uint4>;
  constexpr int kWords = kGroup * sizeof(Stored) / sizeof(Word);
  union {
    Word words[kWords];
    Stored values[kGroup];
  } raw;
SDFAST_UNROLL
  for (int word = 0; word < kWords; ++word) raw.words[word] = __ldg(reinterpret_cast<const Word*>(from) + word);
SDFAST_UNROLL
  for (int i = 0; i < kGroup; ++i) out[i] = widened<T>(raw.values[i]);
}

// Eight adjacent values, or the first `present` of them, in stores of 16 bytes when `aligned` and all are there.
template <typename Stored, typename T>
__device__ void write_as(void* target, int64_t at, int64_t present, bool aligned, const T (&values)[kGroup]) {
  Stored* to = static_cast<Stored*>(target) + at;
  if (!aligned || present < kGroup) {
SDFAST_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      if (i < present) narrow(values[i], to[i]);
    }
    return;
  }
  constexpr int kWords = kGroup * sizeof(Stored) / sizeof(uint4);
  union {
    uint4 words[kWords];
    Stored values[kGroup];
  } raw;
SDFAST_UNROLL
  for (int i = 0; i < kGroup; ++i) narrow(values[i], raw.values[i]);
SDFAST_UNROLL
  for (int word = 0; word < kWords; ++word) reinterpret_cast<uint4*>(to)[word] = raw.words[word];
}

template <typename T>
__device__ void read_group(const void* source, Kind kind, int64_t at, int64_t present, bool aligned, T (&out)[kGroup]) {
  switch (kind) {
    case Kind::f32:
      return read_as<float>(source, at, present, aligned, out);
    case Kind::f64:
      return read_as<double>(source, at, present, aligned, out);
    case Kind::bf16:
      return read_as<__nv_bfloat16>(source, at, present, aligned, out);
    case Kind::f16:
      return read_as<__half>(source, at, present, aligned, out);
    case Kind::u8:
      return read_as<uint8_t>(source, at, present, aligned, out);
    default:
      return read_as<int8_t>(source, at, present, aligned, out);
  }
}

template <typename T>
__device__ void write_group(void* target, Kind kind, int64_t at, int64_t present, bool aligned,
                            const T (&values)[kGroup]) {
  switch (kind) {
    case Kind::f32:
      return write_as<float>(target, at, present, aligned, values);
    case Kind::f64:
      return write_as<double>(target, at, present, aligned, values);
    case Kind::bf16:
      return write_as<__nv_bfloat16>(target, at, present, aligned, values);
    default:
      return write_as<__half>(target, at, present, aligned, values);
  }
}

template <typename T>
__device__ T read_value(const void* source, Kind kind, int64_t at) {
  switch (kind) {
    case Kind::f32:
      return widened<T>(static_cast<const float*>(source)[at]);
    case Kind::f64:
      return widened<T>(static_cast<const double*>(source)[at]);
    case Kind::bf16:
      return widened<T>(static_cast<const __nv_bfloat16*>(source)[at]);
    case Kind::f16:
      return widened<T>(static_cast<const __half*>(source)[at]);
    case Kind::u8:
      return widened<T>(static_cast<const uint8_t*>(source)[at]);
    default:
      return widened<T>(static_cast<const int8_t*>(source)[at]);
  }
}

template <typename T>
__device__ void write_value(void* target, Kind kind, int64_t at, T value) {
  switch (kind) {
    case Kind::f32:
      return narrow(value, static_cast<float*>(target)[at]);
    case Kind::f64:
      return narrow(value, static_cast<double*>(target)[at]);
    case Kind::bf16:
      return narrow(value, static_cast<__nv_bfloat16*>(target)[at]);
    default:
      return narrow(value, static_cast<__half*>(target)[at]);
  }
}

}  // namespace
}  // namespace sdfast
