// sdfast::mae_distill on CPU tensors: unpack, share the rows out over the threads, add the partial sums in order.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <optional>
#include <vector>

#include "cpu/mae_distill.h"
#include "cpu/mae_distill_memory.h"
#include "cpu/mae_distill_operands.h"

namespace sdfast {
namespace {

// Values that a thread takes at a time. Fixed, so that no sum depends on the number of threads.
constexpr int64_t kChunkValues = 32768;

void check_indices(const Tensor& ids, int64_t limit, const char* name) {
  const int64_t* values = static_cast<const int64_t*>(ids.const_data_ptr());
  for (int64_t i = 0; i < ids.numel(); ++i) {
    STD_TORCH_CHECK(values[i] >= 0 && values[i] < limit, "mae_distill: ", name, " should lie in [0, ", limit, ")");
  }
}

void count_rows(PixelPart& part, double weight) {
  int64_t counted = part.rows;
  if (part.masked) {
    counted = 0;
    for (int64_t row = 0; row < part.rows; ++row) counted += part.x.mask[row] != 0;
  } else {
    check_indices(part.ids, part.patches, "mask_ids");
  }
  if (counted > 0) part.divisor = static_cast<double>(part.values) * static_cast<double>(counted);
  part.x.grad_factor = 2.0 * weight / part.divisor;
}

// The rows of both parts in chunks of a fixed number of values. Threads take chunks as they come; a chunk's sum has
// its own slot, and the slots are added in order: the same bits every time, whatever the number of threads.
class Chunks {
 public:
  Chunks(int64_t rows, int64_t values) : rows_(rows), step_(values < 1 ? kChunkValues : kChunkValues / values) {
    if (step_ < 1) step_ = 1;
    sums_.assign(static_cast<size_t>((rows + step_ - 1) / step_), 0.0);
  }
  int64_t count() const { return static_cast<int64_t>(sums_.size()); }
  int64_t begin(int64_t chunk) const { return chunk * step_; }
  int64_t end(int64_t chunk) const { return (chunk + 1) * step_ < rows_ ? (chunk + 1) * step_ : rows_; }
  double& sum(int64_t chunk) { return sums_[static_cast<size_t>(chunk)]; }
  double total() const {
    double total = 0.0;
    for (double sum : sums_) total += sum;
    return total;
  }

 private:
  int64_t rows_, step_;
  std::vector<double> sums_;
};

// Threads worth waking for so many values: one for each chunk's worth.
int64_t worth_waking(int64_t values) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t worth = 1 + values / kChunkValues;
  return worth < threads ? worth : threads;
}

void run(const PixelPart* pixels, Chunks& pixel_chunks, const TokenPart* tokens, Chunks& token_chunks, bool wide) {
  const MaeDistillKernels kernels = mae_distill_kernels();
  const int64_t values = (pixels != nullptr ? pixels->rows * pixels->values : 0) +
                         (tokens != nullptr ? tokens->rows * tokens->x.features : 0);
  const int64_t count = pixel_chunks.count() + token_chunks.count();
  const size_t bytes = static_cast<size_t>(mae_distill_scratch_bytes(pixels != nullptr ? pixels->values : 0));
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    const std::unique_ptr<void, decltype(&std::free)> scratch(std::malloc(bytes), &std::free);
    STD_TORCH_CHECK(scratch != nullptr, "mae_distill: out of memory");
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
      if (i < pixel_chunks.count()) {
        pixel_chunks.sum(i) =
            kernels.pixel_rows(pixels->x, pixel_chunks.begin(i), pixel_chunks.end(i), wide, scratch.get());
      } else {
        const int64_t chunk = i - pixel_chunks.count();
        token_chunks.sum(chunk) =
            kernels.token_rows(tokens->x, token_chunks.begin(chunk), token_chunks.end(chunk), wide, scratch.get());
      }
    }
  };
  const int64_t workers = worth_waking(values);
  if (workers > 1) {
    torch::stable::parallel_for(0, workers, 1, work);
  } else {
    work(0, 1);
  }
}

Tensor scalar(const Tensor& like, bool wide, double value) {
  Tensor out = torch::stable::new_empty(like, {}, wide ? ScalarType::Double : ScalarType::Float);
  if (wide) {
    *static_cast<double*>(out.mutable_data_ptr()) = value;
  } else {
    *static_cast<float*>(out.mutable_data_ptr()) = static_cast<float>(value);
  }
  return out;
}

Outputs mae_distill_cpu(const Operands& o) {
  const Tensor& like = o.pred.has_value() ? *o.pred : *o.student;
  const bool wide = o.in_double();
  std::optional<PixelPart> pixels;
  std::optional<TokenPart> tokens;
  if (o.pred.has_value()) {
    PixelPart& part = pixels.emplace();
    unpack(part, o);
    count_rows(part, o.mae_weight);
    part.x.stream = prepare_output(part.x.grad, part.rows * part.values * kind_size(part.x.pred_kind));
  }
  if (o.student.has_value()) {
    TokenPart& part = tokens.emplace();
    unpack(part, o);
    if (part.x.bank_rows != nullptr) check_indices(part.bank_rows, part.bank_size, "rows");
    part.x.stream = prepare_output(part.x.grad, part.rows * part.x.features * kind_size(part.x.student_kind));
  }
  Chunks pixel_chunks(pixels ? pixels->rows : 0, pixels ? pixels->values : 1);
  Chunks token_chunks(tokens ? tokens->rows : 0, tokens ? tokens->x.features : 1);
  run(pixels ? &*pixels : nullptr, pixel_chunks, tokens ? &*tokens : nullptr, token_chunks, wide);
  const double mae = pixels ? pixel_chunks.total() / pixels->divisor : 0.0;
  const double distill = tokens ? token_chunks.total() / tokens->divisor : 0.0;
  return {scalar(like, wide, o.mae_weight * mae + o.distill_weight * distill), scalar(like, wide, mae),
          scalar(like, wide, distill), pixels ? pixels->grad : gradient_for(like, false),
          tokens ? tokens->grad : gradient_for(like, false)};
}

}  // namespace
}  // namespace sdfast

STABLE_TORCH_LIBRARY_FRAGMENT(sdfast, m) {
  m.def(
      "mae_distill(Tensor? pred, Tensor? images, Tensor? mask, Tensor? mask_ids, Tensor? student, Tensor? teacher, "
      "Tensor? rows, Tensor? teacher_scale, float[] mean, float[] std, int patch_size, bool norm_pix, "
      "float mae_weight, float distill_weight, bool distill_mean, bool want_grad_pred, bool want_grad_student) -> "
      "(Tensor loss, Tensor mae, Tensor distill, Tensor grad_pred, Tensor grad_student)");
}

STABLE_TORCH_LIBRARY_IMPL(sdfast, CPU, m) { m.impl("mae_distill", TORCH_BOX(&sdfast::with_operands<sdfast::mae_distill_cpu>)); }
