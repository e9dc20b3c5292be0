#include "text/chat_format.h"

#include <algorithm>
#include <array>
#include <unordered_map>

#include "core/error.h"
#include "text/chat_literals.h"
#include "text/chat_prompt.h"

namespace fathom {

using namespace chat_literals;

void PromptWriter::own(std::string_view text, bool dsml_token) {
  constexpr std::array kMarkers = {kThink, kThinkEnd, kCallsBegin, kCallsEnd, kCallBegin, kCallEnd, kSep, kDsml};
  const size_t n_markers = kMarkers.size() - (dsml_token ? 0 : 1);
  size_t written = 0;
  for (size_t i = 0; i < text.size();) {
    const auto end = kMarkers.begin() + n_markers;
    const auto found =
        std::find_if(kMarkers.begin(), end, [&](std::string_view m) { return text.substr(i).starts_with(m); });
    if (found == end) {
      ++i;
      continue;
    }
    plain(text.substr(written, i - written));
    marker(*found);
    written = i += found->size();
  }
  plain(text.substr(written));
}

void write_response_format(PromptWriter& out, const ChatOptions& options) {
  if (options.response_schema) out.plain("\n\n").plain(kResponseFormat).plain(to_chat_json(*options.response_schema));
}

void sort_by_call(std::vector<const ChatMessage*>& results, const std::vector<ChatToolCall>& calls) {
  std::unordered_map<std::string_view, size_t> places;
  for (size_t i = 0; i < calls.size(); ++i) places.emplace(calls[i].id, i);
  const auto place_of = [&](const ChatMessage* result) {
    const auto it = places.find(result->tool_call_id);
    return it == places.end() ? calls.size() : it->second;
  };
  std::stable_sort(results.begin(), results.end(),
                   [&](const auto* a, const auto* b) { return place_of(a) < place_of(b); });
}

std::vector<PromptPart> render_chat(ChatGeneration generation, const std::vector<ChatMessage>& messages,
                                    const std::vector<ChatTool>& tools, const ChatOptions& options) {
  FATHOM_CHECK(!messages.empty(), "a conversation without messages");
  const bool has_calls = tool_syntax_of(generation) != ToolSyntax::kNone;
  if (!has_calls && !tools.empty()) {
    throw Error{ErrorCode::kUsage, "tools: not possible with this model; the chat format " +
                                       std::string(name_of(generation)) + " has no tool calls; try without tools"};
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    const bool needs_tools = message.role == ChatRole::kTool || !message.tool_calls.empty();
    const bool needs_v4 = message.role == ChatRole::kLatestReminder || !message.task.empty();
    if ((needs_tools && !has_calls) || (needs_v4 && generation != ChatGeneration::kV4)) {
      throw Error{ErrorCode::kUsage, "messages[" + std::to_string(i) + "]: the chat format " +
                                         std::string(name_of(generation)) + " has no " +
                                         (!message.task.empty() ? "quick tasks"
                                          : needs_v4            ? "role latest_reminder"
                                                                : "tool calls")};
    }
  }
  PromptWriter out;
  out.marker(kBos);
  const ChatRendering chat{generation, messages, tools, options};
  if (tool_syntax_of(generation) == ToolSyntax::kDsml)
    write_dsml_format(out, chat);
  else
    write_marker_format(out, chat);
  return out.take();
}

std::string join_parts(const std::vector<PromptPart>& parts) {
  std::string text;
  for (const PromptPart& part : parts) text += part.text;
  return text;
}

bool opens_reasoning(const std::vector<PromptPart>& parts) {
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    if (part->special) return part->text == kThink;
    if (part->text.find_first_not_of('\n') != std::string::npos) return false;
  }
  return false;
}

}  // namespace fathom
