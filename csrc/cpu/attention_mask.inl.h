// Which weights of an attention are dropped: a pure function of a seed, a head, a query and a key, so that the backward
// pass makes it again. sdfast/ops/attention/mask.py specifies it, bit for bit.
#pragma once

#include "cpu/attention.h"
#include "cpu/vectors.inl.h"

namespace sdfast {
namespace {

typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));

// Two rounds of multiply and shift ("lowbias32", Wellons, 2018): a permutation of the 32-bit numbers.
uint32_t mixed(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

uint32_t mixed(uint32_t a, uint32_t b, uint32_t head, uint32_t query) {
  return mixed(query + mixed(head + mixed(b + mixed(a))));
}

// A query's row: two numbers of its own, one where the keys are counted from, one between the rounds.
struct Mask {
  Words counter, between, threshold;

  Mask(const Dropout& dropout, int64_t head, int64_t query) {
    const uint32_t low = static_cast<uint32_t>(dropout.seed), high = static_cast<uint32_t>(dropout.seed >> 32);
    const uint32_t h = static_cast<uint32_t>(head), q = static_cast<uint32_t>(query);
    for (int64_t lane = 0; lane < kLanes; ++lane) counter[lane] = static_cast<uint32_t>(lane) * kStep;
    counter += mixed(low, high, h, q);
    between = Words{} + mixed(~high, low, h, q);
    threshold = Words{} + dropout.threshold;
  }

  // Of the next keys: 1 where the weight is kept, else 0.
  Floats next() {
    Words x = counter;
    counter += static_cast<uint32_t>(kLanes) * kStep;
    x = (x ^ (x >> 16)) * 0x7feb352du ^ between;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    x ^= x >> 16;
    const Integers kept = x >= threshold;
    return reinterpret_cast<Floats>(kept & 0x3f800000);
  }

  static constexpr uint32_t kStep = 0x9e3779b9u;
};

}  // namespace
}  // namespace sdfast
