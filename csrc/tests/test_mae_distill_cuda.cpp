// The CUDA kernels' code, run on the CPU thread by thread: no GPU is needed to know that it computes the loss.
#include "test_mae_distill_cuda_on_cpu.h"
// (the built-ins above come before the device code)
#include "check.h"
#include "cuda/mae_distill_kernels.cuh"
#include "test_mae_distill_problem.h"

using problem::Problem;
using sdfast::Kind;

namespace {

struct Answer {
  double loss = 0, mae = 0, distill = 0;
};

template <typename T>
Answer run_in(Problem& p, const std::vector<unsigned>& blocks) {
  std::vector<int> counters{-1, -1};
  std::vector<T> partial(2 * blocks.size(), T(1e9)), results(3, T(-1));
  sdfast::CudaMaeDistill call;
  call.pixels = p.pixels;
  call.pixel_rows = p.pixel_rows;
  call.patch_values = p.values;
  call.patches = p.patches;
  call.tokens = p.tokens;
  call.token_rows = p.token_rows;
  call.bank_size = p.s.bank > 0 ? p.s.bank : p.s.batch;
  call.token_divisor = p.s.batch > 0 ? static_cast<double>(p.s.batch) : 1.0;
  call.mae_weight = p.mae_weight;
  call.distill_weight = p.distill_weight;
  call.wide = p.s.wide;
  call.counters = counters.data();
  call.partial = partial.data();
  call.loss = &results[0];
  call.mae = &results[1];
  call.distill = &results[2];
  const sdfast::PixelScale scale = sdfast::pixel_scale(call.pixels);
  on_cpu::launch({0}, sdfast::kThreads, [&] { sdfast::count_rows(call.pixels.mask, call.pixel_rows, call.counters); });
  CHECK(counters[0] == p.counted);
  on_cpu::launch(blocks, sdfast::kThreads, [&] { sdfast::both_parts<T>(call, scale); });
  return {static_cast<double>(results[0]), static_cast<double>(results[1]), static_cast<double>(results[2])};
}

Answer run(Problem& p, const std::vector<unsigned>& blocks) {
  return p.s.wide ? run_in<double>(p, blocks) : run_in<float>(p, blocks);
}

void compare(const problem::Settings& settings) {
  Problem p;
  problem::make(p, settings);
  const Answer answer = run(p, {0, 1, 2});
  const double mae = p.counted > 0 ? p.pixel_sum / static_cast<double>(p.values * p.counted) : 0.0;
  const double distill = settings.batch > 0 ? p.token_sum / static_cast<double>(settings.batch) : 0.0;
  CHECK(problem::near(answer.mae, mae, settings.wide));
  CHECK(problem::near(answer.distill, distill, settings.wide));
  CHECK(problem::near(answer.loss, p.mae_weight * mae + p.distill_weight * distill, settings.wide));
  if (settings.gradients) {
    CHECK(problem::near(p.grad_pred, settings.pred, p.exact_grad_pred, settings.wide));
    CHECK(problem::near(p.grad_student, settings.student, p.exact_grad_student, settings.wide));
  }
  const Answer reordered = run(p, {2, 0, 1});  // another block finishes last: the same bits
  CHECK(reordered.loss == answer.loss && reordered.mae == answer.mae && reordered.distill == answer.distill);
}

void check_index_out_of_range() {
  problem::Settings settings;
  settings.ids = true;
  settings.bank = 4;
  for (int64_t wrong : {int64_t{-1}, int64_t{1} << 40}) {
    Problem p;
    problem::make(p, settings);
    p.ids[1] = wrong;
    Answer answer = run(p, {0, 1});
    CHECK(std::isnan(answer.mae) && std::isnan(answer.loss) && std::isfinite(answer.distill));
    CHECK(std::isnan(problem::get(Kind::f32, p.grad_pred.data() + 4 * p.values)));
    CHECK(std::isfinite(problem::get(Kind::f32, p.grad_pred.data())));
    p.ids[1] = 0;
    p.bank_rows[2] = wrong;
    answer = run(p, {0, 1});
    CHECK(std::isfinite(answer.mae) && std::isnan(answer.loss) && std::isnan(answer.distill));
  }
}

}  // namespace

int main() {
  for (const problem::Settings& settings : problem::all_settings()) compare(settings);
  check_index_out_of_range();
  return failures();
}
