// The chat formats from JSON text to text: what `fathom render` and `fathom parse` do.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "text/chat_generation.h"
#include "text/chat_message.h"

namespace fathom {

/// `json`: a list of messages, or {"messages":, "tools":, "options":}. `adjust` may change the options. Returns
/// the prompt. Throws Error{kUsage} naming the field.
std::string render_json(ChatGeneration generation, std::string_view json,
                        const std::function<void(ChatOptions&)>& adjust = {});

/// `json`: {"text":, "options": {"starts_in_reasoning":, "tools":, "finish":}, "cut": [piece lengths in characters]};
/// all but the text may be missing (false, true, "stop", one piece; what the cut leaves over is the last piece).
/// Returns ParsedChat::to_json on one line. Throws Error{kUsage} naming the field.
std::string parse_json(ChatGeneration generation, std::string_view json);

}  // namespace fathom
