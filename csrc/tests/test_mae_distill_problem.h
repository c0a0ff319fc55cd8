// A small problem for the kernels of the masked-pixel and representation loss, and its answer by the plain formula.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/mae_distill.h"

namespace problem {

using sdfast::Kind;

struct Settings {
  Kind pred = Kind::f32, image = Kind::f32, student = Kind::f32, teacher = Kind::f32;
  int64_t batch = 3, channels = 3, patch_size = 16, patch_rows = 2, patch_columns = 3;
  int64_t tokens = 2, features = 37, bank = 0;  // bank rows; 0: one teacher row a sample
  bool ids = false, channels_last = false, norm_pix = true, wide = false, gradients = true;
  int64_t padding = 0;  // unused values after each row of pred, student and teacher
};

// Values that every kind represents exactly (multiples of 1/8 below 16, bytes as they are), and their storage.
struct Store {
  Kind kind = Kind::f32;
  std::vector<double> values;
  std::vector<unsigned char> bytes;
  const void* data() const { return bytes.data(); }
};

inline void put(Kind kind, double value, unsigned char* to) {
  const float narrow = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &narrow, 4);
  if (kind == Kind::f32) std::memcpy(to, &narrow, 4);
  if (kind == Kind::f64) std::memcpy(to, &value, 8);
  if (kind == Kind::u8 || kind == Kind::i8) *to = static_cast<unsigned char>(static_cast<int>(value));
  if (kind == Kind::bf16) {
    const uint16_t half = static_cast<uint16_t>(bits >> 16);
    std::memcpy(to, &half, 2);
  }
  if (kind == Kind::f16) {  // normal numbers and zero only
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t half = ((bits >> 16) & 0x8000u) | (magnitude == 0 ? 0 : (magnitude - 0x38000000u) >> 13);
    const uint16_t narrowed = static_cast<uint16_t>(half);
    std::memcpy(to, &narrowed, 2);
  }
}

inline double get(Kind kind, const unsigned char* from) {
  if (kind == Kind::f64) {
    double value;
    std::memcpy(&value, from, 8);
    return value;
  }
  uint32_t bits = 0;
  uint16_t half = 0;
  if (kind == Kind::f32) {
    std::memcpy(&bits, from, 4);
  } else {
    std::memcpy(&half, from, 2);
    bits = static_cast<uint32_t>(half) << 16;
  }
  if (kind == Kind::f16) {
    const double sign = half & 0x8000u ? -1.0 : 1.0, fraction = (half & 0x3ffu) / 1024.0;
    const int exponent = (half >> 10) & 31;
    return exponent == 0 ? sign * std::ldexp(fraction, -14) : sign * std::ldexp(1.0 + fraction, exponent - 15);
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline Store random_store(Kind kind, int64_t n, std::mt19937& rng) {
  Store store;
  store.kind = kind;
  store.values.resize(static_cast<size_t>(n));
  store.bytes.resize(static_cast<size_t>(n * sdfast::kind_size(kind)));
  for (int64_t i = 0; i < n; ++i) {
    double value = static_cast<double>(static_cast<int>(rng() % 255) - 127) / 8.0;
    if (kind == Kind::u8) value = static_cast<double>(rng() % 256);
    if (kind == Kind::i8) value = static_cast<double>(static_cast<int>(rng() % 255) - 127);
    store.values[static_cast<size_t>(i)] = value;
    put(kind, value, store.bytes.data() + i * sdfast::kind_size(kind));
  }
  return store;
}

struct Problem {
  Settings s;
  Store pred, images, student, teacher;
  std::vector<uint8_t> mask;
  std::vector<int64_t> ids, bank_rows;
  std::vector<float> scale;
  std::vector<double> gain{0.017, 0.018, 0.02, 0.01, 0.03}, offset{-2.1, -2.0, -1.8, 0.0, 1.0};
  std::vector<unsigned char> grad_pred, grad_student;
  sdfast::PixelRows pixels;
  sdfast::TokenRows tokens;
  int64_t pixel_rows = 0, token_rows = 0, values = 0, patches = 0, counted = 0;
  double mae_weight = 0.75, distill_weight = 1.5;
  double pixel_sum = 0, token_sum = 0;                 // the plain formula's
  std::vector<double> exact_grad_pred, exact_grad_student;  // likewise
};

inline void answer_pixels(Problem& p) {
  const Settings& s = p.s;
  p.exact_grad_pred.assign(static_cast<size_t>(p.pixel_rows * p.values), 0.0);
  const double factor = 2.0 * p.mae_weight / (static_cast<double>(p.values) * static_cast<double>(p.counted ? p.counted : 1));
  for (int64_t row = 0; row < p.pixel_rows; ++row) {
    if (!p.mask.empty() && p.mask[static_cast<size_t>(row)] == 0) continue;
    const int64_t sample = row / p.pixels.rows_per_sample, position = row % p.pixels.rows_per_sample;
    const int64_t patch = s.ids ? p.ids[static_cast<size_t>(row)] : position;
    std::vector<double> target;
    for (int64_t y = 0; y < s.patch_size; ++y) {
      for (int64_t x = 0; x < s.patch_size; ++x) {
        for (int64_t c = 0; c < s.channels; ++c) {
          const int64_t at = sample * p.pixels.image_stride[0] + c * p.pixels.image_stride[1] +
                             (patch / s.patch_columns * s.patch_size + y) * p.pixels.image_stride[2] +
                             (patch % s.patch_columns * s.patch_size + x) * p.pixels.image_stride[3];
          double value = p.images.values[static_cast<size_t>(at)];
          if (s.image == Kind::u8) value = value * p.gain[static_cast<size_t>(c)] + p.offset[static_cast<size_t>(c)];
          target.push_back(value);
        }
      }
    }
    if (s.norm_pix) {
      double mean = 0, squares = 0;
      for (double value : target) mean += value;
      mean /= static_cast<double>(p.values);
      for (double value : target) squares += (value - mean) * (value - mean);
      const double deviation = std::sqrt(squares / static_cast<double>(p.values - 1) + 1e-6);
      for (double& value : target) value = (value - mean) / deviation;
    }
    for (int64_t i = 0; i < p.values; ++i) {
      const int64_t at = sample * p.pixels.pred_stride[0] + position * p.pixels.pred_stride[1] + i;
      const double d = p.pred.values[static_cast<size_t>(at)] - target[static_cast<size_t>(i)];
      p.pixel_sum += d * d;
      p.exact_grad_pred[static_cast<size_t>(row * p.values + i)] = factor * d;
    }
  }
}

inline void answer_tokens(Problem& p) {
  const Settings& s = p.s;
  for (int64_t row = 0; row < p.token_rows; ++row) {
    const int64_t sample = row / s.tokens, token = row % s.tokens;
    const int64_t bank_row = s.bank > 0 ? p.bank_rows[static_cast<size_t>(sample)] : sample;
    const double scale = s.teacher == Kind::i8 ? static_cast<double>(p.scale[static_cast<size_t>(bank_row * s.tokens + token)]) : 1.0;
    for (int64_t i = 0; i < s.features; ++i) {
      const int64_t own = sample * p.tokens.student_stride[0] + token * p.tokens.student_stride[1] + i;
      const int64_t theirs = bank_row * p.tokens.teacher_stride[0] + token * p.tokens.teacher_stride[1] + i;
      const double d = p.student.values[static_cast<size_t>(own)] - p.teacher.values[static_cast<size_t>(theirs)] * scale;
      p.token_sum += d * d;
      p.exact_grad_student.push_back(2.0 * p.distill_weight / static_cast<double>(s.batch) * d);
    }
  }
}

inline void make_pixels(Problem& p, std::mt19937& rng) {
  const Settings& s = p.s;
  const int64_t height = s.patch_rows * s.patch_size, width = s.patch_columns * s.patch_size;
  p.values = s.patch_size * s.patch_size * s.channels;
  p.patches = s.patch_rows * s.patch_columns;
  const int64_t rows = s.ids ? p.patches / 2 : p.patches;
  p.pixel_rows = s.batch * rows;
  p.pred = random_store(s.pred, p.pixel_rows * (p.values + s.padding), rng);
  p.images = random_store(s.image, s.batch * s.channels * height * width, rng);
  sdfast::PixelRows& x = p.pixels;
  for (int64_t row = 0; row < p.pixel_rows; ++row) {
    if (s.ids) p.ids.push_back(static_cast<int64_t>(rng() % static_cast<uint64_t>(p.patches)));
    if (!s.ids) p.mask.push_back(rng() % 4 != 0);
    p.counted += s.ids || p.mask.back();
  }
  x.pred = p.pred.data();
  x.pred_kind = s.pred;
  x.pred_stride[0] = rows * (p.values + s.padding);
  x.pred_stride[1] = p.values + s.padding;
  x.images = p.images.data();
  x.image_kind = s.image;
  const int64_t planes[4] = {s.channels * height * width, height * width, width, 1};
  const int64_t last[4] = {s.channels * height * width, 1, s.channels * width, s.channels};
  for (int d = 0; d < 4; ++d) x.image_stride[d] = s.channels_last ? last[d] : planes[d];
  x.mask = s.ids ? nullptr : p.mask.data();
  x.ids = s.ids ? p.ids.data() : nullptr;
  x.rows_per_sample = rows;
  x.channels = s.channels;
  x.patch_size = s.patch_size;
  x.patch_columns = s.patch_columns;
  x.gain = s.image == Kind::u8 ? p.gain.data() : nullptr;
  x.offset = s.image == Kind::u8 ? p.offset.data() : nullptr;
  x.norm_pix = s.norm_pix;
  x.grad_factor = 2.0 * p.mae_weight / (static_cast<double>(p.values) * static_cast<double>(p.counted ? p.counted : 1));
  p.grad_pred.assign(static_cast<size_t>(p.pixel_rows * p.values * sdfast::kind_size(s.pred)), 0xee);
  x.grad = s.gradients ? p.grad_pred.data() : nullptr;
}

inline void make_tokens(Problem& p, std::mt19937& rng) {
  const Settings& s = p.s;
  const int64_t row = s.features + s.padding, teacher_rows = s.bank > 0 ? s.bank : s.batch;
  p.token_rows = s.batch * s.tokens;
  p.student = random_store(s.student, p.token_rows * row, rng);
  p.teacher = random_store(s.teacher, teacher_rows * s.tokens * row, rng);
  for (int64_t i = 0; i < teacher_rows * s.tokens; ++i) p.scale.push_back(static_cast<float>(rng() % 100 + 1) / 1000.0f);
  for (int64_t i = 0; i < s.batch; ++i) p.bank_rows.push_back(static_cast<int64_t>(rng() % static_cast<uint64_t>(teacher_rows)));
  sdfast::TokenRows& x = p.tokens;
  x.student = p.student.data();
  x.student_kind = s.student;
  x.teacher = p.teacher.data();
  x.teacher_kind = s.teacher;
  x.student_stride[0] = x.teacher_stride[0] = s.tokens * row;
  x.student_stride[1] = x.teacher_stride[1] = row;
  x.bank_rows = s.bank > 0 ? p.bank_rows.data() : nullptr;
  x.teacher_scale = s.teacher == Kind::i8 ? p.scale.data() : nullptr;
  x.scale_stride[0] = s.tokens;
  x.scale_stride[1] = 1;
  x.tokens = s.tokens;
  x.features = s.features;
  x.grad_factor = 2.0 * p.distill_weight / static_cast<double>(s.batch);
  p.grad_student.assign(static_cast<size_t>(p.token_rows * s.features * sdfast::kind_size(s.student)), 0xee);
  x.grad = s.gradients ? p.grad_student.data() : nullptr;
}

// The problem lives where `p` does: its kernels' operands point into it.
inline void make(Problem& p, const Settings& settings) {
  std::mt19937 rng(7);
  p.s = settings;
  make_pixels(p, rng);
  make_tokens(p, rng);
  answer_pixels(p);
  answer_tokens(p);
}

inline double tolerance(Kind kind, bool wide) {
  if (kind == Kind::bf16) return 1.0 / 256;
  if (kind == Kind::f16) return 1.0 / 2048;
  return kind == Kind::f64 || wide ? (kind == Kind::f32 ? 1e-7 : 1e-13) : 2e-6;
}

// Whether every value of a stored gradient is near the exact one, relative to the largest.
inline bool near(const std::vector<unsigned char>& stored, Kind kind, const std::vector<double>& exact, bool wide) {
  double largest = 0;
  for (double value : exact) largest = std::max(largest, std::fabs(value));
  for (size_t i = 0; i < exact.size(); ++i) {
    const double value = get(kind, stored.data() + i * static_cast<size_t>(sdfast::kind_size(kind)));
    if (!(std::fabs(value - exact[i]) <= tolerance(kind, wide) * largest)) return false;
  }
  return true;
}

inline bool near(double value, double exact, bool wide) { return std::fabs(value - exact) <= (wide ? 1e-12 : 2e-6) * exact; }

inline std::vector<Settings> all_settings() {
  std::vector<Settings> all(1);
  const auto add = [&all](auto change) {
    Settings s;
    change(s);
    all.push_back(s);
  };
  for (Kind kind : {Kind::bf16, Kind::f16, Kind::f64}) {
    add([kind](Settings& s) {
      s.pred = s.image = s.student = s.teacher = kind;
      s.wide = kind == Kind::f64;
    });
    add([kind](Settings& s) { s.image = kind, s.patch_size = 4, s.wide = kind == Kind::f64; });
  }
  add([](Settings& s) { s.image = Kind::u8, s.teacher = Kind::i8, s.bank = 9; });
  add([](Settings& s) { s.image = Kind::u8, s.channels_last = true, s.ids = true; });
  add([](Settings& s) { s.image = Kind::u8, s.pred = Kind::bf16, s.patch_size = 14; });
  add([](Settings& s) { s.channels_last = true, s.norm_pix = false; });
  add([](Settings& s) { s.patch_size = 2, s.channels = 5, s.tokens = 1, s.features = 401; });
  add([](Settings& s) { s.patch_size = 14, s.channels = 1, s.ids = true, s.bank = 4, s.features = 9001; });
  add([](Settings& s) { s.patch_size = 20, s.padding = 3, s.features = 64; });
  add([](Settings& s) { s.patch_size = 17, s.padding = 1, s.wide = true, s.pred = Kind::f64; });
  add([](Settings& s) { s.features = 1, s.tokens = 1, s.gradients = false; });
  add([](Settings& s) { s.batch = 0; });
  return all;
}

}  // namespace problem
