// The whole test framework: CHECK counts failures and goes on, and main ends with `return failures();`.
#pragma once

#include <cstdio>

namespace check {

inline int failed = 0;

inline void report(bool holds, const char* what, const char* file, int line) {
  if (holds) return;
  ++failed;
  std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
}

}  // namespace check

#define CHECK(condition) check::report(static_cast<bool>(condition), #condition, __FILE__, __LINE__)

#define CHECK_THROWS(expression)                                                \
  do {                                                                          \
    bool thrown = false;                                                        \
    try {                                                                       \
      (void)(expression);                                                       \
    } catch (const std::exception&) {                                           \
      thrown = true;                                                            \
    }                                                                           \
    check::report(thrown, #expression " should throw", __FILE__, __LINE__);     \
  } while (false)

// The exit code of a test program.
inline int failures() { return check::failed == 0 ? 0 : 1; }
