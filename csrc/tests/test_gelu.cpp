// GELU and its slope at every instruction set of this processor, against the formula in double.
#include <cmath>
#include <cstdlib>
#include <vector>

#include "check.h"
#include "cpu/gelu.h"
#include "cpu/simd.h"

int main() {
  for (sdfast::Simd level : {sdfast::Simd::plain, sdfast::Simd::avx2, sdfast::Simd::avx512}) {
    if (level > sdfast::simd_supported()) continue;
    setenv("SDFAST_SIMD", sdfast::simd_name(level), 1);
    const sdfast::GeluKernel kernel = sdfast::gelu_kernel();
    for (int count : {0, 1, 7, 16, 33, 1000}) {
      std::vector<float> x(count), y(count, -1.0f), slope(count, -1.0f);
      for (int i = 0; i < count; ++i) x[i] = 12.0f * static_cast<float>(i - count / 2) / static_cast<float>(count);
      kernel(x.data(), y.data(), slope.data(), count);
      double worst = 0.0;
      for (int i = 0; i < count; ++i) {
        const double v = x[i], p = 0.5 * std::erfc(-v / std::sqrt(2.0));
        const double density = std::exp(-0.5 * v * v) / std::sqrt(2.0 * std::acos(-1.0));
        worst = std::fmax(worst, std::fabs(y[i] - v * p) / std::fmax(1.0, std::fabs(v)));
        worst = std::fmax(worst, std::fabs(slope[i] - (p + v * density)));
      }
      CHECK(worst < 3e-7);
    }
  }
  return failures();
}
