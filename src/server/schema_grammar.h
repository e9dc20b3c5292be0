// JSON schemas as grammars.
#pragma once

#include <string>

#include "sampling/byte_grammar.h"
#include "text/chat_json.h"

namespace fathom {

/// Adds rules for JSON values to a grammar. Every text they allow is JSON that fits the schema; not every fitting text
/// is allowed: members come in the schema's order, members that it does not declare only where it declares none, white
/// space is short, numbers have at most 15 digits in front of the point. So that an answer always ends, nothing but
/// nesting, items and strings is unbounded.
///
/// Keywords: type, properties, required, additionalProperties, items, prefixItems, minItems, maxItems, minLength,
/// maxLength, enum, const, anyOf, $ref to $defs and definitions, allOf with one entry; those that only describe are
/// passed over. Any other keyword throws Error{kUsage}: it could not be kept.
class SchemaGrammar {
 public:
  explicit SchemaGrammar(ByteGrammar& grammar);

  /// A value that fits `schema`; `where` names it in messages. Throws Error{kUsage} for what is not supported,
  /// malformed or too large.
  ByteGrammar::RuleId value(const ChatJson& schema, const std::string& where);
  /// Any JSON object.
  ByteGrammar::RuleId any_object() const { return object_; }
  /// Nothing, a space, or a line break and a little indentation.
  ByteGrammar::RuleId space() const { return space_; }

 private:
  using Row = ByteGrammar::Row;
  using RuleId = ByteGrammar::RuleId;
  using Symbol = ByteGrammar::Symbol;
  struct Compiler;

  void add_space();
  void add_strings();
  void add_numbers();
  void add_any_value();
  RuleId one_of(std::initializer_list<Row> rows);
  Row literal(std::string_view text);
  RuleId optional(const Row& row);
  RuleId repeated(const Row& row);

  ByteGrammar& g_;
  RuleId space_, string_, char_, integer_, number_, boolean_, null_, value_, object_, array_;
};

}  // namespace fathom
