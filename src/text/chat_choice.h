// Which chat format a model file wants.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "text/chat_generation.h"

namespace fathom {

/// What a file says about itself; empty where it says nothing.
struct ChatEvidence {
  std::string_view chat_template;                   ///< tokenizer.chat_template; read for hints, never run
  std::function<bool(std::string_view)> has_token;  ///< whether the vocabulary has an added token spelled so
  size_t vocab_size = 0;
  std::string_view architecture;  ///< general.architecture
  std::string_view model_name;    ///< general.name
};

struct ChatChoice {
  ChatGeneration generation;
  std::string reason;  ///< for people: what decided
};

/// The rules, first match wins.
/// Template: 1. ｜DSML｜ with "tool_calls>" is v4, with "function_calls>" v3.2. 2. <｜User｜> and "thinking" beside
/// </think> is v3.1; a generation prompt that opens <think> is r1; </think> alone (cut from the history) is r1-0528
/// where the vocabulary has <think>, else v3 or v2.5; "is_last_user" is v3-0324; what is left is v3 or v2.5. 3. "User:
/// " and "Assistant:" is v2. Tokens: ｜DSML｜ is v4. Architecture: deepseek4 is v4, deepseek32 is v3.2, deepseek is v2.
/// Model name, among formats that share a vocabulary: "v3.2", "v3.1", "0528", "0324".
/// Tokens: <think> with <｜search▁begin｜> is v3.1, <think> alone is r1; <｜User｜> is v3, or v2.5 below 110,000
/// tokens; without it v2.
ChatChoice choose_format(const ChatEvidence& evidence);

}  // namespace fathom
