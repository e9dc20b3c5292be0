// What every endpoint works with: the loaded model, its scheduler, and the server's settings.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <string>

#include "engine/engine.h"
#include "engine/scheduler.h"
#include "sampling/byte_grammar.h"
#include "server/http_server.h"
#include "server/json_fields.h"
#include "server/replay_store.h"
#include "server/slots.h"

namespace fathom {

struct ServiceOptions {
  std::string model_name;                      ///< in lists and answers; requests may name any
  SamplingParams sampling;                     ///< where a request says nothing; its seed is not used
  std::string fingerprint;                     ///< system_fingerprint of answers
  int max_choices = 8;                         ///< most answers one request may ask for
  std::chrono::milliseconds keep_alive{5000};  ///< between comments in a silent stream
};

/// Thread-safe. Engine and scheduler must outlive it.
struct Service {
  Service(Engine& e, Scheduler& s, ServiceOptions o)
      : engine(e),
        scheduler(s),
        options(std::move(o)),
        started_s(std::chrono::system_clock::to_time_t(std::chrono::system_clock::now())) {}

  Engine& engine;
  Scheduler& scheduler;
  const ServiceOptions options;
  ReplayStore replay;
  const int64_t started_s;  ///< Unix time

  /// The model's tokens by their bytes; made when first asked for.
  std::shared_ptr<const TokenTrie> token_trie();

  /// Reads the body and makes something of it while at most four bodies are in memory as JSON, which takes 15 times its
  /// text.
  template <typename Make> auto with_body(const HttpRequest& request, Make make) {
    const Slots::Place place(body_slots_);
    return make(parse_body(request.body));
  }

 private:
  std::once_flag trie_made_;
  std::shared_ptr<const TokenTrie> trie_;
  Slots body_slots_{4};
};

}  // namespace fathom
