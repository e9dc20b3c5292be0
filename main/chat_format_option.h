// Which chat format: by name, or the one a model's file asks for.
#pragma once

#include <optional>
#include <string>

#include "main/options.h"
#include "text/chat_generation.h"

namespace fathom {

struct ChatFormatOption {
  ModelOption model;
  std::string format;

  void declare(CLI::App& app);
  /// The format named, whatever the model; else the model's, from its header alone. Throws Error{kUsage} for an unknown
  /// name.
  ChatGeneration choose(const Console& console) const;
};

/// "on", "off" or "auto", as --think has checked.
std::optional<bool> thinking_of(const std::string& think);

}  // namespace fathom
