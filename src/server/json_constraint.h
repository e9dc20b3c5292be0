// Constraints for answers that must be JSON, and for calls that must be made.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/answer_writer.h"
#include "sampling/byte_grammar.h"
#include "server/chat_question.h"
#include "server/service.h"
#include "text/chat_forced_call.h"

namespace fathom {

/// Makes the constraint of one choice. What is shared by the choices is made once.
using ConstraintFactory = std::function<std::shared_ptr<TokenConstraint>()>;

/// JSON as `format` says, then the end. `after_reasoning`: free until </think>. Throws Error{kUsage} for schemas that
/// cannot be kept to.
ConstraintFactory constrain_answer(Service& service, const AnswerFormat& format, bool after_reasoning);

/// White space, then a value that fits `schema`, or any object without one; `where` names the schema in messages.
/// Throws Error{kUsage} for what cannot be kept to.
std::shared_ptr<const ByteGrammar> make_json_grammar(const std::optional<ChatJson>& schema, const std::string& where);
/// Text of `grammar`, then the end; for one answer, without a server.
std::shared_ptr<TokenConstraint> constrain_to_grammar(const Vocab& vocab, std::shared_ptr<const ByteGrammar> grammar,
                                                      bool after_reasoning);

/// One call behind `call.opening`, then the end: make_call_grammar says which. Throws Error{kUsage} for strict tools
/// whose schema cannot be kept to.
ConstraintFactory constrain_call(Service& service, const ForcedCall& call, const ChatTool* named,
                                 const std::vector<ChatTool>& tools);

/// All tokens of `vocab` that stand for text.
std::shared_ptr<const TokenTrie> make_token_trie(const Vocab& vocab);

}  // namespace fathom
