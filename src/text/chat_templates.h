// Jinja templates for files of generations whose checkpoints have none.
#pragma once

#include <string>

#include "text/chat_generation.h"

namespace fathom {

/// What goes under tokenizer.chat_template, for programs that format conversations by it: V3.2 and V4, whose
/// repositories hold an encoder in Python instead; empty for the others. It writes what fathom's own format writes
/// (chat_format.h) for conversations of system, user, assistant and tool messages whose tool results stand in the order
/// of their calls. Takes `thinking` or `enable_thinking`, and for V4 `reasoning_effort` and `response_format`.
std::string chat_template_of(ChatGeneration generation);

}  // namespace fathom
