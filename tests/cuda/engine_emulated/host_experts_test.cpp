// How many layers' experts stay on the host, by the bytes that an emulated device has.
#include <doctest/doctest.h>

#include <string>

#include "core/error.h"
#include "emulator/runtime.h"
#include "engine/engine.h"

using namespace fathom;

namespace {

constexpr size_t kReserve = size_t{256} << 20;  // that the engine leaves of a device's memory

/// A device of so many bytes as long as it lives.
struct DeviceOf {
  explicit DeviceOf(size_t n_bytes) { emulator::set_memory_bytes(n_bytes); }
  ~DeviceOf() { emulator::set_memory_bytes(size_t{1} << 30); }
};

EngineOptions options(const std::string& backend) {
  EngineOptions o;
  o.model_path = FATHOM_FIXTURES "/models/v2lite/v2lite-q4_k_m-mla-00001-of-00003.gguf";
  o.backend = backend;
  o.n_threads = 1;
  o.context = 256;
  o.chunk_tokens = 48;
  return o;
}

std::unique_ptr<Engine> with_layers(int64_t n) {
  EngineOptions o = options("cuda");
  o.host_expert_layers = n;
  return Engine::load(o);
}

}  // namespace

TEST_CASE("as few layers as make the rest fit leave their experts on the host") {
  const int64_t n_layers = with_layers(0)->config().n_layers - with_layers(0)->config().n_dense_layers;
  REQUIRE(n_layers >= 2);
  for (int64_t n = 0; n <= n_layers; ++n) {
    CAPTURE(n);
    const auto explicitly = with_layers(n);
    const uint64_t needed = explicitly->device_bytes(), on_host = explicitly->host_expert_bytes();
    CHECK((on_host > 0) == (n > 0));
    const std::string beside = "; experts of " + std::to_string(n);
    CHECK((explicitly->cache_fingerprint().find(beside) != std::string::npos) == (n > 0));
    const DeviceOf device(kReserve + needed + explicitly->device_bytes());  // the other one is still there
    const auto engine = Engine::load(options("auto"));
    CHECK(engine->on_device());
    CHECK(engine->host_expert_bytes() == on_host);
    CHECK(engine->device_bytes() == needed);
  }
}

TEST_CASE("a device too small for what is left of a model is refused, or not taken if nobody asked for it") {
  const DeviceOf device(kReserve + with_layers(99)->device_bytes() - 4096);
  try {
    Engine::load(options("cuda"));
    FAIL("no refusal");
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kNoMemory);
  }
  const auto engine = Engine::load(options("auto"));
  CHECK_FALSE(engine->on_device());
  CHECK(engine->host_expert_bytes() == 0);
  CHECK(engine->note().find("runs on the CPU") != std::string::npos);
}

TEST_CASE("an estimate counts what streaming takes of the device, and the places of hot experts") {
  const auto bytes = [](int64_t stream_from, uint64_t cache_bytes, bool is_estimate) {
    EngineOptions o = options("cuda");
    o.host_expert_layers = 2;
    o.stream_experts_from = stream_from;
    o.expert_cache_bytes = cache_bytes;
    o.estimate_only = is_estimate;
    return Engine::load(o)->device_bytes();
  };
  const uint64_t neither = bytes(0, 0, false), streams = bytes(20, 0, false), caches = bytes(0, 1 << 20, false);
  CHECK(streams > neither + (8 << 20));
  CHECK(bytes(20, 0, true) - bytes(0, 0, true) == streams - neither);
  CHECK(caches > neither + (1 << 19));
  CHECK(caches < neither + (1 << 20) + (1 << 16));
  CHECK(bytes(0, 1 << 20, true) - bytes(0, 0, true) == caches - neither);
}

TEST_CASE("an estimate counts what stays on the host without taking anything") {
  const auto real = with_layers(1);
  EngineOptions o = options("cuda");
  o.host_expert_layers = 1;
  o.estimate_only = true;
  const auto counted = Engine::load(o);
  CHECK(counted->host_expert_bytes() == real->host_expert_bytes());
  CHECK(counted->device_weight_bytes() == real->device_weight_bytes());
  CHECK(counted->host_bytes_per_token() > 0);
  CHECK(counted->host_bytes_per_token() < static_cast<double>(counted->host_expert_bytes()));
}
