#include "server/schema_grammar.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "core/error.h"
#include "server/json_fields.h"

using namespace fathom;

namespace {

/// A vocabulary of all bytes and some longer tokens.
struct Tokens {
  std::vector<std::string> texts;
  std::shared_ptr<const TokenTrie> trie;

  Tokens() {
    for (int b = 0; b < 256; ++b) texts.emplace_back(1, static_cast<char>(b));
    for (const char* text : {"{\"", "\":", "\": ", "\"}", "true", "false", "null", "[[", "]]", "10", "aa", "\"a\"",
                             ", ", "},", "é", "\xF0\x9F"})
      texts.emplace_back(text);
    std::vector<TokenTrie::Token> tokens;
    for (size_t i = 0; i < texts.size(); ++i) tokens.push_back({texts[i], static_cast<int32_t>(i)});
    trie = std::make_shared<TokenTrie>(std::move(tokens), texts.size());
  }
};

const Tokens& tokens() {
  static const Tokens all;
  return all;
}

std::shared_ptr<const ByteGrammar> grammar_of(const std::string& schema) {
  auto grammar = std::make_shared<ByteGrammar>();
  SchemaGrammar schemas(*grammar);
  const ChatJson json = ChatJson::parse(schema);
  grammar->start = schemas.value(json, "schema");
  return grammar;
}

bool fits(const std::string& schema, const std::string& text) {
  GrammarMatcher matcher(grammar_of(schema), tokens().trie);
  for (const char c : text) {
    if (!matcher.accept(static_cast<uint8_t>(c), std::string_view(&c, 1))) return false;
  }
  return matcher.may_end();
}

bool refused(const std::string& schema) {
  try {
    grammar_of(schema);
    return false;
  } catch (const Error& error) {
    return error.code() == ErrorCode::kUsage;
  }
}

}  // namespace

TEST_CASE("values of each type") {
  CHECK(fits(R"({"type":"integer"})", "-120"));
  CHECK(fits(R"({"type":"integer"})", "0"));
  for (const char* bad : {"", "-", "01", "1.5", "1e3", "+1", "true"}) CHECK_FALSE(fits(R"({"type":"integer"})", bad));
  for (const char* good : {"0", "-1.50", "1e9", "12.5E-3"}) CHECK(fits(R"({"type":"number"})", good));
  for (const char* bad : {".5", "1.", "1e", "NaN", "--1"}) CHECK_FALSE(fits(R"({"type":"number"})", bad));
  CHECK(fits(R"({"type":["null","boolean"]})", "null"));
  CHECK(fits(R"({"type":["null","boolean"]})", "false"));
  CHECK_FALSE(fits(R"({"type":["null","boolean"]})", "\"a\""));
}

TEST_CASE("strings are UTF-8 with proper escapes") {
  for (const char* good : {"\"\"", "\"é😀\"", R"("a\n\"\\\/")", R"("\u00e9\uD83D\uDE00")"})
    CHECK(fits(R"({"type":"string"})", good));
  for (const char* bad :
       {"\"", "\"a\nb\"", "\"\xC3\"", "\"\xC0\x80\"", "\"\xED\xA0\x80\"", R"("\x")", R"("\uD83D")", R"("\uDE00")"})
    CHECK_FALSE(fits(R"({"type":"string"})", bad));
  const char* bounded = R"({"type":"string","minLength":2,"maxLength":3})";
  CHECK_FALSE(fits(bounded, "\"a\""));
  CHECK(fits(bounded, "\"éé\""));
  CHECK(fits(bounded, "\"abc\""));
  CHECK_FALSE(fits(bounded, "\"abcd\""));
}

TEST_CASE("objects keep to their properties") {
  const char* schema =
      R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"boolean"},"c":{"const":"x"}},"required":["b"],"additionalProperties":false})";
  for (const char* good :
       {R"({"b":true})", R"({"a": 1, "b": false})", R"({"b":true,"c":"x"})", "{\n  \"a\": 1,\n  \"b\": true\n}"})
    CHECK(fits(schema, good));
  for (const char* bad : {"{}", R"({"a":1})", R"({"b":true,})", R"({"b":true "c":"x"})", R"({,"b":true})",
                          R"({"b":true,"d":1})", R"({"b":true,"c":"y"})", R"({"b":1})"})
    CHECK_FALSE(fits(schema, bad));
  CHECK(fits(R"({"type":"object","additionalProperties":{"type":"integer"}})", R"({"x":1,"y":2})"));
  CHECK_FALSE(fits(R"({"type":"object","additionalProperties":{"type":"integer"}})", R"({"x":"1"})"));
  CHECK(fits(R"({"type":"object","additionalProperties":false})", "{}"));
  CHECK(fits(R"({"type":"object","required":["z"]})", R"({"z":[1,{"a":null}]})"));
  CHECK_FALSE(fits(R"({"type":"object","required":["z"]})", "{}"));
}

TEST_CASE("arrays keep to their counts") {
  CHECK(fits(R"({"type":"array"})", "[1, \"a\", []]"));
  const char* schema = R"({"type":"array","items":{"type":"integer"},"minItems":1,"maxItems":3})";
  CHECK_FALSE(fits(schema, "[]"));
  CHECK(fits(schema, "[1]"));
  CHECK(fits(schema, "[1,2,3]"));
  CHECK_FALSE(fits(schema, "[1,2,3,4]"));
  CHECK_FALSE(fits(schema, "[,1]"));
  const char* least = R"({"type":"array","items":{"type":"integer"},"minItems":2})";
  CHECK_FALSE(fits(least, "[1]"));
  CHECK(fits(least, "[1,2,3,4,5]"));
  const char* tuple = R"({"type":"array","prefixItems":[{"type":"integer"},{"type":"boolean"}],"items":false})";
  CHECK(fits(tuple, "[1,true]"));
  CHECK_FALSE(fits(tuple, "[true]"));
  CHECK_FALSE(fits(tuple, "[1,true,1]"));
}

TEST_CASE("schemas may contain themselves") {
  const char* tree =
      R"({"$ref":"#/$defs/node","$defs":{"node":{"type":"object","properties":{"v":{"type":"integer"},"kids":{"type":"array","items":{"$ref":"#/$defs/node"}}},"required":["v"]}}})";
  CHECK(fits(tree, R"({"v":1,"kids":[{"v":2},{"v":3,"kids":[]}]})"));
  CHECK_FALSE(fits(tree, R"({"v":1,"kids":[{}]})"));
}

TEST_CASE("what cannot be kept to is refused") {
  for (const char* bad :
       {R"({"type":"string","pattern":"(a+)+b"})", R"({"type":"integer","minimum":3})",
        R"({"oneOf":[{"type":"null"}]})", R"({"not":{}})", R"({"type":"thing"})", R"({"type":1})", "5",
        R"({"$ref":"http://x/y"})", R"({"$ref":"#/$defs/none"})", R"({"$ref":"#"})",
        R"({"$ref":"#/$defs/a","$defs":{"a":{"anyOf":[{"$ref":"#/$defs/b"}]},"b":{"$ref":"#/$defs/a"}}})",
        R"({"enum":[]})", R"({"type":"array","minItems":1000000000})", R"({"type":"array","minItems":3,"maxItems":2})",
        R"({"type":"object","required":["a"],"additionalProperties":false})",
        R"({"type":"object","properties":{"a":5}})", R"({"type":"string","format":"date"})"}) {
    CAPTURE(bad);
    CHECK(refused(bad));
  }
  std::string deep = R"({"type":"integer"})";
  for (int i = 0; i < 60; ++i) deep = R"({"type":"array","items":)" + deep + "}";
  CHECK(refused(deep));
  std::string wide =
      R"({"type":"array","maxItems":1000,"items":{"type":"array","maxItems":1000,"items":{"type":"string","maxLength":1000}}})";
  CHECK_FALSE(refused(wide));
}

TEST_CASE("every walk along allowed tokens ends in JSON that fits") {
  // Texts drawn at random by the masks: never stuck, and at the end JSON. Ends are taken as soon as they are allowed.
  std::mt19937 random(11);
  for (
      const char* schema :
      {R"({"type":"object"})",
       R"({"type":"object","properties":{"a":{"type":"string","maxLength":5},"b":{"type":"array","items":{"enum":[1,"x",null]},"maxItems":3}},"required":["a","b"]})",
       R"({"anyOf":[{"type":"number"},{"type":"array","items":{"type":"boolean"},"minItems":2}]})"}) {
    const auto grammar = grammar_of(schema);
    for (int round = 0; round < 50; ++round) {
      GrammarMatcher matcher(grammar, tokens().trie);
      std::string text;
      for (int n = 0; n < 4000 && !matcher.may_end(); ++n) {
        const auto mask = matcher.allowed();
        REQUIRE(mask.has_value());
        std::vector<int32_t> choices;
        for (size_t id = 0; id < tokens().texts.size(); ++id) {
          if (((*mask)[id / 64] >> (id % 64)) & 1) choices.push_back(static_cast<int32_t>(id));
        }
        REQUIRE_FALSE(choices.empty());
        // Quotes and closing brackets often, so that strings and lists end.
        int32_t id = choices[random() % choices.size()];
        for (const int32_t closing : {'"', '}', ']'}) {
          if (random() % 3 == 0 && std::find(choices.begin(), choices.end(), closing) != choices.end()) id = closing;
        }
        REQUIRE(matcher.accept(id, tokens().texts[static_cast<size_t>(id)]));
        text += tokens().texts[static_cast<size_t>(id)];
      }
      CAPTURE(text);
      REQUIRE(matcher.may_end());
      CHECK(ChatJson::accept(text));
    }
  }
}

TEST_CASE("markers are tokens of their own, and behind 'anything' nothing is forbidden") {
  auto grammar = std::make_shared<ByteGrammar>();
  grammar->start = grammar->add_rule();
  ByteGrammar::Row row;
  grammar->append_literal(row, "ab");
  row.push_back(ByteGrammar::token(7));
  row.push_back(ByteGrammar::anything());
  grammar->add_alternative(grammar->start, row);
  GrammarMatcher matcher(grammar, tokens().trie);
  CHECK_FALSE(matcher.accept(7, "<x>"));
  CHECK(matcher.accept('a', "a"));
  CHECK(matcher.accept('b', "b"));
  const auto mask = matcher.allowed();
  REQUIRE(mask.has_value());
  CHECK((*mask)[0] == uint64_t{1} << 7);
  CHECK(matcher.accept(7, "<x>"));
  CHECK_FALSE(matcher.allowed().has_value());
  CHECK(matcher.accept(3, "whatever"));
}
