// Messages to prompt: what each generation of DeepSeek models expects around the words of a conversation.
#pragma once

#include <string>
#include <vector>

#include "text/chat_generation.h"
#include "text/chat_message.h"
#include "text/prompt_part.h"

namespace fathom {

/// The prompt of a conversation, BOS included once. Each special part is exactly one marker token; all that came from
/// outside stands in plain parts, and no two plain parts are neighbours. The texts are those of the official templates
/// and encoders (models.md, section F), with two defects of theirs mended: R1 lost markers after a single tool call,
/// R1-0528 in the second round of calls. Before V3.1 no official text describes tools or an answer schema; they are
/// described like in the later generations, at the end of the system text. `messages` must not be empty. Throws
/// Error{kUsage} for tools or tool messages with v2, and for the role latest_reminder and quick tasks before
/// v4. Linear in the length
/// of everything given.
std::vector<PromptPart> render_chat(ChatGeneration generation, const std::vector<ChatMessage>& messages,
                                    const std::vector<ChatTool>& tools, const ChatOptions& options);

/// The parts as one text.
std::string join_parts(const std::vector<PromptPart>& parts);

/// Whether the prompt ends with an open <think>, so that what the model writes first is reasoning.
bool opens_reasoning(const std::vector<PromptPart>& parts);

}  // namespace fathom
