// sdfast::mae_distill on CPU tensors: unpack, share the rows out over the threads, add the partial sums in order.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/mae_distill.h"
#include "cpu/mae_distill_memory.h"

namespace sdfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// Values that a thread takes at a time. Fixed, so that no sum depends on the number of threads.
constexpr int64_t kChunkValues = 16384;

Kind kind_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Kind::f32;
    case ScalarType::Double:
      return Kind::f64;
    case ScalarType::BFloat16:
      return Kind::bf16;
    case ScalarType::Half:
      return Kind::f16;
    case ScalarType::Byte:
      return Kind::u8;
    case ScalarType::Char:
      return Kind::i8;
    default:
      STD_TORCH_CHECK(false, "mae_distill: ", name, " has a dtype that is not supported");
  }
  return Kind::f32;
}

Tensor contiguous_of_type(const Tensor& tensor, ScalarType type, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, "mae_distill: ", name, " has the wrong dtype");
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

Tensor with_adjacent_values(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.size(last) <= 1 || tensor.stride(last) == 1 ? tensor : torch::stable::contiguous(tensor);
}

const int64_t* indices(const Tensor& ids, int64_t limit, const char* name) {
  const int64_t* values = static_cast<const int64_t*>(ids.const_data_ptr());
  for (int64_t i = 0; i < ids.numel(); ++i) {
    STD_TORCH_CHECK(values[i] >= 0 && values[i] < limit, "mae_distill: ", name, " should lie in [0, ", limit, ")");
  }
  return values;
}

Tensor empty_gradient(const Tensor& like) { return torch::stable::new_empty(like, {0}, like.scalar_type()); }

// The pixel part unpacked. The tensors keep alive what `x` points to.
struct PixelPart {
  PixelRows x;
  Tensor pred, mask, ids, grad;
  std::vector<double> gain, offset;
  int64_t rows = 0, values = 0;
  double divisor = 1.0;  // values of all counted rows
};

void set_counted_rows(PixelPart& part, const MaybeTensor& mask, const MaybeTensor& ids, int64_t patches) {
  STD_TORCH_CHECK(mask.has_value() != ids.has_value(), "mae_distill: give mask or mask_ids");
  int64_t counted = part.rows;
  if (mask.has_value()) {
    part.mask = contiguous_of_type(*mask, ScalarType::Bool, "mask");
    STD_TORCH_CHECK(part.pred.size(1) == patches && part.mask.numel() == part.rows,
                    "mae_distill: mask does not fit pred and images");
    part.x.mask = static_cast<const uint8_t*>(part.mask.const_data_ptr());
    counted = 0;
    for (int64_t row = 0; row < part.rows; ++row) counted += part.x.mask[row] != 0;
  } else {
    part.ids = contiguous_of_type(*ids, ScalarType::Long, "mask_ids");
    STD_TORCH_CHECK(part.ids.numel() == part.rows, "mae_distill: mask_ids does not fit pred");
    part.x.ids = indices(part.ids, patches, "mask_ids");
  }
  if (counted > 0) part.divisor = static_cast<double>(part.values) * static_cast<double>(counted);
}

void set_pixel_scale(PixelPart& part, const std::vector<double>& mean, const std::vector<double>& std) {
  if (mean.empty()) return;
  STD_TORCH_CHECK(static_cast<int64_t>(mean.size()) == part.x.channels && mean.size() == std.size(),
                  "mae_distill: mean and std should have one number for each channel");
  for (size_t channel = 0; channel < mean.size(); ++channel) {
    part.gain.push_back(1.0 / (255.0 * std[channel]));
    part.offset.push_back(-mean[channel] / std[channel]);
  }
  part.x.gain = part.gain.data();
  part.x.offset = part.offset.data();
}

std::unique_ptr<PixelPart> pixel_part(const Tensor& pred, const MaybeTensor& images, const MaybeTensor& mask,
                                      const MaybeTensor& ids, const std::vector<double>& mean,
                                      const std::vector<double>& std, int64_t patch_size, bool norm_pix,
                                      double weight, bool want_grad) {
  auto part = std::make_unique<PixelPart>();
  STD_TORCH_CHECK(images.has_value() && images->dim() == 4 && pred.dim() == 3 && patch_size > 0,
                  "mae_distill: pred should be [B, L, P] and images [B, C, H, W]");
  part->pred = with_adjacent_values(pred);
  PixelRows& x = part->x;
  x.pred = part->pred.const_data_ptr();
  x.pred_kind = kind_of(pred, "pred");
  x.pred_stride[0] = part->pred.stride(0);
  x.pred_stride[1] = part->pred.stride(1);
  x.images = images->const_data_ptr();
  x.image_kind = kind_of(*images, "images");
  for (int64_t d = 0; d < 4; ++d) x.image_stride[d] = images->stride(d);
  x.channels = images->size(1);
  x.patch_size = patch_size;
  x.patch_columns = images->size(3) / patch_size;
  x.rows_per_sample = pred.size(1);
  x.norm_pix = norm_pix;
  part->values = patch_size * patch_size * x.channels;
  part->rows = pred.size(0) * pred.size(1);
  STD_TORCH_CHECK(pred.size(0) == images->size(0) && pred.size(2) == part->values,
                  "mae_distill: pred does not fit images and patch_size");
  set_counted_rows(*part, mask, ids, (images->size(2) / patch_size) * x.patch_columns);
  set_pixel_scale(*part, mean, std);
  x.grad_factor = 2.0 * weight / part->divisor;
  part->grad = want_grad ? torch::stable::new_empty(pred, pred.sizes(), pred.scalar_type()) : empty_gradient(pred);
  if (want_grad) {
    x.grad = part->grad.mutable_data_ptr();
    x.stream = prepare_output(x.grad, part->grad.numel() * kind_size(x.pred_kind));
  }
  return part;
}

// The representation part unpacked.
struct TokenPart {
  TokenRows x;
  Tensor student, teacher, bank_rows, scale, grad;
  int64_t rows = 0;
  double divisor = 1.0;
};

void set_teacher(TokenPart& part, const Tensor& teacher, const MaybeTensor& bank_rows, const MaybeTensor& scale,
                 int64_t batch) {
  TokenRows& x = part.x;
  const bool one_token = teacher.dim() == 2;
  part.teacher = with_adjacent_values(teacher);
  STD_TORCH_CHECK(teacher.size(teacher.dim() - 1) == x.features && (one_token || teacher.size(1) == x.tokens),
                  "mae_distill: teacher does not fit student");
  x.teacher = part.teacher.const_data_ptr();
  x.teacher_kind = kind_of(teacher, "teacher");
  x.teacher_stride[0] = part.teacher.stride(0);
  x.teacher_stride[1] = one_token ? 0 : part.teacher.stride(1);
  if (bank_rows.has_value()) {
    part.bank_rows = contiguous_of_type(*bank_rows, ScalarType::Long, "rows");
    STD_TORCH_CHECK(part.bank_rows.numel() == batch, "mae_distill: rows does not fit student");
    x.bank_rows = indices(part.bank_rows, teacher.size(0), "rows");
  } else {
    STD_TORCH_CHECK(teacher.size(0) == batch, "mae_distill: teacher does not fit student");
  }
  if (scale.has_value()) {
    STD_TORCH_CHECK(scale->dim() == teacher.dim() - 1 && scale->size(0) == teacher.size(0) &&
                        (one_token || scale->size(1) == x.tokens),
                    "mae_distill: teacher_scale does not fit teacher");
    part.scale = *scale;
    x.teacher_scale = scale->const_data_ptr();
    x.scale_kind = kind_of(*scale, "teacher_scale");
    x.scale_stride[0] = scale->stride(0);
    x.scale_stride[1] = one_token ? 0 : scale->stride(1);
  }
}

std::unique_ptr<TokenPart> token_part(const Tensor& student, const MaybeTensor& teacher, const MaybeTensor& bank_rows,
                                      const MaybeTensor& scale, double weight, bool mean, bool want_grad) {
  auto part = std::make_unique<TokenPart>();
  STD_TORCH_CHECK(teacher.has_value() && teacher->dim() == student.dim() && (student.dim() == 2 || student.dim() == 3),
                  "mae_distill: student and teacher should be [B, D] or [B, N, D]");
  const bool one_token = student.dim() == 2;
  const int64_t batch = student.size(0);
  part->student = with_adjacent_values(student);
  TokenRows& x = part->x;
  x.tokens = one_token ? 1 : student.size(1);
  x.features = student.size(student.dim() - 1);
  x.student = part->student.const_data_ptr();
  x.student_kind = kind_of(student, "student");
  x.student_stride[0] = part->student.stride(0);
  x.student_stride[1] = one_token ? 0 : part->student.stride(1);
  part->rows = batch * x.tokens;
  set_teacher(*part, *teacher, bank_rows, scale, batch);
  const int64_t divisor = mean ? student.numel() : batch;
  if (divisor > 0) part->divisor = static_cast<double>(divisor);
  x.grad_factor = 2.0 * weight / part->divisor;
  part->grad =
      want_grad ? torch::stable::new_empty(student, student.sizes(), student.scalar_type()) : empty_gradient(student);
  if (want_grad) {
    x.grad = part->grad.mutable_data_ptr();
    x.stream = prepare_output(x.grad, part->grad.numel() * kind_size(x.student_kind));
  }
  return part;
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

// Threads worth waking for so many values: one for each two chunks' worth.
int64_t worth_waking(int64_t values) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t worth = 1 + values / (2 * kChunkValues);
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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mae_distill_cpu(
    const MaybeTensor& pred, const MaybeTensor& images, const MaybeTensor& mask, const MaybeTensor& mask_ids,
    const MaybeTensor& student, const MaybeTensor& teacher, const MaybeTensor& rows, const MaybeTensor& teacher_scale,
    std::vector<double> mean, std::vector<double> std, int64_t patch_size, bool norm_pix, double mae_weight,
    double distill_weight, bool distill_mean, bool want_grad_pred, bool want_grad_student) {
  STD_TORCH_CHECK(pred.has_value() || student.has_value(), "mae_distill: neither pred nor student was given");
  const Tensor& like = pred.has_value() ? *pred : *student;
  bool wide = false;
  for (const MaybeTensor* tensor : {&pred, &images, &student, &teacher}) {
    wide = wide || (tensor->has_value() && (*tensor)->scalar_type() == ScalarType::Double);
  }
  std::unique_ptr<PixelPart> pixels;
  std::unique_ptr<TokenPart> tokens;
  if (pred.has_value()) {
    pixels =
        pixel_part(*pred, images, mask, mask_ids, mean, std, patch_size, norm_pix, mae_weight, want_grad_pred);
  }
  if (student.has_value()) {
    tokens = token_part(*student, teacher, rows, teacher_scale, distill_weight, distill_mean, want_grad_student);
  }
  Chunks pixel_chunks(pixels ? pixels->rows : 0, pixels ? pixels->values : 1);
  Chunks token_chunks(tokens ? tokens->rows : 0, tokens ? tokens->x.features : 1);
  run(pixels.get(), pixel_chunks, tokens.get(), token_chunks, wide);
  const double mae = pixels ? pixel_chunks.total() / pixels->divisor : 0.0;
  const double distill = tokens ? token_chunks.total() / tokens->divisor : 0.0;
  return {scalar(like, wide, mae_weight * mae + distill_weight * distill), scalar(like, wide, mae),
          scalar(like, wide, distill), pixels ? pixels->grad : empty_gradient(like),
          tokens ? tokens->grad : empty_gradient(like)};
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

STABLE_TORCH_LIBRARY_IMPL(sdfast, CPU, m) { m.impl("mae_distill", TORCH_BOX(&sdfast::mae_distill_cpu)); }
