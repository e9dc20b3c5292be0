#include "main/chat_session.h"

#include <charconv>
#include <filesystem>

#include "core/atomic_file.h"
#include "core/error.h"
#include "core/printable.h"
#include "main/input.h"
#include "main/terminal.h"
#include "sampling/stop_matcher.h"
#include "text/chat_format.h"

namespace fathom {
namespace {

template <typename T> T number_of(const std::string& name, const std::string& value) {
  T number{};
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc{} || end != value.data() + value.size())
    throw Error(ErrorCode::kUsage, "/set " + name + ": not a number; expected one as in 0.7, got " + in_quotes(value));
  return number;
}

/// A file of one's own is at most this large, lest /load of a wrong one takes all memory.
constexpr uint64_t kMaxSessionBytes = uint64_t{256} << 20;

}  // namespace

void ChatSettings::set(const std::string& name, const std::string& value, int64_t vocab_size) {
  SamplingParams next = sampling;
  if (name == "temp")
    next.temperature = number_of<float>(name, value);
  else if (name == "top-k")
    next.top_k = number_of<int32_t>(name, value);
  else if (name == "top-p")
    next.top_p = number_of<float>(name, value);
  else if (name == "min-p")
    next.min_p = number_of<float>(name, value);
  else if (name == "repeat-penalty")
    next.repeat_penalty = number_of<float>(name, value);
  else if (name == "frequency-penalty")
    next.frequency_penalty = number_of<float>(name, value);
  else if (name == "presence-penalty")
    next.presence_penalty = number_of<float>(name, value);
  else if (name == "seed")
    next.seed = number_of<uint64_t>(name, value);
  else if (name == "max-tokens") {
    const int64_t n = number_of<int64_t>(name, value);
    if (n < 0)
      throw Error(ErrorCode::kUsage, "/set max-tokens: out of range; expected 0 (no limit) or more, got " + value);
    max_tokens = n;
  } else if (name == "stop") {
    std::vector<std::string> strings;
    if (!value.empty()) strings.push_back(value);
    validate_stop_strings(strings);
    stop = strings;
  } else {
    throw Error(ErrorCode::kUsage,
                "/set: unknown name; expected temp, top-k, top-p, min-p, repeat-penalty, frequency-penalty, "
                "presence-penalty, seed, max-tokens or stop, got " +
                    in_quotes(name));
  }
  next.validate(vocab_size);
  sampling = next;
}

std::string ChatSettings::describe() const {
  return "temp " + fixed(sampling.temperature, 2) + ", top-k " + std::to_string(sampling.top_k) + ", top-p " +
         fixed(sampling.top_p, 2) + ", min-p " + fixed(sampling.min_p, 2) + ", repeat-penalty " +
         fixed(sampling.repeat_penalty, 2) + ", frequency-penalty " + fixed(sampling.frequency_penalty, 2) +
         ", presence-penalty " + fixed(sampling.presence_penalty, 2) + ", seed " + std::to_string(sampling.seed) +
         ", max-tokens " + (max_tokens == 0 ? "none" : std::to_string(max_tokens)) + ", think " + think +
         (stop.empty() ? "" : ", stop " + in_quotes(stop[0]));
}

void ChatSession::ask(std::string text) {
  ChatMessage message;
  message.role = ChatRole::kUser;
  message.content = std::move(text);
  turns_.push_back(std::move(message));
}

void ChatSession::answer(const ParsedChat& parsed) {
  ChatMessage message;
  message.role = ChatRole::kAssistant;
  message.content = parsed.content;
  message.reasoning_content = parsed.reasoning_content;
  turns_.push_back(std::move(message));
}

std::optional<std::string> ChatSession::undo() {
  while (!turns_.empty() && turns_.back().role != ChatRole::kUser) turns_.pop_back();
  if (turns_.empty()) return std::nullopt;
  std::string question = turns_.back().content;
  turns_.pop_back();
  return question;
}

std::vector<ChatMessage> ChatSession::messages() const {
  std::vector<ChatMessage> all;
  if (!system.empty()) {
    all.emplace_back();
    all.back().role = ChatRole::kSystem;
    all.back().content = system;
  }
  all.insert(all.end(), turns_.begin(), turns_.end());
  return all;
}

std::string ChatSession::to_json(const std::string& model) const {
  ChatJson list = ChatJson::array();
  for (const ChatMessage& message : messages()) {
    ChatJson item = {{"role", name_of(message.role)}, {"content", message.content}};
    if (!message.reasoning_content.empty()) item["reasoning_content"] = message.reasoning_content;
    list.push_back(std::move(item));
  }
  const ChatJson json = {{"fathom_session", 1}, {"model", model}, {"messages", list}};
  return json.dump(1, ' ', false, ChatJson::error_handler_t::replace) + "\n";
}

ChatSession ChatSession::from_json(std::string_view text, const std::string& where) {
  const ChatJson json = parse_chat_json(text, where);
  const ChatJson* list = &json;
  if (json.is_object()) {
    const auto version = json.find("fathom_session");
    if (version != json.end() && *version != 1)
      throw Error(ErrorCode::kUsage,
                  where + ": made by another version; expected fathom_session 1, got " + version->dump());
    const auto messages = json.find("messages");
    if (messages == json.end())
      throw Error(ErrorCode::kUsage, where + ": no conversation; expected an object with messages or a list of them");
    list = &*messages;
  }
  ChatSession session;
  if (list->is_array() && list->empty()) return session;
  for (ChatMessage& message : read_chat_messages(*list)) {
    if (message.role == ChatRole::kSystem || message.role == ChatRole::kDeveloper) {
      session.system += (session.system.empty() ? "" : "\n\n") + message.content;
    } else {
      session.turns_.push_back(std::move(message));
    }
  }
  return session;
}

void ChatSession::save(const std::string& path, const std::string& model) const {
  const std::string text = to_json(model);
  AtomicFile file(path, 0600);
  file.write(text.data(), text.size());
  file.commit();
}

ChatSession ChatSession::load(const std::string& path) {
  std::error_code ignored;
  const uint64_t size = std::filesystem::file_size(path, ignored);
  if (!ignored && size > kMaxSessionBytes)
    throw Error(ErrorCode::kModel, "session: " + in_quotes(path) + ": too large; expected at most " +
                                       human_bytes(kMaxSessionBytes) + ", got " + human_bytes(size));
  const std::string text = read_input(path, "session");
  try {
    return from_json(text, "session: " + in_quotes(path));
  } catch (const Error& error) {
    throw Error(ErrorCode::kModel, error.what());
  }
}

std::vector<int32_t> PromptMemory::encode(const Tokenizer& tokenizer, const std::vector<PromptPart>& parts) const {
  // The remembered text must end exactly where a marker begins: there no token can reach across.
  std::string text;
  for (size_t i = 0; i < parts.size() && text.size() <= text_.size(); ++i) {
    if (!text_.empty() && text.size() == text_.size() && parts[i].special && text == text_) {
      std::vector<int32_t> ids = ids_;
      const std::vector<int32_t> rest = tokenizer.encode(std::span(parts).subspan(i));
      ids.insert(ids.end(), rest.begin(), rest.end());
      return ids;
    }
    text += parts[i].text;
  }
  return tokenizer.encode(parts);
}

void PromptMemory::remember(const Tokenizer& tokenizer, const std::vector<PromptPart>& parts,
                            std::vector<int32_t> prompt, const Generation& generation) {
  std::span<const int32_t> answer = generation.token_ids;
  if (!answer.empty() && tokenizer.vocab().is_end(answer.back())) answer = answer.first(answer.size() - 1);
  text_ = join_parts(parts) + tokenizer.decode(answer);
  ids_ = std::move(prompt);
  ids_.insert(ids_.end(), answer.begin(), answer.end());
}

}  // namespace fathom
