#include "main/answer.h"

#include <sys/resource.h>

#include <cstdio>

#include "build_info.h"
#include "core/plain_text.h"
#include "main/signals.h"

namespace fathom {
namespace {

void give(const std::vector<ChatEvent>& events, const AnswerSink& sink) {
  for (const ChatEvent& event : events) {
    if (event.kind == ChatEvent::Kind::kReasoning && sink.reasoning) sink.reasoning(event.text);
    if (event.kind == ChatEvent::Kind::kContent && sink.content) sink.content(event.text);
  }
}

}  // namespace

uint64_t peak_rss_bytes() {
  rusage usage{};
  return getrusage(RUSAGE_SELF, &usage) == 0 ? static_cast<uint64_t>(usage.ru_maxrss) * 1024 : 0;
}

std::string Answer::finish_reason() const {
  return is_chat && !parsed.finish_reason.empty() ? parsed.finish_reason : std::string(name_of(generation.finish));
}

Answer generate_answer(const Engine& engine, Scheduler& scheduler, const Prompt& prompt, GenerateOptions options,
                       const AnswerSink& sink, const Console& console) {
  Answer answer;
  answer.is_chat = prompt.is_chat;
  // Calls are written with control tokens, which are otherwise no part of an answer.
  options.show_control_tokens = prompt.is_chat && prompt.parser.parse_calls;
  ProgressLine progress(console, "reading the prompt:", "tokens");
  ChatParser parser(engine.chat_generation(), prompt.parser);
  GenerateCallbacks callbacks;
  callbacks.on_prefill = [&](uint64_t done, uint64_t total) {
    if (done == total)
      progress.clear();
    else
      progress.update(done, total);
  };
  callbacks.on_text = [&](std::string_view text) {
    if (prompt.is_chat)
      give(parser.feed(text), sink);
    else if (sink.content)
      sink.content(text);
  };
  callbacks.interrupted = [] { return interrupted(); };
  Request request;
  request.prompt = prompt.token_ids;
  request.options = std::move(options);
  request.constraint = prompt.constraint;
  answer.generation = generate(scheduler, std::move(request), callbacks);
  progress.clear();
  if (prompt.is_chat) {
    give(parser.finish(name_of(answer.generation.finish)), sink);
    answer.parsed = parser.result();
  } else {
    answer.parsed.content = answer.generation.text;
  }
  return answer;
}

std::vector<int32_t> encode_raw(const Engine& engine, std::string_view text) {
  const Vocab& vocab = engine.tokenizer().vocab();
  std::vector<int32_t> ids = engine.tokenizer().encode(text, true);
  if (vocab.add_bos() && (ids.empty() || ids[0] != vocab.bos())) ids.insert(ids.begin(), vocab.bos());
  return ids;
}

uint64_t cache_bytes(Engine& engine, const Scheduler& scheduler) {
  const SchedulerStats stats = scheduler.stats();
  return static_cast<uint64_t>(stats.used_pages + stats.cached_pages) * engine.pool().layout().page_bytes();
}

nlohmann::ordered_json answer_json(Engine& engine, const Scheduler& scheduler, const EngineFlags& flags,
                                   const Answer& answer, uint64_t seed, double load_ms) {
  const Generation& g = answer.generation;
  const ModelInfo& info = engine.info();
  nlohmann::ordered_json json;
  json["text"] = answer.parsed.content;
  json["reasoning"] = answer.parsed.reasoning_content.empty() ? nlohmann::ordered_json(nullptr)
                                                              : nlohmann::ordered_json(answer.parsed.reasoning_content);
  if (!answer.parsed.tool_calls.empty()) json["tool_calls"] = answer.parsed.to_json()["tool_calls"];
  json["tokens"] = g.token_ids;
  json["finish_reason"] = answer.finish_reason();
  json["stop"] = g.stop ? nlohmann::ordered_json(*g.stop) : nlohmann::ordered_json(nullptr);
  json["prompt_tokens"] = g.prompt_tokens;
  json["completion_tokens"] = g.token_ids.size();
  json["cached_tokens"] = g.cached_tokens;
  json["seed"] = seed;
  json["timings"] = {{"load_ms", load_ms},
                     {"prompt_ms", g.prompt_ms},
                     {"prompt_tok_s", g.prompt_tok_s()},
                     {"first_token_ms", g.first_token_ms},
                     {"decode_ms", g.decode_ms},
                     {"decode_tok_s", g.decode_tok_s()}};
  json["drafts"] = {{"tokens", g.draft_tokens}, {"accepted", g.accepted_tokens}};
  if (const ExpertHits hits = engine.expert_hits(); hits.routes > 0)
    json["experts"] = {{"host_routes", hits.routes}, {"cache_hits", hits.hits}};
  json["memory"] = {{"peak_rss_bytes", peak_rss_bytes()},
                    {"model_bytes", engine.model_bytes()},
                    {"cache_bytes", cache_bytes(engine, scheduler)},
                    {"device_bytes", engine.device_bytes()}};
  json["model"] = {{"path", info.path},
                   {"architecture", info.architecture},
                   {"name", info.name},
                   {"size_bytes", info.size_bytes},
                   {"type", info.type}};
  json["system_fingerprint"] = system_fingerprint(engine, flags);
  return json;
}

std::string answer_statistics(const Answer& answer) {
  const Generation& g = answer.generation;
  return "prompt: " + std::to_string(g.prompt_tokens) + " tokens, " + std::to_string(g.cached_tokens) + " cached, " +
         std::to_string(g.prompt_tokens - g.cached_tokens) + " evaluated at " + fixed(g.prompt_tok_s(), 1) +
         " tok/s; answer: " + std::to_string(g.token_ids.size()) + " tokens at " + fixed(g.decode_tok_s(), 1) +
         " tok/s, first after " + fixed(g.first_token_ms / 1000, 2) + " s; " + answer.finish_reason() +
         (g.context_full ? " (context full)" : "") +
         (g.draft_tokens > 0
              ? "; " + std::to_string(g.accepted_tokens) + " of " + std::to_string(g.draft_tokens) + " guesses right"
              : "");
}

std::string system_fingerprint(const Engine& engine, const EngineFlags& flags) {
  const ModelInfo& info = engine.info();
  const std::string facts = std::string(FATHOM_VERSION) + "|" + FATHOM_COMMIT + "|" + info.architecture + "|" +
                            info.name + "|" + info.type + "|" + std::to_string(info.size_bytes) + "|" +
                            engine.backend_description() + "|" + cache_type_name(engine) + "|" + flags.attention;
  char text[32];
  std::snprintf(text, sizeof text, "fathom-%016llx", static_cast<unsigned long long>(fnv1a(facts)));
  return text;
}

}  // namespace fathom
