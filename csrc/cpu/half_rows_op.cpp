// sdfast::added_norm, its backward pass, sdfast::gelu_half_backward and sdfast::sum_rows on CPU tensors: unpack, and share
// the rows out over the threads.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cpu/half_rows.h"
#include "cpu/row_chunks.h"

namespace sdfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor rows_of(const Tensor& x, const char* name, ScalarType type, const Tensor& like) {
  STD_TORCH_CHECK(x.scalar_type() == type, "", name, " should be ",
                  type == ScalarType::Float ? "float32" : "bfloat16");
  STD_TORCH_CHECK(x.dim() == 2 && x.size(0) == like.size(0) && x.size(1) == like.size(1), "", name,
                  " should be [rows, width]");
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

std::optional<Tensor> rows_of(const std::optional<Tensor>& x, const char* name, ScalarType type, const Tensor& like) {
  return x.has_value() ? std::optional<Tensor>(rows_of(*x, name, type, like)) : std::nullopt;
}

Tensor vector_of(const Tensor& x, const char* name, int64_t width) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.dim() == 1 && x.size(0) == width, "", name,
                  " should be [width] of float32");
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

template <typename T>
const T* begin_of(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <typename T>
const T* begin_of(const std::optional<Tensor>& x) {
  return x.has_value() ? begin_of<T>(*x) : nullptr;
}

// A result that is not asked for has no element.
Tensor made(const Tensor& like, bool wanted, ScalarType type) {
  return torch::stable::new_empty(like, {wanted ? like.size(0) : 0, like.size(1)}, type);
}

template <typename T>
T* begin_of(Tensor& x, bool wanted) {
  return wanted ? static_cast<T*>(x.mutable_data_ptr()) : nullptr;
}

template <typename T>
T* moved(T* pointer, int64_t by) {
  return pointer == nullptr ? nullptr : pointer + by;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> added_norm_cpu(const Tensor& x, const std::optional<Tensor>& change,
                                                          const Tensor& weight, const Tensor& bias, double eps,
                                                          bool wide) {
  STD_TORCH_CHECK(x.dim() == 2, "x should be [rows, width]");
  const Tensor in = rows_of(x, "x", ScalarType::Float, x);
  const std::optional<Tensor> added = rows_of(change, "change", ScalarType::BFloat16, x);
  const int64_t rows = in.size(0), width = in.size(1);
  const Tensor w = vector_of(weight, "weight", width), b = vector_of(bias, "bias", width);
  Tensor sum = made(in, added.has_value(), ScalarType::Float);
  Tensor half = made(in, true, ScalarType::BFloat16);
  Tensor full = made(in, wide, ScalarType::Float);
  Tensor stats = torch::stable::new_empty(in, {rows, 2}, ScalarType::Float);
  NormRows all{rows, width, begin_of<float>(in), begin_of<uint16_t>(added), begin_of<float>(w), begin_of<float>(b)};
  all.eps = static_cast<float>(eps);
  all.sum = begin_of<float>(sum, added.has_value());
  all.wide = begin_of<float>(full, wide);
  all.half = begin_of<uint16_t>(half, true);
  all.stats = begin_of<float>(stats, true);
  const HalfRowsKernels kernels = half_rows_kernels();
  torch::stable::parallel_for(0, rows, kChunkRows, [&](int64_t begin, int64_t end) {
    NormRows some = all;
    const int64_t at = begin * width;
    some.rows = end - begin;
    some.x += at;
    some.change = moved(some.change, at);
    some.sum = moved(some.sum, at);
    some.wide = moved(some.wide, at);
    some.half += at;
    some.stats += 2 * begin;
    kernels.norm(some);
  });
  return {sum, half, full, stats};
}

std::tuple<Tensor, Tensor, Tensor> added_norm_backward_cpu(const std::optional<Tensor>& of_sum,
                                                           const std::optional<Tensor>& of_half,
                                                           const std::optional<Tensor>& of_wide, const Tensor& sum,
                                                           const Tensor& stats, const Tensor& weight, bool half) {
  STD_TORCH_CHECK(sum.dim() == 2, "sum should be [rows, width]");
  const Tensor in = rows_of(sum, "sum", ScalarType::Float, sum);
  const std::optional<Tensor> beside = rows_of(of_sum, "of_sum", ScalarType::Float, sum);
  const std::optional<Tensor> narrow = rows_of(of_half, "of_half", ScalarType::BFloat16, sum);
  const std::optional<Tensor> full = rows_of(of_wide, "of_wide", ScalarType::Float, sum);
  const int64_t rows = in.size(0), width = in.size(1);
  const Tensor w = vector_of(weight, "weight", width);
  STD_TORCH_CHECK(stats.scalar_type() == ScalarType::Float && stats.is_contiguous() && stats.numel() == 2 * rows,
                  "stats should be [rows, 2] of float32");
  Tensor out = made(in, true, ScalarType::Float), out_half = made(in, half, ScalarType::BFloat16);
  Tensor sums = torch::stable::new_empty(in, {2, width}, ScalarType::Float);
  NormGradRows all{rows,
                   width,
                   begin_of<float>(in),
                   begin_of<float>(stats),
                   begin_of<float>(w),
                   begin_of<float>(beside),
                   begin_of<float>(full),
                   begin_of<uint16_t>(narrow),
                   begin_of<float>(out, true),
                   begin_of<uint16_t>(out_half, half)};
  const HalfRowsKernels kernels = half_rows_kernels();
  sum_over_rows(rows, 2 * width, begin_of<float>(sums, true), [&](int64_t begin, int64_t end, float* partial) {
    std::vector<float> scratch(static_cast<size_t>(2 * width));
    NormGradRows some = all;
    const int64_t at = begin * width;
    some.rows = end - begin;
    some.sum += at;
    some.stats += 2 * begin;
    some.of_sum = moved(some.of_sum, at);
    some.of_wide = moved(some.of_wide, at);
    some.of_half = moved(some.of_half, at);
    some.wide += at;
    some.half = moved(some.half, at);
    kernels.norm_backward(some, partial, scratch.data());
  });
  return {out, out_half, sums};
}

std::tuple<Tensor, Tensor> gelu_half_backward_cpu(const Tensor& grad, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 2, "x should be [rows, columns]");
  const Tensor in = rows_of(x, "x", ScalarType::BFloat16, x), above = rows_of(grad, "grad", ScalarType::BFloat16, x);
  const int64_t rows = in.size(0), columns = in.size(1);
  Tensor out = made(in, true, ScalarType::BFloat16);
  Tensor sums = torch::stable::new_empty(in, {columns}, ScalarType::Float);
  const uint16_t *from = begin_of<uint16_t>(in), *gradients = begin_of<uint16_t>(above);
  uint16_t* to = begin_of<uint16_t>(out, true);
  const HalfRowsKernels kernels = half_rows_kernels();
  sum_over_rows(rows, columns, begin_of<float>(sums, true), [&](int64_t begin, int64_t end, float* partial) {
    const int64_t at = begin * columns;
    kernels.gelu_backward(gradients + at, from + at, to + at, partial, end - begin, columns);
  });
  return {out, sums};
}

Tensor sum_rows_cpu(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 2, "x should be [rows, columns]");
  const Tensor in = rows_of(x, "x", ScalarType::BFloat16, x);
  const int64_t rows = in.size(0), columns = in.size(1);
  Tensor sums = torch::stable::new_empty(in, {columns}, ScalarType::Float);
  const uint16_t* from = begin_of<uint16_t>(in);
  const HalfRowsKernels kernels = half_rows_kernels();
  sum_over_rows(rows, columns, begin_of<float>(sums, true), [&](int64_t begin, int64_t end, float* partial) {
    kernels.sum_rows(from + begin * columns, partial, end - begin, columns);
  });
  return sums;
}

}  // namespace
}  // namespace sdfast

STABLE_TORCH_LIBRARY_FRAGMENT(sdfast, m) {
  m.def(
      "added_norm(Tensor x, Tensor? change, Tensor weight, Tensor bias, float eps, bool wide) -> "
      "(Tensor sum, Tensor half, Tensor wide, Tensor stats)");
  m.def(
      "added_norm_backward(Tensor? of_sum, Tensor? of_half, Tensor? of_wide, Tensor sum, Tensor stats, Tensor weight, "
      "bool half) -> (Tensor, Tensor, Tensor)");
  m.def("gelu_half_backward(Tensor grad, Tensor x) -> (Tensor, Tensor)");
  m.def("sum_rows(Tensor x) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sdfast, CPU, m) {
  m.impl("added_norm", TORCH_BOX(&sdfast::added_norm_cpu));
  m.impl("added_norm_backward", TORCH_BOX(&sdfast::added_norm_backward_cpu));
  m.impl("gelu_half_backward", TORCH_BOX(&sdfast::gelu_half_backward_cpu));
  m.impl("sum_rows", TORCH_BOX(&sdfast::sum_rows_cpu));
}
