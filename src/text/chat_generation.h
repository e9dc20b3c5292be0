// The chat formats of the DeepSeek family, one per generation that changed the text around the messages.
#pragma once

#include <array>
#include <optional>
#include <string_view>

namespace fathom {

enum class ChatGeneration {
  kV2,   ///< V1, V2, V2-Lite, the first Coder-V2: "User: ", "Assistant: "
  kV25,  ///< V2.5, later Coder-V2
  kV3,   ///< V3 of December 2024
  kV3_0324,
  kR1,  ///< R1 of January 2025 and its distilled models
  kR1_0528,
  kV31,  ///< V3.1, V3.1-Terminus, V3.2-Exp
  kV32,
  kV4,
};

inline constexpr std::array kChatGenerations = {
    ChatGeneration::kV2,      ChatGeneration::kV25, ChatGeneration::kV3,  ChatGeneration::kV3_0324, ChatGeneration::kR1,
    ChatGeneration::kR1_0528, ChatGeneration::kV31, ChatGeneration::kV32, ChatGeneration::kV4,
};

/// "v2", "v2.5", "v3", "v3-0324", "r1", "r1-0528", "v3.1", "v3.2" or "v4".
std::string_view name_of(ChatGeneration generation);

/// The inverse of name_of. Throws Error{kUsage} listing the names for any other text.
ChatGeneration chat_generation_from_name(std::string_view name);

/// How a generation writes tool calls.
enum class ToolSyntax {
  kNone,
  kFenced,  ///< <｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME, then the arguments in a ```json fence
  kPlain,   ///< <｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS
  kDsml,    ///< <｜DSML｜invoke name="NAME"> with one element per argument
};
ToolSyntax tool_syntax_of(ChatGeneration generation);

/// Whether models of this generation may write <think> and </think>.
bool can_reason(ChatGeneration generation);

/// What a conversation does when it does not say: R1 always reasons, V4 does unless told not to, V3.1 and V3.2 do not.
bool reasons_by_default(ChatGeneration generation);

/// What DeepSeek recommends; empty where it says nothing.
struct SamplingAdvice {
  std::optional<float> temperature;
  std::optional<float> top_p;
};
SamplingAdvice recommended_sampling(ChatGeneration generation);

}  // namespace fathom
