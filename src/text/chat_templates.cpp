#include "text/chat_templates.h"

#include <initializer_list>
#include <string_view>
#include <utility>

#include "text/chat_literals.h"

namespace fathom {
namespace {

using namespace chat_literals;

/// A text as Jinja writes it.
std::string quoted(std::string_view text) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\n') {
      out += "\\n";
    } else {
      if (c == '\'' || c == '\\') out += '\\';
      out += c;
    }
  }
  return out + "'";
}

std::string constants(std::initializer_list<std::pair<const char*, std::string_view>> all) {
  std::string out;
  for (const auto& [name, text] : all) out += "{%- set " + std::string(name) + " = " + quoted(text) + " -%}\n";
  return out;
}

// Switches, the place of the last question, and the calls of an answer, alike but for the name of the block and what
// stands for no arguments.
constexpr const char* kBegin = R"jinja({%- if thinking is defined -%}
{%- set thinks = thinking -%}
{%- elif enable_thinking is defined -%}
{%- set thinks = enable_thinking -%}
{%- else -%}
{%- set thinks = thinks_unasked -%}
{%- endif -%}
{%- set opens = add_generation_prompt is defined and add_generation_prompt -%}
{%- set has_tools = tools is defined and tools -%}
{%- macro calls(message) -%}
{{- '\n\n<' + dsml_token + block + '>\n' -}}
{%- for call in message['tool_calls'] -%}
{%- set function = call['function'] if 'function' in call else call -%}
{%- set arguments = function['arguments'] -%}
{%- if arguments is string -%}
{%- set arguments = arguments | from_json -%}
{%- endif -%}
{{- '<' + dsml_token + 'invoke name="' + function['name'] + '">\n' -}}
{%- for key, value in arguments.items() -%}
{{- '<' + dsml_token + 'parameter name="' + key + '" string="' -}}
{%- if value is string -%}
{{- 'true">' + value -}}
{%- else -%}
{{- 'false">' + (value | tojson) -}}
{%- endif -%}
{{- '</' + dsml_token + 'parameter>\n' -}}
{%- endfor -%}
{%- if not arguments -%}{{- no_arguments -}}{%- endif -%}
{{- '</' + dsml_token + 'invoke>\n' -}}
{%- endfor -%}
{{- '</' + dsml_token + block + '>' -}}
{%- endmacro -%}
{%- macro extras() -%}
{%- if has_tools -%}
{{- '\n\n' + tools_head -}}
{%- for tool in tools -%}
{%- if not loop.first -%}{{- '\n' -}}{%- endif -%}
{{- (tool['function'] if 'function' in tool else tool) | tojson -}}
{%- endfor -%}
{{- tools_tail -}}
{%- endif -%}
{%- if response_format is defined and response_format -%}
{{- '\n\n' + response_head + (response_format | tojson) -}}
{%- endif -%}
{%- endmacro -%}
)jinja";

constexpr const char* kV4 = R"jinja({%- set state = namespace(last=-1, systems=0, in_user=false) -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' or message['role'] == 'tool' -%}{%- set state.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{{- bos -}}
{%- if thinks -%}
{%- set effort = reasoning_effort if reasoning_effort is defined and reasoning_effort else 'high' -%}
{%- if effort == 'high' -%}{{- effort_high -}}{%- elif effort == 'max' -%}{{- effort_max -}}{%- endif -%}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' or message['role'] == 'developer' -%}
{%- if state.systems > 0 -%}{{- '\n\n' -}}{%- endif -%}
{{- message['content'] or '' -}}
{%- set state.systems = state.systems + 1 -%}
{%- endif -%}
{%- endfor -%}
{{- extras() -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' or message['role'] == 'tool' -%}
{%- if state.in_user -%}{{- '\n\n' -}}{%- else -%}{{- user -}}{%- endif -%}
{%- set state.in_user = true -%}
{%- if message['role'] == 'tool' -%}
{{- '<tool_result>' + (message['content'] or '') + '</tool_result>' -}}
{%- else -%}
{{- message['content'] or '' -}}
{%- endif -%}
{%- elif message['role'] == 'latest_reminder' -%}
{%- set state.in_user = false -%}
{{- reminder + (message['content'] or '') -}}
{%- elif message['role'] == 'assistant' -%}
{%- set state.in_user = false -%}
{{- assistant -}}
{%- if thinks and (has_tools or (loop.index0 > state.last and not opens)) -%}
{{- think + (message['reasoning_content'] or '') -}}
{%- endif -%}
{{- think_end + (message['content'] or '') -}}
{%- if message['tool_calls'] -%}{{- calls(message) -}}{%- endif -%}
{%- if not message['prefix'] -%}{{- eos -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if opens -%}{{- assistant -}}{%- if thinks -%}{{- think -}}{%- else -%}{{- think_end -}}{%- endif -%}{%- endif -%}
)jinja";

constexpr const char* kV32 = R"jinja({%- set state = namespace(last=-1, open=false, in_results=false) -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' or message['role'] == 'developer' -%}{%- set state.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{{- bos -}}
{%- if messages and messages[0]['role'] != 'system' and messages[0]['role'] != 'developer' -%}{{- extras() -}}{%- endif -%}
{%- for message in messages -%}
{%- set answers = not loop.last or opens -%}
{%- if message['role'] == 'system' -%}
{{- message['content'] or '' -}}
{%- if loop.first -%}{{- extras() -}}{%- endif -%}
{%- elif message['role'] == 'user' or (message['role'] == 'developer' and (not thinks or loop.index0 == state.last)) -%}
{{- user -}}
{%- if message['role'] == 'developer' -%}
{%- if loop.first -%}{{- extras() -}}{%- endif -%}
{{- '\n\n# The user\'s message is: ' -}}
{%- endif -%}
{{- message['content'] or '' -}}
{%- set state.open = true -%}
{%- if answers -%}
{{- assistant -}}
{%- if thinks and loop.index0 == state.last -%}{{- think -}}{%- else -%}{{- think_end -}}{%- endif -%}
{%- endif -%}
{%- elif message['role'] == 'tool' -%}
{%- if not state.in_results -%}{{- '\n\n<function_results>' -}}{%- endif -%}
{%- set state.in_results = true -%}
{{- '\n<result>' + (message['content'] or '') + '</result>' -}}
{%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' -%}
{{- '\n</function_results>' -}}
{%- set state.in_results = false -%}
{%- set state.open = true -%}
{%- if answers -%}
{{- '\n\n' -}}
{%- if thinks and loop.index0 > state.last -%}{{- think -}}{%- else -%}{{- think_end -}}{%- endif -%}
{%- endif -%}
{%- endif -%}
{%- elif message['role'] == 'assistant' -%}
{%- if thinks and loop.index0 > state.last -%}{{- (message['reasoning_content'] or '') + think_end -}}{%- endif -%}
{{- message['content'] or '' -}}
{%- if message['tool_calls'] -%}{{- calls(message) -}}{%- endif -%}
{%- if not message['prefix'] -%}{{- eos -}}{%- endif -%}
{%- set state.open = false -%}
{%- endif -%}
{%- endfor -%}
{%- if opens and not state.open -%}
{{- assistant -}}{%- if thinks -%}{{- think -}}{%- else -%}{{- think_end -}}{%- endif -%}
{%- endif -%}
)jinja";

}  // namespace

std::string chat_template_of(ChatGeneration generation) {
  if (generation != ChatGeneration::kV32 && generation != ChatGeneration::kV4) return {};
  const bool is_v4 = generation == ChatGeneration::kV4;
  const std::string texts = constants({{"dsml_token", kDsml},
                                       {"block", is_v4 ? "tool_calls" : "function_calls"},
                                       {"no_arguments", is_v4 ? "" : "\n"},
                                       {"tools_head", is_v4 ? kToolsHeadV4 : kToolsHeadV32},
                                       {"tools_tail", is_v4 ? kToolsTailV4 : kToolsTailV32},
                                       {"response_head", kResponseFormat},
                                       {"bos", kBos},
                                       {"eos", kEos},
                                       {"user", kUser},
                                       {"assistant", kAssistant},
                                       {"think", kThink},
                                       {"think_end", kThinkEnd}});
  const std::string of_v4 =
      is_v4 ? constants({{"effort_high", kEffortHighV4}, {"effort_max", kEffortMaxV4}, {"reminder", kLatestReminder}})
            : "";
  const std::string unasked = std::string("{%- set thinks_unasked = ") + (is_v4 ? "true" : "false") + " -%}\n";
  return texts + of_v4 + unasked + kBegin + (is_v4 ? kV4 : kV32);
}

}  // namespace fathom
