#include "server/call_grammar.h"

#include <algorithm>
#include <cctype>
#include <set>
#include <string>

#include "core/error.h"
#include "core/printable.h"
#include "server/json_fields.h"
#include "server/schema_grammar.h"

namespace fathom {
namespace {

using Row = ByteGrammar::Row;
using RuleId = ByteGrammar::RuleId;

void append_parts(ByteGrammar& grammar, Row& row, const std::vector<PromptPart>& parts, const MarkerToken& token_of) {
  for (const PromptPart& part : parts) {
    const std::optional<int32_t> marker = part.special ? token_of(part.text) : std::nullopt;
    if (marker)
      row.push_back(ByteGrammar::token(*marker));
    else
      grammar.append_literal(row, part.text);
  }
}

/// Arguments as ｜DSML｜ elements, in the order of the schema. A value that the schema calls a text stands there as it
/// is, marked string="true"; all others are JSON.
class DsmlArguments {
 public:
  DsmlArguments(ByteGrammar& grammar, SchemaGrammar& schemas, const ForcedCall& call, const MarkerToken& token_of)
      : g_(grammar), schemas_(schemas), call_(call), token_of_(token_of), text_(add_text()) {}

  /// Throws Error{kUsage} if the schema cannot be kept to.
  RuleId fitting(const ChatJson& parameters, const std::string& where) {
    const Fields fields(parameters, where);
    const std::vector<std::string> required = fields.texts("required");
    std::set<std::string> needed(required.begin(), required.end());
    std::vector<std::pair<std::vector<Row>, bool>> members;
    if (const std::optional<Fields> properties = fields.object("properties")) {
      for (const auto& [name, schema] : properties->value().items()) {
        members.emplace_back(elements(name, schema, parameters, properties->path(name)), needed.contains(name));
        needed.erase(name);
      }
    }
    for (const std::string& name : needed)
      members.emplace_back(elements(name, ChatJson(true), parameters, fields.path("required")), true);
    if (members.empty()) return any();
    RuleId rest = rule_of({{}});
    for (size_t i = members.size(); i-- > 0;) {
      const RuleId with = g_.add_rule();
      for (Row row : members[i].first) {
        row.push_back(ByteGrammar::rule(rest));
        g_.add_alternative(with, row);
      }
      if (!members[i].second) g_.add_alternative(with, {ByteGrammar::rule(rest)});
      rest = with;
    }
    return rest;
  }

  /// Elements of any name and kind.
  RuleId any() {
    ByteSet letters;
    for (int c = 0; c < 128; ++c) letters[static_cast<size_t>(c)] = std::isalnum(c) || c == '_' || c == '-' || c == '.';
    const RuleId name = g_.add_rule(), all = g_.add_rule();
    const ByteGrammar::Symbol letter = g_.bytes(letters);
    g_.add_alternative(name, {letter, ByteGrammar::rule(name)});
    g_.add_alternative(name, {letter});
    Row begin;
    append_parts(g_, begin, call_.argument_begin, token_of_);
    begin.push_back(ByteGrammar::rule(name));
    for (Row row : {text_element(begin), json_element(begin, schemas_.value(ChatJson(true), "arguments"))}) {
      row.push_back(ByteGrammar::rule(all));
      g_.add_alternative(all, row);
    }
    g_.add_alternative(all, {});
    return all;
  }

 private:
  RuleId rule_of(const std::vector<Row>& rows) {
    const RuleId rule = g_.add_rule();
    for (const Row& row : rows) g_.add_alternative(rule, row);
    return rule;
  }

  /// Any text up to the first argument_end, and that.
  RuleId add_text() {
    ByteSet all;
    all.set();
    const RuleId text = g_.add_rule();
    const bool ends_by_token = std::any_of(call_.argument_end.begin(), call_.argument_end.end(), [&](const auto& part) {
      return part.special && token_of_(part.text).has_value();
    });
    if (ends_by_token) {  // no text can contain it
      g_.add_alternative(text, {g_.bytes(all), ByteGrammar::rule(text)});
      Row end;
      append_parts(g_, end, call_.argument_end, token_of_);
      g_.add_alternative(text, end);
      return text;
    }
    std::string end;
    for (const PromptPart& part : call_.argument_end) end += part.text;
    // A rule for each number of its bytes that were just read. Its first byte comes once: whatever does not go on
    // begins anew, with one byte read or none.
    if (end.empty()) return text;
    FATHOM_CHECK(end.find(end[0], 1) == std::string::npos, "the end of an argument cannot overlap itself");
    std::vector<RuleId> read = {text};
    for (size_t i = 1; i < end.size(); ++i) read.push_back(g_.add_rule());
    const auto first = static_cast<uint8_t>(end[0]);
    for (size_t i = 0; i < end.size(); ++i) {
      const auto next = static_cast<uint8_t>(end[i]);
      ByteSet others = all;
      others.reset(next).reset(first);
      g_.add_alternative(read[i], {g_.bytes(others), ByteGrammar::rule(text)});
      if (i > 0) g_.add_alternative(read[i], {g_.byte(end[0]), ByteGrammar::rule(read[1])});
      Row goes_on = {g_.byte(end[i])};
      if (i + 1 < end.size()) goes_on.push_back(ByteGrammar::rule(read[i + 1]));
      g_.add_alternative(read[i], goes_on);
    }
    return text;
  }

  Row text_element(Row row) {
    g_.append_literal(row, "\" string=\"true\">");
    row.push_back(ByteGrammar::rule(text_));
    return row;
  }

  Row json_element(Row row, RuleId value) {
    g_.append_literal(row, "\" string=\"false\">");
    row.push_back(ByteGrammar::rule(value));
    append_parts(g_, row, call_.argument_end, token_of_);
    return row;
  }

  /// The ways to write one argument.
  std::vector<Row> elements(const std::string& name, const ChatJson& schema, const ChatJson& parameters,
                            const std::string& where) {
    if (name.empty() || name.find('"') != std::string::npos)
      refuse_field(where, "the name " + in_quotes(name) + " cannot be written in a call");
    Row begin;
    append_parts(g_, begin, call_.argument_begin, token_of_);
    g_.append_literal(begin, name);
    ChatJson whole = schema;
    for (const char* key : {"$defs", "definitions"}) {
      if (whole.is_object() && parameters.contains(key)) whole[key] = parameters[key];
    }
    const RuleId value = schemas_.value(whole, where);  // also refuses what cannot be kept to
    if (!schema.is_object()) return {text_element(begin), json_element(begin, value)};
    std::vector<std::string> texts;
    if (schema.contains("const")) {
      if (schema["const"].is_string()) texts.push_back(schema["const"]);
    } else if (schema.contains("enum")) {
      for (const ChatJson& one : schema["enum"]) {
        if (one.is_string()) texts.push_back(one);
      }
      if (texts.size() < schema["enum"].size()) texts.clear();
    } else if (schema.contains("type") && schema["type"] == "string" && !schema.contains("minLength") &&
               !schema.contains("maxLength")) {
      return {text_element(begin)};
    }
    if (texts.empty()) return {json_element(begin, value)};
    std::vector<Row> rows;
    for (const std::string& text : texts) {
      Row& row = rows.emplace_back(begin);
      g_.append_literal(row, "\" string=\"true\">" + text);
      append_parts(g_, row, call_.argument_end, token_of_);
    }
    return rows;
  }

  ByteGrammar& g_;
  SchemaGrammar& schemas_;
  const ForcedCall& call_;
  const MarkerToken& token_of_;
  const RuleId text_;
};

}  // namespace

std::shared_ptr<const ByteGrammar> make_call_grammar(const ForcedCall& call, const ChatTool* named,
                                                     const std::vector<ChatTool>& tools, const MarkerToken& token_of) {
  auto grammar = std::make_shared<ByteGrammar>();
  SchemaGrammar schemas(*grammar);
  std::optional<DsmlArguments> elements;
  if (call.syntax == ToolSyntax::kDsml) elements.emplace(*grammar, schemas, call, token_of);
  grammar->start = grammar->add_rule();
  for (const ChatTool& tool : tools) {
    if (named != nullptr && named != &tool && named->name != tool.name) continue;
    Row row;
    if (!call.names_tool) {
      grammar->append_literal(row, tool.name);
      append_parts(*grammar, row, call.name_end, token_of);
    }
    const auto strict = tool.function.find("strict");
    const bool must_fit = strict != tool.function.end() && strict->is_boolean() && strict->get<bool>();
    const auto any = [&] { return elements ? elements->any() : schemas.any_object(); };
    RuleId arguments{};
    try {
      const std::string where = "tools." + tool.name + ".parameters";
      arguments = !tool.parameters.contains("type") ? any()
                  : elements                        ? elements->fitting(tool.parameters, where)
                                                    : schemas.value(tool.parameters, where);
    } catch (const Error&) {
      if (must_fit) throw;
      arguments = any();
    }
    row.push_back(ByteGrammar::rule(arguments));
    append_parts(*grammar, row, call.closing, token_of);
    grammar->add_alternative(grammar->start, row);
  }
  return grammar;
}

}  // namespace fathom
