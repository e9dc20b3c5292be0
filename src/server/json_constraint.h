// Constraints for answers that must be JSON, and for calls that must be made.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "engine/answer_writer.h"
#include "server/chat_question.h"
#include "text/chat_forced_call.h"

namespace fathom {

using ConstraintFactory = std::function<std::shared_ptr<TokenConstraint>()>;

ConstraintFactory constrain_answer(const Tokenizer& tokenizer, const AnswerFormat& format, bool after_reasoning);
ConstraintFactory constrain_call(const Tokenizer& tokenizer, const ForcedCall& call, const ChatTool* tool, const std::vector<ChatTool>& tools);

}  // namespace fathom
