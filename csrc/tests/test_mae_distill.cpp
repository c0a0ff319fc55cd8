// The CPU kernels of every instruction set against the plain formula, in one range of rows and in several.
#include <algorithm>
#include <cstdlib>
#include <exception>
#include <vector>

#include "check.h"
#include "cpu/simd.h"
#include "test_mae_distill_problem.h"

using problem::Problem;
using sdfast::Kind;
using sdfast::Simd;

namespace {

struct Sums {
  double pixels = 0, tokens = 0;
};

// Rows in ranges of `step`.
Sums run(Problem& p, int64_t step) {
  const sdfast::MaeDistillKernels kernels = sdfast::mae_distill_kernels();
  std::vector<unsigned char> scratch(static_cast<size_t>(sdfast::mae_distill_scratch_bytes(p.values)));
  Sums sums;
  for (int64_t begin = 0; begin < p.pixel_rows; begin += step) {
    const int64_t end = std::min(begin + step, p.pixel_rows);
    sums.pixels += kernels.pixel_rows(p.pixels, begin, end, p.s.wide, scratch.data());
  }
  for (int64_t begin = 0; begin < p.token_rows; begin += step) {
    const int64_t end = std::min(begin + step, p.token_rows);
    sums.tokens += kernels.token_rows(p.tokens, begin, end, p.s.wide, scratch.data());
  }
  return sums;
}

void compare(const problem::Settings& settings, int64_t step, bool stream) {
  Problem p;
  problem::make(p, settings);
  p.pixels.stream = p.tokens.stream = stream;
  const Sums sums = run(p, step);
  CHECK(problem::near(sums.pixels, p.pixel_sum, settings.wide));
  CHECK(problem::near(sums.tokens, p.token_sum, settings.wide));
  if (!settings.gradients) return;
  CHECK(problem::near(p.grad_pred, settings.pred, p.exact_grad_pred, settings.wide));
  CHECK(problem::near(p.grad_student, settings.student, p.exact_grad_student, settings.wide));
}

// Every finite 16-bit number survives a trip through the kernels: the gradient of (value - 0) with factor 1.
void check_conversion(Kind kind) {
  std::vector<uint16_t> numbers, back(65536);
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const bool finite = kind == Kind::bf16 ? (bits & 0x7f80u) != 0x7f80u : (bits & 0x7c00u) != 0x7c00u;
    numbers.push_back(static_cast<uint16_t>(finite ? bits : 0));
  }
  const std::vector<float> zeros(65536, 0.0f);
  sdfast::TokenRows x;
  x.student = numbers.data();
  x.student_kind = kind;
  x.teacher = zeros.data();
  x.grad = back.data();
  x.tokens = 1;
  x.features = 65536;
  x.grad_factor = 1.0;
  std::vector<unsigned char> scratch(static_cast<size_t>(sdfast::mae_distill_scratch_bytes(1)));
  sdfast::mae_distill_kernels().token_rows(x, 0, 1, false, scratch.data());
  CHECK(std::equal(numbers.begin(), numbers.end(), back.begin()));
}

// Conversion to 16 bits rounds to nearest, ties to even, overflows to infinity and keeps NaN.
void check_rounding(Kind kind, const std::vector<float>& values, const std::vector<uint16_t>& expected) {
  std::vector<float> students = values, teachers(values.size(), 0.0f);
  std::vector<uint16_t> halves(values.size()), back(values.size());
  sdfast::TokenRows x;  // student = 0 in 16 bits, teacher = -value: the gradient is the value
  for (float& value : students) value = -value;
  x.student = halves.data();
  x.student_kind = kind;
  x.teacher = students.data();
  x.grad = back.data();
  x.tokens = 1;
  x.features = static_cast<int64_t>(values.size());
  x.grad_factor = 1.0;
  std::vector<unsigned char> scratch(static_cast<size_t>(sdfast::mae_distill_scratch_bytes(1)));
  sdfast::mae_distill_kernels().token_rows(x, 0, 1, false, scratch.data());
  for (size_t i = 0; i < expected.size(); ++i) {
    const bool nan = std::isnan(values[i]);
    const uint16_t exponent = kind == Kind::bf16 ? 0x7f80 : 0x7c00;
    CHECK(nan ? (back[i] & 0x7fff) > exponent : back[i] == expected[i]);
  }
}

}  // namespace

int main() {
  for (Simd level : {Simd::plain, Simd::avx2, Simd::avx512}) {
    if (level > sdfast::simd_supported()) continue;
    setenv("SDFAST_SIMD", sdfast::simd_name(level), 1);
    for (const problem::Settings& settings : problem::all_settings()) {
      compare(settings, 1000, false);
      compare(settings, 2, true);
    }
    check_conversion(Kind::bf16);
    check_conversion(Kind::f16);
    const float tiny = std::ldexp(1.0f, -25);  // half of the smallest subnormal float16
    // 20 values, so that both the vector loop and its remainder meet them.
    for (size_t shift = 0; shift < 20; ++shift) {
      std::vector<float> halves{1.0f + 1.0f / 2048, 1.0f + 3.0f / 2048, 65519.0f, 65520.0f, -1e6f, tiny, 1.5f * tiny, NAN};
      std::vector<uint16_t> rounded{0x3c00, 0x3c02, 0x7bff, 0x7c00, 0xfc00, 0x0000, 0x0001, 0};
      std::vector<float> wides{1.0f + 1.0f / 256, 1.0f + 3.0f / 256, 3.4e38f, -1.0f, NAN};
      std::vector<uint16_t> cut{0x3f80, 0x3f82, 0x7f80, 0xbf80, 0};
      halves.insert(halves.begin(), shift, 1.0f);
      rounded.insert(rounded.begin(), shift, 0x3c00);
      wides.insert(wides.begin(), shift, 1.0f);
      cut.insert(cut.begin(), shift, 0x3f80);
      check_rounding(Kind::f16, halves, rounded);
      check_rounding(Kind::bf16, wides, cut);
    }
  }
  return failures();
}
