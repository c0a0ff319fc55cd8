// How large outputs meet the memory system.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sdfast {

constexpr int64_t kStreamBytes = int64_t{4} << 20;  // outputs above this are written past the caches
constexpr int64_t kHugePageBytes = int64_t{2} << 20;

// Asks for huge pages under a large fresh output (500 times fewer page faults; a hint, free to fail) and says
// whether it should be written past the caches.
inline bool prepare_output(void* data, int64_t bytes) {
  if (data == nullptr) return false;
#if defined(__linux__)
  const uintptr_t mask = static_cast<uintptr_t>(kHugePageBytes - 1);
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + mask) & ~mask;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) & ~mask;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return bytes >= kStreamBytes;
}

}  // namespace sdfast
