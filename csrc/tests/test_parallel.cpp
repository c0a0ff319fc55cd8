// torch's thread pool through the stable ABI: every index is visited once, by more than one thread where there are two.
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <vector>

#include "check.h"

int main() {
  const std::int64_t count = 100000;
  std::vector<int> visits(count, 0);
  std::atomic<int> chunks{0};
  torch::stable::parallel_for(0, count, 1000, [&](std::int64_t begin, std::int64_t end) {
    ++chunks;
    for (std::int64_t index = begin; index < end; ++index) ++visits[index];
  });
  bool once = true;
  for (int visit : visits) once = once && visit == 1;
  CHECK(once);
  CHECK(chunks == static_cast<int>(torch::stable::get_num_threads()));

  chunks = 0;
  torch::stable::parallel_for(0, 10, 1000, [&](std::int64_t, std::int64_t) { ++chunks; });
  CHECK(chunks == 1);  // less than one grain: no thread is woken

  chunks = 0;
  torch::stable::parallel_for(5, 5, 1, [&](std::int64_t, std::int64_t) { ++chunks; });
  CHECK(chunks == 0);

  CHECK_THROWS(torch::stable::parallel_for(
      0, count, 1000, [](std::int64_t, std::int64_t) { throw std::runtime_error("from a worker"); }));
  return failures();
}
