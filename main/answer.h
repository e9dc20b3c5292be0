// An answer while it is generated: split into reasoning and content, written as it comes.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "engine/generate.h"
#include "main/options.h"
#include "text/chat_parser.h"

namespace fathom {

/// What is generated after: token ids, and how to read what comes.
struct Prompt {
  std::vector<int32_t> token_ids;
  bool is_chat = false;                           ///< else the answer is plain text
  ChatParserOptions parser;                       ///< of a chat
  std::shared_ptr<TokenConstraint> constraint{};  ///< what the answer must be; null: anything
};

/// Pieces of an answer as they become certain.
struct AnswerSink {
  std::function<void(std::string_view)> reasoning;
  std::function<void(std::string_view)> content;
};

struct Answer {
  Generation generation;
  ParsedChat parsed;  ///< of plain text: content alone
  bool is_chat = false;

  std::string finish_reason() const;
};

/// Generates until an end or SIGINT, with progress of the prompt on `console`.
Answer generate_answer(const Engine& engine, Scheduler& scheduler, const Prompt& prompt, GenerateOptions options,
                       const AnswerSink& sink, const Console& console);

/// The ids of `text` taken as it is: added tokens spelled in it count, BOS once in front as the file says.
std::vector<int32_t> encode_raw(const Engine& engine, std::string_view text);

/// Of the cache's pages that hold rows, those of past answers included.
uint64_t cache_bytes(Engine& engine, const Scheduler& scheduler);

/// The most memory this process has held.
uint64_t peak_rss_bytes();

/// The object that --json prints.
nlohmann::ordered_json answer_json(Engine& engine, const Scheduler& scheduler, const EngineFlags& flags,
                                   const Answer& answer, uint64_t seed, double load_ms);

/// One line: how many tokens, from the cache or evaluated, at what speed.
std::string answer_statistics(const Answer& answer);

/// Build, model and kernels in one short name: equal names answer equally for equal seeds.
std::string system_fingerprint(const Engine& engine, const EngineFlags& flags);

}  // namespace fathom
