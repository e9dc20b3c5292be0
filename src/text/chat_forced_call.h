// The beginning and the end of an answer that has to be a tool call.
#pragma once

#include <string>
#include <vector>

#include "text/chat_generation.h"
#include "text/prompt_part.h"

namespace fathom {

/// opening + NAME + name_end + ARGUMENTS + closing is a whole answer. With the name given, NAME and name_end are part
/// of the opening.
struct ForcedCall {
  ToolSyntax syntax;
  bool names_tool;                  ///< the opening holds the name
  std::vector<PromptPart> opening;  ///< written behind the prompt
  std::vector<PromptPart> name_end;
  std::vector<PromptPart> closing;  ///< up to the end of the block of calls
  /// Of ｜DSML｜ arguments, which are elements: argument_begin + KEY + `" string="true|false">` + VALUE + argument_end.
  std::vector<PromptPart> argument_begin{}, argument_end{};
};

/// `name` empty: the model is to choose. Throws Error{kUsage} for formats without tool calls.
ForcedCall open_call(ChatGeneration generation, const std::string& name);

}  // namespace fathom
