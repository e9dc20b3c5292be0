#include "core/dtype.h"

#include <doctest/doctest.h>

#include "core/error.h"

namespace fathom {
namespace {

TEST_CASE("row sizes count whole blocks and refuse parts of one") {
  CHECK(row_bytes(DType::kF32, 7) == 28);
  CHECK(row_bytes(DType::kQ8_0, 64) == 68);
  CHECK(row_bytes(DType::kQ4_K, 512) == 288);
  CHECK(row_bytes(DType::kIQ1_M, 0) == 0);
  CHECK_THROWS_AS(row_bytes(DType::kQ4_K, 128), BugError);
  CHECK_THROWS_AS(row_bytes(DType::kF32, -1), BugError);
}

TEST_CASE("GGUF type numbers map to types; unknown, removed and internal ones to nothing") {
  CHECK(dtype_from_gguf(0) == DType::kF32);
  CHECK(dtype_from_gguf(12) == DType::kQ4_K);
  CHECK(dtype_from_gguf(39) == DType::kMXFP4);
  CHECK(!dtype_from_gguf(4).has_value());
  CHECK(!dtype_from_gguf(137).has_value());
  CHECK(!dtype_from_gguf(static_cast<uint32_t>(DType::kF8_E4M3)).has_value());
}

TEST_CASE("names find their type in any case, and back") {
  CHECK(dtype_from_name("q4_k") == DType::kQ4_K);
  CHECK(dtype_from_name("IQ2_XXS") == DType::kIQ2_XXS);
  CHECK(dtype_from_name("Bf16") == DType::kBF16);
  CHECK(!dtype_from_name("q4").has_value());
  CHECK(!dtype_from_name("").has_value());
  for (const DType t : {DType::kF16, DType::kQ6_K, DType::kIQ3_S, DType::kF8_E4M3})
    CHECK(dtype_from_name(dtype_name(t)) == t);
}

}  // namespace
}  // namespace fathom
