#include "server/schema_grammar.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <vector>

#include "core/printable.h"
#include "server/json_fields.h"

namespace fathom {
namespace {

constexpr size_t kMaxSymbols = 200000;
constexpr size_t kMaxEnum = 1024;
constexpr int64_t kMaxRepeats = 1024;  // of what minItems and the like spell out
constexpr int kMaxSchemaDepth = 48;

/// Keywords that say nothing about which values fit.
const std::set<std::string, std::less<>> kDescriptions = {
    "title",    "description", "default", "examples",    "example", "$schema", "$id",     "$comment",     "deprecated",
    "readOnly", "writeOnly",   "$defs",   "definitions", "strict",  "name",    "$anchor", "discriminator"};

}  // namespace

SchemaGrammar::SchemaGrammar(ByteGrammar& grammar) : g_(grammar) {
  add_space();
  add_strings();
  add_numbers();
  boolean_ = one_of({literal("true"), literal("false")});
  null_ = one_of({literal("null")});
  add_any_value();
}

SchemaGrammar::Row SchemaGrammar::literal(std::string_view text) {
  Row row;
  g_.append_literal(row, text);
  return row;
}

SchemaGrammar::RuleId SchemaGrammar::one_of(std::initializer_list<Row> rows) {
  const RuleId rule = g_.add_rule();
  for (const Row& row : rows) g_.add_alternative(rule, row);
  return rule;
}

SchemaGrammar::RuleId SchemaGrammar::optional(const Row& row) { return one_of({row, {}}); }

/// Any number of times. The row must not be empty.
SchemaGrammar::RuleId SchemaGrammar::repeated(const Row& row) {
  const RuleId rule = g_.add_rule();
  Row more = row;
  more.push_back(ByteGrammar::rule(rule));
  g_.add_alternative(rule, more);
  g_.add_alternative(rule, {});
  return rule;
}

void SchemaGrammar::add_space() {
  constexpr int kMaxIndentation = 16;
  RuleId indentation = one_of({{}});
  for (int i = 0; i < kMaxIndentation; ++i) indentation = optional({g_.byte(' '), ByteGrammar::rule(indentation)});
  space_ = one_of({{}, literal(" "), {g_.byte('\n'), ByteGrammar::rule(indentation)}});
}

/// Characters of a string: UTF-8 without control characters (Unicode 16.0, table 3-7), and escapes without lone
/// surrogates.
void SchemaGrammar::add_strings() {
  ByteSet plain, hex, hex_but_d, simple;
  for (int c = 0x20; c < 0x80; ++c) {
    if (c != '"' && c != '\\') plain.set(static_cast<size_t>(c));
  }
  for (const char c : std::string_view("0123456789abcdefABCDEF")) hex.set(static_cast<uint8_t>(c));
  hex_but_d = hex;
  hex_but_d.reset('d').reset('D');
  for (const char c : std::string_view("\"\\/bfnrt")) simple.set(static_cast<uint8_t>(c));
  const Symbol any_hex = g_.bytes(hex), tail = g_.range(0x80, 0xBF), slash = g_.byte('\\'), u = g_.byte('u');
  const auto either = [&](std::string_view letters) {
    ByteSet set;
    for (const char c : letters) set.set(static_cast<uint8_t>(c));
    return g_.bytes(set);
  };
  const Symbol d = either("dD");
  char_ = one_of({
      {g_.bytes(plain)},
      {g_.range(0xC2, 0xDF), tail},
      {g_.range(0xE0, 0xE0), g_.range(0xA0, 0xBF), tail},
      {g_.range(0xE1, 0xEC), tail, tail},
      {g_.range(0xED, 0xED), g_.range(0x80, 0x9F), tail},
      {g_.range(0xEE, 0xEF), tail, tail},
      {g_.range(0xF0, 0xF0), g_.range(0x90, 0xBF), tail, tail},
      {g_.range(0xF1, 0xF3), tail, tail, tail},
      {g_.range(0xF4, 0xF4), g_.range(0x80, 0x8F), tail, tail},
      {slash, g_.bytes(simple)},
      {slash, u, g_.bytes(hex_but_d), any_hex, any_hex, any_hex},
      {slash, u, d, either("01234567"), any_hex, any_hex},
      {slash, u, d, either("89abAB"), any_hex, any_hex, slash, u, d, either("cdefCDEF"), any_hex, any_hex},
  });
  string_ = one_of({{g_.byte('"'), ByteGrammar::rule(repeated({ByteGrammar::rule(char_)})), g_.byte('"')}});
}

void SchemaGrammar::add_numbers() {
  constexpr int kMaxDigits = 15;  // all of them survive in a double
  const Symbol digit = g_.range('0', '9');
  RuleId digits = one_of({{}});
  for (int i = 1; i < kMaxDigits; ++i) digits = optional({digit, ByteGrammar::rule(digits)});
  const Row minus = {ByteGrammar::rule(optional({g_.byte('-')}))};
  const RuleId whole = one_of({{g_.byte('0')}, {g_.range('1', '9'), ByteGrammar::rule(digits)}});
  integer_ = one_of({{minus[0], ByteGrammar::rule(whole)}});
  ByteSet e, sign;
  e.set('e').set('E');
  sign.set('+').set('-');
  const RuleId fraction = optional({g_.byte('.'), digit, ByteGrammar::rule(digits)});
  const RuleId exponent = optional(
      {g_.bytes(e), ByteGrammar::rule(optional({g_.bytes(sign)})), digit, ByteGrammar::rule(optional({digit}))});
  number_ = one_of({{minus[0], ByteGrammar::rule(whole), ByteGrammar::rule(fraction), ByteGrammar::rule(exponent)}});
}

void SchemaGrammar::add_any_value() {
  value_ = g_.add_rule();
  const Symbol value = ByteGrammar::rule(value_), ws = ByteGrammar::rule(space_), comma = g_.byte(',');
  const Row member = {ByteGrammar::rule(string_), ws, g_.byte(':'), ws, value, ws};
  Row next_member = {comma, ws};
  next_member.insert(next_member.end(), member.begin(), member.end());
  Row members = member;
  members.push_back(ByteGrammar::rule(repeated(next_member)));
  object_ = one_of({{g_.byte('{'), ws, ByteGrammar::rule(optional(members)), g_.byte('}')}});
  const Row items = {value, ws, ByteGrammar::rule(repeated({comma, ws, value, ws}))};
  array_ = one_of({{g_.byte('['), ws, ByteGrammar::rule(optional(items)), g_.byte(']')}});
  for (const RuleId kind : {object_, array_, string_, number_, boolean_, null_})
    g_.add_alternative(value_, {ByteGrammar::rule(kind)});
}

/// One schema with its definitions.
struct SchemaGrammar::Compiler {
  SchemaGrammar& s;
  ByteGrammar& g;
  const ChatJson& root;
  std::map<std::string, RuleId> references;
  std::set<std::string> open_references;  // not passed a byte since: coming back to one would never end

  [[noreturn]] static void unsupported(const std::string& where, const std::string& what) {
    refuse_field(where, what + "; an answer could not be kept to it");
  }

  RuleId value(const ChatJson& schema, const std::string& where, int depth) {
    if (g.size() > kMaxSymbols) refuse_field(where, "the schema is too large");
    if (depth > kMaxSchemaDepth)
      refuse_field(where,
                   "the schema is nested too deep; expected at most " + std::to_string(kMaxSchemaDepth) + " levels");
    if (schema.is_boolean() && schema.get<bool>()) return s.value_;
    if (!schema.is_object()) refuse_field(where, "expected a schema, got " + std::string(kind_of(schema)));
    const Fields fields(schema, where);
    std::set<std::string, std::less<>> read;  // keywords that are kept
    const RuleId rule = read_schema(fields, where, depth, read);
    for (const auto& [key, ignored] : schema.items()) {
      if (!read.contains(key) && !kDescriptions.contains(key))
        unsupported(fields.path(key), "keyword not supported here");
    }
    return rule;
  }

  RuleId read_schema(const Fields& fields, const std::string& where, int depth,
                     std::set<std::string, std::less<>>& read) {
    const auto has = [&](const char* key) {
      if (!fields.value().contains(key)) return false;
      read.insert(key);
      return true;
    };
    if (has("$ref")) return reference(fields.required_text("$ref"), fields.path("$ref"), depth);
    if (has("const")) {
      has("type");
      return constant(fields.value().at("const"));
    }
    if (has("enum")) {
      has("type");
      return choice(fields, where);
    }
    if (has("anyOf")) return any_of(*fields.list("anyOf"), fields.path("anyOf"), depth);
    if (has("allOf")) {
      const ChatJson* all = fields.list("allOf");
      if (all == nullptr || all->size() != 1) unsupported(fields.path("allOf"), "expected exactly one schema");
      return value(all->front(), fields.path("allOf[0]"), depth + 1);
    }
    if (!has("type")) {
      if (fields.value().contains("properties")) return typed("object", fields, depth, read);
      if (fields.value().contains("items")) return typed("array", fields, depth, read);
      return s.value_;
    }
    const ChatJson& type = fields.value().at("type");
    if (type.is_string()) return typed(type.get<std::string>(), fields, depth, read);
    const RuleId rule = g.add_rule();
    if (!type.is_array() || type.empty()) refuse_field(fields.path("type"), "expected a name or a list of names");
    for (const std::string& name : fields.texts("type"))
      g.add_alternative(rule, {ByteGrammar::rule(typed(name, fields, depth, read))});
    return rule;
  }

  RuleId typed(const std::string& type, const Fields& fields, int depth, std::set<std::string, std::less<>>& read) {
    if (type == "object") return object(fields, depth, read);
    if (type == "array") return array(fields, depth, read);
    if (type == "string") return string(fields, read);
    if (type == "integer") return s.integer_;
    if (type == "number") return s.number_;
    if (type == "boolean") return s.boolean_;
    if (type == "null") return s.null_;
    refuse_field(fields.path("type"),
                 "unknown; expected object, array, string, integer, number, boolean or null, got " + in_quotes(type));
  }

  RuleId constant(const ChatJson& value) { return s.one_of({s.literal(dump_json(value))}); }

  RuleId choice(const Fields& fields, const std::string& where) {
    const ChatJson* values = fields.list("enum");
    if (values == nullptr || values->empty() || values->size() > kMaxEnum)
      refuse_field(where + ".enum", "expected 1 to " + std::to_string(kMaxEnum) + " values");
    const RuleId rule = g.add_rule();
    for (const ChatJson& value : *values) g.add_alternative(rule, s.literal(dump_json(value)));
    return rule;
  }

  RuleId any_of(const ChatJson& list, const std::string& where, int depth) {
    if (list.empty() || list.size() > kMaxEnum)
      refuse_field(where, "expected 1 to " + std::to_string(kMaxEnum) + " schemas");
    const RuleId rule = g.add_rule();
    for (size_t i = 0; i < list.size(); ++i)
      g.add_alternative(rule, {ByteGrammar::rule(value(list[i], where + "[" + std::to_string(i) + "]", depth + 1))});
    return rule;
  }

  RuleId reference(const std::string& target, const std::string& where, int depth) {
    // A rule that is being made is known already: that is how schemas contain themselves, behind a brace or bracket.
    if (open_references.contains(target)) refuse_field(where, "refers to itself without anything between");
    if (const auto known = references.find(target); known != references.end()) return known->second;
    const ChatJson* found = &root;
    if (target != "#") {
      if (!target.starts_with("#/"))
        unsupported(where, "expected a reference inside the schema, as in #/$defs/name, got " + in_quotes(target));
      for (size_t begin = 2; begin <= target.size();) {
        const size_t end = std::min(target.find('/', begin), target.size());
        const auto next = found->is_object() ? found->find(target.substr(begin, end - begin)) : found->end();
        if (!found->is_object() || next == found->end()) refuse_field(where, "nothing is there: " + in_quotes(target));
        found = &*next;
        begin = end + 1;
      }
    }
    const RuleId rule = references[target] = g.add_rule();
    open_references.insert(target);
    g.add_alternative(rule, {ByteGrammar::rule(value(*found, target, depth + 1))});
    open_references.erase(target);
    return rule;
  }

  /// What is inside a brace or bracket may refer to anything again.
  RuleId inner(const ChatJson& schema, const std::string& where, int depth) {
    std::set<std::string> outer;
    outer.swap(open_references);
    const RuleId rule = value(schema, where, depth + 1);
    open_references.swap(outer);
    return rule;
  }

  RuleId object(const Fields& fields, int depth, std::set<std::string, std::less<>>& read) {
    for (const char* key : {"properties", "required", "additionalProperties"}) read.insert(key);
    const std::vector<std::string> required = fields.texts("required");
    const std::set<std::string> is_required(required.begin(), required.end());
    const ChatJson* extra = fields.find("additionalProperties");
    const bool extra_allowed = extra == nullptr || !extra->is_boolean() || extra->get<bool>();
    const std::string extra_where = fields.path("additionalProperties");
    const auto extra_value = [&] {
      return extra == nullptr || extra->is_boolean() ? s.value_ : inner(*extra, extra_where, depth);
    };
    struct Member {
      Row row;
      bool required;
    };
    std::vector<Member> members;
    std::set<std::string> declared;
    const Symbol ws = ByteGrammar::rule(s.space_);
    const auto add_member = [&](const std::string& name, RuleId value, bool needed) {
      Row row = s.literal(dump_json(ChatJson(name)));
      for (const Symbol& symbol : {ws, g.byte(':'), ws, ByteGrammar::rule(value), ws}) row.push_back(symbol);
      members.push_back({std::move(row), needed});
      declared.insert(name);
    };
    if (const std::optional<Fields> properties = fields.object("properties")) {
      for (const auto& [name, schema] : properties->value().items())
        add_member(name, inner(schema, properties->path(name), depth), is_required.contains(name));
    }
    for (const std::string& name : required) {
      if (declared.contains(name)) continue;
      if (!extra_allowed)
        refuse_field(fields.path("required"), "asks for " + in_quotes(name) + ", which the schema does not allow");
      add_member(name, extra_value(), true);
    }
    if (members.empty() && extra_allowed) {
      if (extra == nullptr || extra->is_boolean()) return s.object_;
      const Row member = {ByteGrammar::rule(s.string_), ws, g.byte(':'), ws, ByteGrammar::rule(extra_value()), ws};
      Row next = {g.byte(','), ws};
      next.insert(next.end(), member.begin(), member.end());
      Row all = member;
      all.push_back(ByteGrammar::rule(s.repeated(next)));
      return s.one_of({{g.byte('{'), ws, ByteGrammar::rule(s.optional(all)), g.byte('}')}});
    }
    // From the back: what may follow member i, if nothing or something stands before it.
    RuleId rest_first = s.one_of({{}}), rest = rest_first;
    for (size_t i = members.size(); i-- > 0;) {
      Row first = members[i].row, next = {g.byte(','), ws};
      next.insert(next.end(), members[i].row.begin(), members[i].row.end());
      first.push_back(ByteGrammar::rule(rest));
      next.push_back(ByteGrammar::rule(rest));
      const RuleId with_first = s.one_of({first}), with_next = s.one_of({next});
      if (!members[i].required) {
        g.add_alternative(with_first, {ByteGrammar::rule(rest_first)});
        g.add_alternative(with_next, {ByteGrammar::rule(rest)});
      }
      rest_first = with_first;
      rest = with_next;
    }
    return s.one_of({{g.byte('{'), ws, ByteGrammar::rule(rest_first), g.byte('}')}});
  }

  RuleId array(const Fields& fields, int depth, std::set<std::string, std::less<>>& read) {
    for (const char* key : {"items", "prefixItems", "minItems", "maxItems"}) read.insert(key);
    const int64_t least = fields.integer("minItems", 0, kMaxRepeats).value_or(0);
    const std::optional<int64_t> most = fields.integer("maxItems", 0, kMaxRepeats);
    if (most && *most < least) refuse_field(fields.path("maxItems"), "less than minItems");
    std::vector<RuleId> heads;
    if (const ChatJson* prefix = fields.list("prefixItems")) {
      if (static_cast<int64_t>(prefix->size()) > kMaxRepeats) refuse_field(fields.path("prefixItems"), "too many");
      for (size_t i = 0; i < prefix->size(); ++i)
        heads.push_back(inner((*prefix)[i], fields.path("prefixItems[" + std::to_string(i) + "]"), depth));
    }
    const ChatJson* items = fields.find("items");
    const bool none_behind = items != nullptr && items->is_boolean() && !items->get<bool>();
    const RuleId item = items == nullptr || items->is_boolean() ? s.value_ : inner(*items, fields.path("items"), depth);
    const auto n_heads = static_cast<int64_t>(heads.size());
    if (none_behind && least > n_heads) refuse_field(fields.path("minItems"), "more than the items allowed");
    const Symbol ws = ByteGrammar::rule(s.space_);
    const auto row_of = [&](int64_t i) {
      Row row;
      if (i > 0) row = {g.byte(','), ws};
      row.push_back(ByteGrammar::rule(i < n_heads ? heads[static_cast<size_t>(i)] : item));
      row.push_back(ws);
      return row;
    };
    // Items that are counted are spelled out; behind them any number, if there is no limit.
    const int64_t counted = most ? *most : std::max(least, n_heads);
    const bool endless = !most && !none_behind;
    const int64_t spelled = none_behind ? std::min(counted, n_heads) : counted;
    RuleId tail = s.one_of({{}});
    if (endless) {
      if (spelled > 0) {
        tail = s.repeated(row_of(std::max<int64_t>(spelled, 1)));
      } else {
        Row all = row_of(0);
        all.push_back(ByteGrammar::rule(s.repeated(row_of(1))));
        tail = s.optional(all);
      }
    }
    for (int64_t i = spelled; i-- > 0;) {
      Row row = row_of(i);
      row.push_back(ByteGrammar::rule(tail));
      tail = i < least ? s.one_of({row}) : s.optional(row);
    }
    return s.one_of({{g.byte('['), ws, ByteGrammar::rule(tail), g.byte(']')}});
  }

  RuleId string(const Fields& fields, std::set<std::string, std::less<>>& read) {
    read.insert("minLength");
    read.insert("maxLength");
    const int64_t least = fields.integer("minLength", 0, kMaxRepeats).value_or(0);
    const std::optional<int64_t> most = fields.integer("maxLength", 0, kMaxRepeats);
    if (most && *most < least) refuse_field(fields.path("maxLength"), "less than minLength");
    if (least == 0 && !most) return s.string_;
    const Symbol character = ByteGrammar::rule(s.char_);
    RuleId tail = most ? s.one_of({{}}) : s.repeated({character});
    for (int64_t i = most.value_or(least); i-- > 0;) {
      const Row row = {character, ByteGrammar::rule(tail)};
      tail = i < least ? s.one_of({row}) : s.optional(row);
    }
    return s.one_of({{g.byte('"'), ByteGrammar::rule(tail), g.byte('"')}});
  }
};

ByteGrammar::RuleId SchemaGrammar::value(const ChatJson& schema, const std::string& where) {
  Compiler compiler{*this, g_, schema, {}, {}};
  return compiler.value(schema, where, 0);
}

}  // namespace fathom
