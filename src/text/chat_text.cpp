#include "text/chat_text.h"

#include "core/error.h"
#include "text/chat_format.h"
#include "text/chat_parser.h"
#include "text/utf8.h"

namespace fathom {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw Error{ErrorCode::kUsage, "parse: " + what}; }

bool flag(const ChatJson& options, const char* key, bool otherwise) {
  const auto it = options.find(key);
  if (it == options.end() || it->is_null()) return otherwise;
  if (!it->is_boolean()) refuse("options." + std::string(key) + ": wrong kind; expected true or false");
  return it->get<bool>();
}

/// The bytes of the first `n_characters` of valid UTF-8.
size_t bytes_of(std::string_view text, uint64_t n_characters) {
  size_t pos = 0;
  for (uint64_t i = 0; i < n_characters && pos < text.size(); ++i) pos += read_utf8(text, pos).length;
  return pos;
}

}  // namespace

std::string render_json(ChatGeneration generation, std::string_view json,
                        const std::function<void(ChatOptions&)>& adjust) {
  ChatConversation conversation = read_chat_conversation(parse_chat_json(json, "messages"));
  if (adjust) adjust(conversation.options);
  return join_parts(render_chat(generation, conversation.messages, conversation.tools, conversation.options));
}

std::string parse_json(ChatGeneration generation, std::string_view json) {
  const ChatJson request = parse_chat_json(json, "parse");
  if (!request.is_object()) refuse("wrong kind; expected an object");
  const auto text = request.find("text");
  if (text == request.end() || !text->is_string()) refuse("text: expected text");
  ChatParserOptions options;
  std::string finish = "stop";
  if (const auto given = request.find("options"); given != request.end() && !given->is_null()) {
    if (!given->is_object()) refuse("options: wrong kind; expected an object");
    options.starts_in_reasoning = flag(*given, "starts_in_reasoning", false);
    options.parse_calls = flag(*given, "tools", true);
    if (const auto reason = given->find("finish"); reason != given->end() && !reason->is_null()) {
      if (!reason->is_string()) refuse("options.finish: wrong kind; expected text");
      finish = reason->get<std::string>();
    }
  }
  ChatParser parser(generation, std::move(options));
  std::string_view rest = text->get_ref<const std::string&>();
  if (const auto cut = request.find("cut"); cut != request.end() && !cut->is_null()) {
    if (!cut->is_array()) refuse("cut: wrong kind; expected a list of numbers");
    for (const ChatJson& length : *cut) {
      if (!length.is_number_unsigned()) refuse("cut: expected whole numbers from 0 up");
      const size_t n_bytes = bytes_of(rest, length.get<uint64_t>());
      parser.feed(rest.substr(0, n_bytes));
      rest.remove_prefix(n_bytes);
    }
  }
  parser.feed(rest);
  parser.finish(finish);
  return to_chat_json(parser.result().to_json());
}

}  // namespace fathom
