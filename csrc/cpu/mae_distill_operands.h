// The operands of sdfast::mae_distill unpacked from tensors into what the kernels are given, on any device.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/mae_distill.h"

namespace sdfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // loss, mae, distill and the two gradients

// One call, as the schema in mae_distill_op.cpp has it.
struct Operands {
  const MaybeTensor &pred, &images, &mask, &mask_ids, &student, &teacher, &rows, &teacher_scale;
  const std::vector<double>&mean, &std;
  int64_t patch_size;
  bool norm_pix;
  double mae_weight, distill_weight;
  bool distill_mean, want_grad_pred, want_grad_student;

  // Any floating operand is of that type.
  bool in_double() const {
    for (const MaybeTensor* tensor : {&pred, &images, &student, &teacher}) {
      if (tensor->has_value() && (*tensor)->scalar_type() == ScalarType::Double) return true;
    }
    return false;
  }
};

// What torch calls: one after the other they are handed to `evaluate` together.
template <Outputs (*evaluate)(const Operands&)>
Outputs with_operands(const MaybeTensor& pred, const MaybeTensor& images, const MaybeTensor& mask,
                      const MaybeTensor& mask_ids, const MaybeTensor& student, const MaybeTensor& teacher,
                      const MaybeTensor& rows, const MaybeTensor& teacher_scale, std::vector<double> mean,
                      std::vector<double> std, int64_t patch_size, bool norm_pix, double mae_weight,
                      double distill_weight, bool distill_mean, bool want_grad_pred, bool want_grad_student) {
  STD_TORCH_CHECK(pred.has_value() || student.has_value(), "mae_distill: neither pred nor student was given");
  return evaluate({pred, images, mask, mask_ids, student, teacher, rows, teacher_scale, mean, std, patch_size, norm_pix,
                   mae_weight, distill_weight, distill_mean, want_grad_pred, want_grad_student});
}

inline Kind kind_of(const Tensor& tensor, const char* name) {
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

inline Tensor contiguous_of_type(const Tensor& tensor, ScalarType type, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, "mae_distill: ", name, " has the wrong dtype");
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline Tensor with_adjacent_values(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.size(last) <= 1 || tensor.stride(last) == 1 ? tensor : torch::stable::contiguous(tensor);
}

inline Tensor gradient_for(const Tensor& tensor, bool wanted) {
  return wanted ? torch::stable::new_empty(tensor, tensor.sizes(), tensor.scalar_type())
                : torch::stable::new_empty(tensor, {0}, tensor.scalar_type());
}

// The pixel part. The tensors keep alive what `x` points to; `divisor` and `x.grad_factor` are for the caller to set.
struct PixelPart {
  PixelRows x;
  Tensor pred, mask, ids, grad;
  std::vector<double> gain, offset;
  int64_t batch = 0, rows = 0, values = 0, patches = 0;
  bool masked = false;  // by `mask`, else by `ids`
  double divisor = 1.0;
};

inline void set_pixel_scale(PixelPart& part, const std::vector<double>& mean, const std::vector<double>& std) {
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

inline void set_counted_rows(PixelPart& part, const MaybeTensor& mask, const MaybeTensor& ids) {
  STD_TORCH_CHECK(mask.has_value() != ids.has_value(), "mae_distill: give mask or mask_ids");
  part.masked = mask.has_value();
  if (part.masked) {
    part.mask = contiguous_of_type(*mask, ScalarType::Bool, "mask");
    STD_TORCH_CHECK(part.pred.size(1) == part.patches && part.mask.numel() == part.rows,
                    "mae_distill: mask does not fit pred and images");
    part.x.mask = static_cast<const uint8_t*>(part.mask.const_data_ptr());
  } else {
    part.ids = contiguous_of_type(*ids, ScalarType::Long, "mask_ids");
    STD_TORCH_CHECK(part.ids.numel() == part.rows, "mae_distill: mask_ids does not fit pred");
    part.x.ids = static_cast<const int64_t*>(part.ids.const_data_ptr());
  }
}

// Fills `part`, whose vectors must not move afterwards.
inline void unpack(PixelPart& part, const Operands& o) {
  const Tensor& pred = *o.pred;
  const MaybeTensor& images = o.images;
  const int64_t patch_size = o.patch_size;
  STD_TORCH_CHECK(images.has_value() && images->dim() == 4 && pred.dim() == 3 && patch_size > 0,
                  "mae_distill: pred should be [B, L, P] and images [B, C, H, W]");
  part.pred = with_adjacent_values(pred);
  PixelRows& x = part.x;
  x.pred = part.pred.const_data_ptr();
  x.pred_kind = kind_of(pred, "pred");
  x.pred_stride[0] = part.pred.stride(0);
  x.pred_stride[1] = part.pred.stride(1);
  x.images = images->const_data_ptr();
  x.image_kind = kind_of(*images, "images");
  for (int64_t d = 0; d < 4; ++d) x.image_stride[d] = images->stride(d);
  x.channels = images->size(1);
  x.patch_size = patch_size;
  x.patch_columns = images->size(3) / patch_size;
  x.rows_per_sample = pred.size(1);
  x.norm_pix = o.norm_pix;
  part.batch = pred.size(0);
  part.rows = pred.size(0) * pred.size(1);
  part.values = patch_size * patch_size * x.channels;
  part.patches = (images->size(2) / patch_size) * x.patch_columns;
  STD_TORCH_CHECK(pred.size(0) == images->size(0) && pred.size(2) == part.values,
                  "mae_distill: pred does not fit images and patch_size");
  set_counted_rows(part, o.mask, o.mask_ids);
  set_pixel_scale(part, o.mean, o.std);
  part.grad = gradient_for(pred, o.want_grad_pred);
  if (o.want_grad_pred) x.grad = part.grad.mutable_data_ptr();
}

// The representation part.
struct TokenPart {
  TokenRows x;
  Tensor student, teacher, bank_rows, scale, grad;
  int64_t batch = 0, rows = 0, bank_size = 0;
  double divisor = 1.0;
};

inline void set_teacher(TokenPart& part, const Tensor& teacher, const MaybeTensor& bank_rows, const MaybeTensor& scale) {
  TokenRows& x = part.x;
  const bool one_token = teacher.dim() == 2;
  part.teacher = with_adjacent_values(teacher);
  part.bank_size = teacher.size(0);
  STD_TORCH_CHECK(teacher.size(teacher.dim() - 1) == x.features && (one_token || teacher.size(1) == x.tokens),
                  "mae_distill: teacher does not fit student");
  x.teacher = part.teacher.const_data_ptr();
  x.teacher_kind = kind_of(teacher, "teacher");
  x.teacher_stride[0] = part.teacher.stride(0);
  x.teacher_stride[1] = one_token ? 0 : part.teacher.stride(1);
  if (bank_rows.has_value()) {
    part.bank_rows = contiguous_of_type(*bank_rows, ScalarType::Long, "rows");
    STD_TORCH_CHECK(part.bank_rows.numel() == part.batch, "mae_distill: rows does not fit student");
    x.bank_rows = static_cast<const int64_t*>(part.bank_rows.const_data_ptr());
  } else {
    STD_TORCH_CHECK(part.bank_size == part.batch, "mae_distill: teacher does not fit student");
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

inline void unpack(TokenPart& part, const Operands& o) {
  const Tensor& student = *o.student;
  const MaybeTensor& teacher = o.teacher;
  STD_TORCH_CHECK(teacher.has_value() && teacher->dim() == student.dim() && (student.dim() == 2 || student.dim() == 3),
                  "mae_distill: student and teacher should be [B, D] or [B, N, D]");
  const bool one_token = student.dim() == 2;
  part.student = with_adjacent_values(student);
  TokenRows& x = part.x;
  x.tokens = one_token ? 1 : student.size(1);
  x.features = student.size(student.dim() - 1);
  x.student = part.student.const_data_ptr();
  x.student_kind = kind_of(student, "student");
  x.student_stride[0] = part.student.stride(0);
  x.student_stride[1] = one_token ? 0 : part.student.stride(1);
  part.batch = student.size(0);
  part.rows = part.batch * x.tokens;
  set_teacher(part, *teacher, o.rows, o.teacher_scale);
  const int64_t divisor = o.distill_mean ? student.numel() : part.batch;
  if (divisor > 0) part.divisor = static_cast<double>(divisor);
  x.grad_factor = 2.0 * o.distill_weight / part.divisor;
  part.grad = gradient_for(student, o.want_grad_student);
  if (o.want_grad_student) x.grad = part.grad.mutable_data_ptr();
}

}  // namespace sdfast
