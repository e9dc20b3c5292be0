#include "text/chat_generation.h"

#include <string>

#include "core/error.h"

namespace fathom {

std::string_view name_of(ChatGeneration generation) {
  switch (generation) {
    case ChatGeneration::kV2: return "v2";
    case ChatGeneration::kV25: return "v2.5";
    case ChatGeneration::kV3: return "v3";
    case ChatGeneration::kV3_0324: return "v3-0324";
    case ChatGeneration::kR1: return "r1";
    case ChatGeneration::kR1_0528: return "r1-0528";
    case ChatGeneration::kV31: return "v3.1";
    case ChatGeneration::kV32: return "v3.2";
    case ChatGeneration::kV4: return "v4";
  }
  FATHOM_CHECK(false, "unknown chat generation");
}

ChatGeneration chat_generation_from_name(std::string_view name) {
  std::string names;
  for (const ChatGeneration generation : kChatGenerations) {
    if (name_of(generation) == name) return generation;
    names += (names.empty() ? "" : ", ") + std::string(name_of(generation));
  }
  throw Error{ErrorCode::kUsage,
              "chat format: unknown name; expected one of " + names + ", got '" + std::string(name) + "'"};
}

ToolSyntax tool_syntax_of(ChatGeneration generation) {
  switch (generation) {
    case ChatGeneration::kV2: return ToolSyntax::kNone;
    case ChatGeneration::kV31: return ToolSyntax::kPlain;
    case ChatGeneration::kV32:
    case ChatGeneration::kV4: return ToolSyntax::kDsml;
    default: return ToolSyntax::kFenced;
  }
}

bool can_reason(ChatGeneration generation) { return generation >= ChatGeneration::kR1; }

bool reasons_by_default(ChatGeneration generation) {
  return generation == ChatGeneration::kR1 || generation == ChatGeneration::kR1_0528 ||
         generation == ChatGeneration::kV4;
}

SamplingAdvice recommended_sampling(ChatGeneration generation) {
  switch (generation) {
    case ChatGeneration::kV3:
    case ChatGeneration::kV3_0324: return {.temperature = 0.3f, .top_p = {}};
    case ChatGeneration::kR1:
    case ChatGeneration::kR1_0528: return {.temperature = 0.6f, .top_p = 0.95f};
    case ChatGeneration::kV4: return {.temperature = 1.0f, .top_p = 1.0f};
    default: return {};
  }
}

}  // namespace fathom
