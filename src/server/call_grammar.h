// The grammar of a call that must be made.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "sampling/byte_grammar.h"
#include "text/chat_forced_call.h"
#include "text/chat_message.h"

namespace fathom {

/// The token of a marker; nothing if the vocabulary has none, and the marker is spelled.
using MarkerToken = std::function<std::optional<int32_t>(std::string_view marker)>;

/// What may stand behind `call.opening`: a call of `named`, or of one of `tools` if the opening does not name it. The
/// arguments of a strict tool fit its schema or Error{kUsage} is thrown; those of others fit if the schema can be kept
/// to, and are an object in any case.
std::shared_ptr<const ByteGrammar> make_call_grammar(const ForcedCall& call, const ChatTool* named,
                                                     const std::vector<ChatTool>& tools, const MarkerToken& token_of);

}  // namespace fathom
