// Which chat format: by name, or the one a model's file asks for.
#pragma once

#include <string>
#include <vector>

#include "main/options.h"
#include "text/chat_generation.h"
#include "text/chat_message.h"

namespace fathom {

struct ChatFormatOption {
  ModelOption model;
  std::string format;

  void declare(CLI::App& app);
  /// The format named, whatever the model; else the model's, from its header alone. Throws Error{kUsage} for an unknown
  /// name.
  ChatGeneration choose(const Console& console) const;
};

/// Values of --think: the last three are V4's efforts; to other formats each of them is "on".
inline const std::vector<std::string> kThinkChoices = {"auto", "on", "off", "low", "high", "max"};

/// "auto" leaves the options as they are.
void set_thinking(const std::string& think, ChatOptions& options);

}  // namespace fathom
