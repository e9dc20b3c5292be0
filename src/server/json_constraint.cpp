#include "server/json_constraint.h"

namespace fathom {

ConstraintFactory constrain_answer(const Tokenizer&, const AnswerFormat&, bool) { refuse_field("response_format", "not supported yet"); }
ConstraintFactory constrain_call(const Tokenizer&, const ForcedCall&, const ChatTool*, const std::vector<ChatTool>&) { refuse_field("tool_choice", "not supported yet"); }

}  // namespace fathom
