// The kernels for any processor, the short form of the arithmetic, and the choice.
#include "cpu/bf16x6.h"

#include <cstring>

#include "cpu/simd.h"

namespace sdfast {
namespace {

constexpr int64_t kN = kBf16x6Block;

// The nearest bfloat16, ties to even, as the upper bits of a float; subnormal numbers become zero.
float rounded(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t exponent = bits & 0x7f800000u;
  if (exponent == 0) {
    bits &= 0x80000000u;
  } else if (exponent != 0x7f800000u) {
    bits += 0x7fffu + ((bits >> 16) & 1u);
  } else if (bits & 0x007fffffu) {
    bits |= 0x00400000u;
  }
  bits &= 0xffff0000u;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

uint16_t upper(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

float widened(uint16_t upper_bits) {
  const uint32_t bits = static_cast<uint32_t>(upper_bits) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// A block of a panel is [part, k, outer], whichever side it is for.
void split(const Bf16x6Factor& from, bool, void* panel) {
  uint16_t* block = static_cast<uint16_t*>(panel);
  for (int64_t k0 = 0; k0 < from.depth; k0 += kN, block += 3 * kN * kN) {
    for (int64_t k = 0; k < kN; ++k) {
      for (int64_t i = 0; i < kN; ++i) {
        const bool inside = i < from.outer && k0 + k < from.depth;
        float rest = inside ? from.data[i * from.outer_stride + (k0 + k) * from.k_stride] : 0.0f;
        for (int64_t part = 0; part < 3; ++part) {
          const float here = rounded(rest);
          block[(part * kN + k) * kN + i] = upper(here);
          rest -= here;
        }
      }
    }
  }
}

void multiply(const void* left, const void* right, int64_t blocks, const Bf16x6Target& to, int64_t rows,
              int64_t columns, const Bf16x6Ahead&, Bf16x6State&) {
  constexpr int64_t kPairs[6][2] = {{0, 2}, {0, 1}, {1, 1}, {1, 0}, {2, 0}, {0, 0}};
  const uint16_t *a = static_cast<const uint16_t*>(left), *b = static_cast<const uint16_t*>(right);
  float sums[kN][kN] = {};
  for (int64_t block = 0; block < blocks; ++block, a += 3 * kN * kN, b += 3 * kN * kN) {
    for (const auto& pair : kPairs) {
      float here[kN][kN] = {};
      for (int64_t k = 0; k < kN; ++k) {
        const uint16_t *as = a + (pair[0] * kN + k) * kN, *bs = b + (pair[1] * kN + k) * kN;
        for (int64_t i = 0; i < kN; ++i) {
          const float x = widened(as[i]);
          for (int64_t j = 0; j < kN; ++j) here[i][j] += x * widened(bs[j]);
        }
      }
      for (int64_t i = 0; i < kN; ++i) {
        for (int64_t j = 0; j < kN; ++j) sums[i][j] += here[i][j];
      }
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      float* out = to.out + i * to.row_stride + j;
      float sum = sums[i][j];
      if (to.add) sum += *out;
      if (to.bias) sum += to.bias[j];
      if (to.residual) sum += to.residual[i * to.residual_stride + j];
      *out = sum;
    }
  }
}

void begin(Bf16x6State&) {}
void end(Bf16x6State&) {}

}  // namespace

Bf16x6Kernels bf16x6_plain() { return {split, begin, end, multiply}; }

Bf16x6Kernels bf16x6_kernels() {
#ifdef SDFAST_X86_SIMD
  if (simd_level() == Simd::amx) return bf16x6_amx();
#endif
  return bf16x6_plain();
}

}  // namespace sdfast
