// A conversation as every chat format sees it, and the strict reader from the JSON of the OpenAI interface.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/chat_json.h"

namespace fathom {

enum class ChatRole { kSystem, kDeveloper, kUser, kAssistant, kTool, kLatestReminder };

/// "system", "developer", ...
std::string_view name_of(ChatRole role);

struct ChatToolCall {
  std::string id;         ///< may be empty
  std::string name;       ///< never empty
  std::string arguments;  ///< JSON text as the model wrote it; not checked
};

struct ChatMessage {
  ChatRole role = ChatRole::kUser;
  std::string content;
  std::string reasoning_content;         ///< assistant only
  std::vector<ChatToolCall> tool_calls;  ///< assistant only
  std::string tool_call_id;              ///< tool only; an unknown id is taken as the next result
  std::string name;                      ///< accepted, not part of any DeepSeek format
  bool prefix = false;                   ///< last assistant message only: the answer goes on from here
  std::string task;                      ///< last message only: one of kQuickTasks, what V4 is to say about the chat
};

/// V4 answers each in a few words, asked by a token of its own: whether to search, a query for it, how much the source
/// matters, the field, a title of the chat, which links to read. Source: encoding_dsv4.py of the V4 preview.
inline constexpr std::array<std::string_view, 6> kQuickTasks = {"action", "query", "authority",
                                                                "domain", "title", "read_url"};

struct ChatTool {
  std::string name;
  std::string description;
  ChatJson parameters;  ///< a JSON schema, an object (empty when not given)
  ChatJson function;    ///< all the request said about it, in its order
};

enum class ReasoningEffort { kLow, kHigh, kMax };

struct ChatOptions {
  bool add_generation_prompt = true;      ///< ignored after a message with `prefix`
  std::optional<bool> thinking;           ///< empty: reasons_by_default(generation)
  std::optional<ReasoningEffort> effort;  ///< V4 only; empty: high
  std::optional<ChatJson> response_schema;
};

struct ChatConversation {
  std::vector<ChatMessage> messages;  ///< never empty once read
  std::vector<ChatTool> tools;
  ChatOptions options;
};

/// Most tools of one request.
inline constexpr size_t kMaxChatTools = 1024;

// All readers throw Error{kUsage} naming the field by its path ("messages[3].content: expected text, got number").
// Fields they do not know are ignored, except that a message may hold no content they would have to drop. Time is
// linear.

/// Content may be text, or a list of {"type": "text", "text": ...}, whose texts are joined with line breaks; null only
/// for assistants. Needs at least one message.
std::vector<ChatMessage> read_chat_messages(const ChatJson& value);
std::vector<ChatTool> read_chat_tools(const ChatJson& value);
ChatOptions read_chat_options(const ChatJson& value);

/// A list of messages, or {"messages":, "tools":, "options":} with the last two optional.
ChatConversation read_chat_conversation(const ChatJson& value);

/// "none" and "minimal" to "max"; minimal is low and medium is high, none is no effort at all. `where` names the field.
std::optional<ReasoningEffort> reasoning_effort_from_name(std::string_view name, const std::string& where);

}  // namespace fathom
