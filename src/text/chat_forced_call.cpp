#include "text/chat_forced_call.h"

#include "core/error.h"
#include "text/chat_literals.h"
#include "text/chat_prompt.h"

namespace fathom {

using namespace chat_literals;

ForcedCall open_call(ChatGeneration generation, const std::string& name) {
  ForcedCall call{tool_syntax_of(generation), !name.empty(), {}, {}, {}};
  PromptWriter opening, name_end, closing, argument_begin, argument_end;
  switch (call.syntax) {
    case ToolSyntax::kNone:
      throw Error{ErrorCode::kUsage, "tool_choice: not possible with this model; the chat format " +
                                         std::string(name_of(generation)) + " has no tool calls"};
    case ToolSyntax::kFenced:
    case ToolSyntax::kPlain: {
      const bool fenced = call.syntax == ToolSyntax::kFenced;
      opening.marker(kCallsBegin);
      opening.marker(kCallBegin);
      if (fenced) {
        opening.plain("function");
        opening.marker(kSep);
        name_end.plain("\n```json\n");
        closing.plain("\n```");
      } else {
        name_end.marker(kSep);
      }
      closing.marker(kCallEnd);
      closing.marker(kCallsEnd);
      break;
    }
    case ToolSyntax::kDsml: {
      const bool v4 = generation == ChatGeneration::kV4;
      const std::string dsml(kDsml), block = v4 ? "tool_calls>" : "function_calls>";
      opening.plain("\n\n");
      opening.own("<" + dsml + block + "\n<" + dsml + "invoke name=\"", v4);
      name_end.plain("\">\n");
      closing.own("</" + dsml + "invoke>\n</" + dsml + block, v4);
      argument_begin.own("<" + dsml + "parameter name=\"", v4);
      argument_end.own("</" + dsml + "parameter>\n", v4);
      break;
    }
  }
  if (call.names_tool) {
    opening.plain(name);
    for (const PromptPart& part : name_end.take()) {
      if (part.special)
        opening.marker(part.text);
      else
        opening.plain(part.text);
    }
  }
  call.opening = opening.take();
  call.name_end = name_end.take();
  call.closing = closing.take();
  call.argument_begin = argument_begin.take();
  call.argument_end = argument_end.take();
  return call;
}

}  // namespace fathom
