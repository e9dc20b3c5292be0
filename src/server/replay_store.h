// What clients drop between the rounds of a tool conversation: the reasoning before a call, and the call's exact text.
#pragma once

#include <cstddef>
#include <list>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "text/chat_message.h"

namespace fathom {

/// Bounded; the calls used least recently go first. Thread-safe.
class ReplayStore {
 public:
  struct Limits {
    size_t max_calls = 20000;
    size_t max_bytes = 64 << 20;
  };

  explicit ReplayStore(Limits limits) : limits_(limits) {}
  ReplayStore() : ReplayStore(Limits{}) {}

  /// `call.id` is the id the client was given.
  void remember(const ChatToolCall& call, const std::string& reasoning);
  /// Gives assistant messages whose calls are known what they lack: the reasoning where there is none, and the
  /// arguments as the model wrote them where the client's are the same JSON in another spelling. Both make the prompt
  /// begin as the cached one did.
  void complete(std::vector<ChatMessage>& messages);

  size_t bytes() const;

 private:
  struct Entry {
    ChatToolCall call;
    std::string reasoning;
    size_t bytes() const {
      return call.id.size() * 2 + call.name.size() + call.arguments.size() + reasoning.size() + 128;
    }
  };

  const Entry* find(const std::string& id);
  void drop_oldest();

  const Limits limits_;
  mutable std::mutex mutex_;
  std::list<Entry> entries_;  // most recently used first
  std::unordered_map<std::string, std::list<Entry>::iterator> by_id_;
  size_t bytes_ = 0;
};

}  // namespace fathom
