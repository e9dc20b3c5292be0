// V4's recent rows on a device that has no room for more of them.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "core/error.h"
#include "emulator/runtime.h"
#include "engine/engine.h"

using namespace fathom;

TEST_CASE("a sequence whose recent rows find no room fails with the bytes, and nothing else has changed") {
  EngineOptions o;
  o.model_path = FATHOM_FIXTURES "/models/v4/v4-mxfp4.gguf";
  o.backend = "cuda";
  o.n_threads = 1;
  o.context = 512;
  o.chunk_tokens = 48;
  const auto engine = Engine::load(o);
  const std::vector<int32_t> ids(40, 7);
  Sequence first(engine->pool()), second(engine->pool());
  REQUIRE(engine->prefill(first, ids, Outputs::kLast));
  const std::vector<float> want(engine->logits(0).begin(), engine->logits(0).end());
  const int32_t used = engine->pool().used_pages();
  emulator::set_memory_bytes(0);
  try {
    static_cast<void>(engine->prefill(second, ids, Outputs::kLast));
    FAIL("no refusal");
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kNoMemory);
  }
  emulator::set_memory_bytes(size_t{1} << 30);
  CHECK(second.length() == 0);
  CHECK(engine->pool().used_pages() == used);
  REQUIRE(engine->prefill(second, ids, Outputs::kLast));
  CHECK(std::vector<float>(engine->logits(0).begin(), engine->logits(0).end()) == want);
  // What one sequence gave up another takes: no more memory is needed.
  first.clear();
  emulator::set_memory_bytes(0);
  REQUIRE(engine->prefill(first, ids, Outputs::kLast));
  emulator::set_memory_bytes(size_t{1} << 30);
}
