#include "core/sparse_memory.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>

#include "core/error.h"

using namespace fathom;

TEST_CASE("a discarded unit reads as zeros, its neighbours as before") {
  for (const size_t unit_bytes : {size_t{1}, size_t{4096}, size_t{5000}, size_t{9} << 20}) {
    CAPTURE(unit_bytes);
    SparseMemory memory(3, unit_bytes, "test");
    CHECK(reinterpret_cast<uintptr_t>(memory.data()) % 4096 == 0);
    CHECK(memory.stride_bytes() >= unit_bytes);
    for (size_t i = 0; i < 3; ++i) std::fill_n(memory.unit(i), unit_bytes, static_cast<std::byte>(i + 1));
    memory.discard(1);
    for (size_t i = 0; i < 3; ++i) {
      const auto want = static_cast<std::byte>(i == 1 ? 0 : i + 1);
      CHECK(std::all_of(memory.unit(i), memory.unit(i) + unit_bytes, [&](std::byte b) { return b == want; }));
    }
    memory.unit(1)[0] = std::byte{7};
    CHECK(memory.unit(1)[0] == std::byte{7});
  }
}

TEST_CASE("a range that no machine has is refused with its size") {
  try {
    const SparseMemory memory(size_t{1} << 40, size_t{1} << 30, "the impossible");
    FAIL("no refusal");
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kNoMemory);
    CHECK(std::string(e.what()).find("the impossible") != std::string::npos);
  }
}
