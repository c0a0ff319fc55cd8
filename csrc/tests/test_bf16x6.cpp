// The bf16x6 kernels of every level of this processor: a block of a product against double precision, in all layouts of
// the factors, and the tile registers of another library, which come back as they were.
#include "cpu/bf16x6.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/simd.h"

using namespace sdfast;

namespace {

struct Free {
  void operator()(char* memory) const { std::free(memory); }
};
using Panel = std::unique_ptr<char, Free>;

Panel split(const Bf16x6Kernels& kernels, const Bf16x6Factor& factor, bool right) {
  const int64_t blocks = (factor.depth + kBf16x6Block - 1) / kBf16x6Block;
  Panel panel(static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(blocks * kBf16x6BlockBytes))));
  std::memset(panel.get(), 0xff, static_cast<size_t>(blocks * kBf16x6BlockBytes));  // what is not written is no number
  kernels.split(factor, right, panel.get());
  return panel;
}

void test_block(const Bf16x6Kernels& kernels, int64_t rows, int64_t depth, int64_t columns, bool left_along,
                bool right_along) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> a(static_cast<size_t>(rows * depth)), b(static_cast<size_t>(depth * columns));
  for (float& x : a) x = normal(random);
  for (float& x : b) x = normal(random);
  const Bf16x6Factor left{a.data(), rows, depth, left_along ? depth : 1, left_along ? 1 : rows};
  const Bf16x6Factor right{b.data(), columns, depth, right_along ? depth : 1, right_along ? 1 : columns};
  const Panel left_panel = split(kernels, left, false), right_panel = split(kernels, right, true);
  const int64_t stride = columns + 3;
  std::vector<float> out(static_cast<size_t>(rows * stride), 0.5f), bias(static_cast<size_t>(columns), 2.0f);
  Bf16x6Target to;
  to.out = out.data();
  to.row_stride = stride;
  to.add = true;
  to.bias = bias.data();
  Bf16x6State state;
  kernels.begin(state);
  const int64_t blocks = (depth + kBf16x6Block - 1) / kBf16x6Block;
  kernels.multiply(left_panel.get(), right_panel.get(), blocks, to, rows, columns, {}, state);
  kernels.end(state);
  double worst = 0.0;
  bool untouched = true;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      double sum = 2.5, size = 2.5;
      for (int64_t k = 0; k < depth; ++k) {
        const double x = left.data[i * left.outer_stride + k * left.k_stride];
        const double y = right.data[j * right.outer_stride + k * right.k_stride];
        sum += x * y;
        size += std::fabs(x * y);
      }
      worst = std::fmax(worst, std::fabs(out[static_cast<size_t>(i * stride + j)] - sum) / size);
    }
    for (int64_t j = columns; j < stride; ++j) untouched &= out[static_cast<size_t>(i * stride + j)] == 0.5f;
  }
  CHECK(worst < 4 * 1.2e-7);
  CHECK(untouched);
}

}  // namespace

int main() {
  std::vector<Bf16x6Kernels> levels{bf16x6_plain()};
#ifdef SDFAST_X86_SIMD
  if (simd_supported() == Simd::amx) levels.push_back(bf16x6_amx());
#endif
  for (const Bf16x6Kernels& kernels : levels) {
    for (int64_t rows : {1, 16, 17, 32}) {
      for (int64_t columns : {1, 15, 32}) {
        for (int64_t depth : {1, 31, 32, 50, 96}) {
          for (int layouts = 0; layouts < 4; ++layouts) {
            test_block(kernels, rows, depth, columns, layouts & 1, layouts & 2);
          }
        }
      }
    }
  }
#ifdef SDFAST_X86_SIMD
  if (simd_supported() == Simd::amx) {
    // Within the work of another library, which here is one's own.
    const Bf16x6Kernels kernels = bf16x6_amx();
    Bf16x6State outer, inner, after, last;
    kernels.begin(outer);
    kernels.begin(inner);
    kernels.end(inner);
    kernels.begin(after);
    CHECK(inner.registers[0] == 1);
    CHECK(std::memcmp(inner.registers, after.registers, sizeof after.registers) == 0);
    kernels.end(after);
    kernels.end(outer);
    kernels.begin(last);
    CHECK(outer.registers[0] == 0 && last.registers[0] == 0);  // nothing is left behind
    kernels.end(last);
  }
#endif
  return failures();
}
