#include "server/replay_store.h"

#include "core/error.h"

namespace fathom {
namespace {

bool same_json(const std::string& a, const std::string& b) {
  try {
    // Sorted keys: clients reorder them. The depth is limited before anything recurses.
    return nlohmann::json(parse_chat_json(a, "arguments")) == nlohmann::json(parse_chat_json(b, "arguments"));
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

void ReplayStore::remember(const ChatToolCall& call, const std::string& reasoning) {
  const std::lock_guard lock(mutex_);
  if (by_id_.contains(call.id)) return;
  entries_.push_front({call, reasoning});
  by_id_[call.id] = entries_.begin();
  bytes_ += entries_.front().bytes();
  while (entries_.size() > limits_.max_calls || bytes_ > limits_.max_bytes) drop_oldest();
}

void ReplayStore::drop_oldest() {
  bytes_ -= entries_.back().bytes();
  by_id_.erase(entries_.back().call.id);
  entries_.pop_back();
}

const ReplayStore::Entry* ReplayStore::find(const std::string& id) {
  const auto it = by_id_.find(id);
  if (it == by_id_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, it->second);
  return &*it->second;
}

void ReplayStore::complete(std::vector<ChatMessage>& messages) {
  const std::lock_guard lock(mutex_);
  for (ChatMessage& message : messages) {
    for (ChatToolCall& call : message.tool_calls) {
      const Entry* known = find(call.id);
      if (known == nullptr || known->call.name != call.name) continue;
      if (message.reasoning_content.empty()) message.reasoning_content = known->reasoning;
      if (call.arguments != known->call.arguments && same_json(call.arguments, known->call.arguments))
        call.arguments = known->call.arguments;
    }
  }
}

size_t ReplayStore::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace fathom
