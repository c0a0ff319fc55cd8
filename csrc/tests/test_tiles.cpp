// The tiles that tests take for AMX's: layout, order of the sums and subnormals, as Intel documents TDPBF16PS.
#define SDFAST_TILES_EMULATED
#include "cpu/tiles.h"

#include "check.h"

namespace {

using namespace sdfast;

struct Problem {
  uint16_t left[16][32] = {}, right[16][32] = {};  // right: [depth / 2][column, and which of two]
  float sums[16][16] = {};

  static uint16_t bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return static_cast<uint16_t>(bits >> 16);
  }
  void set_left(int row, int depth, float value) { left[row][depth] = bf16(value); }
  void set_right(int depth, int column, float value) { right[depth / 2][2 * column + depth % 2] = bf16(value); }
  void multiply() {
    SDFAST_TILE_LOAD(0, sums, 64);
    SDFAST_TILE_LOAD(4, left, 64);
    SDFAST_TILE_LOAD(6, right, 64);
    SDFAST_TILE_PRODUCT(0, 4, 6);
    SDFAST_TILE_STORE(0, sums, 64);
  }
};

// Small integers, whose products are exact whatever the order.
void check_layout() {
  Problem p;
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 32; ++k) {
      p.set_left(i, k, static_cast<float>((i * 5 + k * 3) % 11 - 5));
      p.set_right(k, i, static_cast<float>((i * 7 + k * 2) % 13 - 6));
    }
    for (int j = 0; j < 16; ++j) p.sums[i][j] = static_cast<float>(i - j);
  }
  p.multiply();
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) {
      int wanted = i - j;
      for (int k = 0; k < 32; ++k) wanted += ((i * 5 + k * 3) % 11 - 5) * ((j * 7 + k * 2) % 13 - 6);
      CHECK(p.sums[i][j] == static_cast<float>(wanted));
    }
  }
}

// Even and odd depths are summed apart, and what was there is added last: one after the other the ones would be lost.
void check_order() {
  Problem p;
  const float large = 16777216.0f, values[4] = {large, 1.0f, -large, 1.0f};
  for (int k = 0; k < 4; ++k) {
    p.set_left(0, k, values[k]);
    p.set_right(k, 0, 1.0f);
  }
  p.sums[0][0] = large;
  p.multiply();
  CHECK(p.sums[0][0] == large + 2.0f);
}

// Subnormal factors, sums and results are zeros; a NaN and an infinity stay.
void check_subnormals() {
  Problem p;
  p.set_left(0, 0, 1e-39f);
  p.set_right(0, 0, 1e30f);
  p.set_left(1, 1, 1e-20f);
  p.set_right(1, 1, 1e-20f);
  p.sums[2][2] = 1e-39f;
  p.set_left(3, 2, __builtin_nanf(""));
  p.set_right(2, 3, 1.0f);
  p.set_left(4, 3, __builtin_inff());
  p.set_right(3, 4, 1.0f);
  p.multiply();
  CHECK(p.sums[0][0] == 0.0f);
  CHECK(p.sums[1][1] == 0.0f);
  CHECK(p.sums[2][2] == 0.0f);
  CHECK(p.sums[3][3] != p.sums[3][3]);
  CHECK(p.sums[4][4] == __builtin_inff());
}

}  // namespace

int main() {
  check_layout();
  check_order();
  check_subnormals();
  return failures();
}
