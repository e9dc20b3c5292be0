#include "text/pretokenize.h"

#include <doctest/doctest.h>

#include <random>
#include <string>
#include <vector>

#include "core/error.h"

using namespace fathom;
using Pieces = std::vector<std::string>;

namespace {

Pieces pieces(PreTokenizer rules, std::string_view text) {
  Pieces result;
  split_pieces(rules, text, [&](std::string_view piece) { result.emplace_back(piece); });
  return result;
}

Pieces v3(std::string_view text) { return pieces(PreTokenizer::kDeepSeekV3, text); }
Pieces llm(std::string_view text) { return pieces(PreTokenizer::kDeepSeekLlm, text); }
Pieces coder(std::string_view text) { return pieces(PreTokenizer::kDeepSeekCoder, text); }

}  // namespace

TEST_CASE("names of pre-tokenizers") {
  CHECK(pre_tokenizer_from_name("deepseek-llm") == PreTokenizer::kDeepSeekLlm);
  CHECK(pre_tokenizer_from_name("deepseek-coder") == PreTokenizer::kDeepSeekCoder);
  CHECK(pre_tokenizer_from_name("deepseek-v3") == PreTokenizer::kDeepSeekV3);
  CHECK(pre_tokenizer_from_name("joyai-llm") == PreTokenizer::kDeepSeekV3);
}

TEST_CASE("an unknown pre-tokenizer is refused by name, never guessed") {
  for (const char* name : {"", "default", "deepseek-r1-qwen", "llama-bpe", "DeepSeek-V3"}) {
    try {
      pre_tokenizer_from_name(name);
      FAIL("accepted " << name);
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kModel);
      CHECK(std::string(error.what()).find("'" + std::string(name) + "'") != std::string::npos);
    }
  }
}

TEST_CASE("deepseek-v3: words, numbers by three, scripts") {
  CHECK(v3("Hello world, 12345!") == Pieces{"Hello", " world", ",", " ", "123", "45", "!"});
  CHECK(v3("don't .net") == Pieces{"don", "'t", " .", "net"});
  CHECK(v3("日本語カナ abc") == Pieces{"日本語カナ", " abc"});
  CHECK(v3("e\u0301\u0302x") == Pieces{"e\u0301\u0302x"});
  CHECK(v3("\u0301") == Pieces{"\u0301"});
  CHECK(v3("!!\r\n\nx") == Pieces{"!!\r\n\n", "x"});
}

TEST_CASE("deepseek-v3: white space") {
  CHECK(v3("a   b") == Pieces{"a", "  ", " b"});
  CHECK(v3("a   ") == Pieces{"a", "   "});
  CHECK(v3("a \n \n  b") == Pieces{"a", " \n \n", " ", " b"});
  CHECK(v3("a  1") == Pieces{"a", "  ", "1"});
  CHECK(v3("\t\tx") == Pieces{"\t", "\tx"});
  CHECK(v3(" \u200D\u200D") == Pieces{" ", "\u200D\u200D"});
  CHECK(v3("\u00A0word") == Pieces{"\u00A0word"});
}

TEST_CASE("deepseek-llm: later rules split what earlier ones matched") {
  CHECK(llm("caf\u00E9") == Pieces{"caf", "\u00E9"});
  CHECK(llm("a b  12 \n") == Pieces{"a", " b", "  ", "1", "2", " ", "\n"});
  CHECK(llm("x 你好") == Pieces{"x", " ", "你好"});
}

TEST_CASE("deepseek-coder: letters of any script, single digits and newlines") {
  CHECK(coder("if x==42:\r\n") == Pieces{"if", " x", "==", "4", "2", ":", "\r", "\n"});
  CHECK(coder("a  b") == Pieces{"a", " ", " b"});
  CHECK(coder("\u3042\u3044 !") == Pieces{"\u3042\u3044", " !"});
}

TEST_CASE("no text, no pieces") {
  CHECK(v3("").empty());
  CHECK(llm("").empty());
  CHECK(coder("").empty());
}

TEST_CASE("pieces are never empty and join to the text, whatever its bytes") {
  std::mt19937 random(11);
  const Pieces alphabet = {" ",    "\n",       "\r",           "\t", "a",  "Z", "7",
                           ".",    "\u00A0",   "\u0301",       "你", "カ", "😀", "\u200D",
                           "\xFF", "\xE4\xBD", "\xED\xA0\x80", "é"};
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (uint32_t i = random() % 20; i > 0; --i) text += alphabet[random() % alphabet.size()];
    for (PreTokenizer rules : {PreTokenizer::kDeepSeekLlm, PreTokenizer::kDeepSeekCoder, PreTokenizer::kDeepSeekV3}) {
      std::string joined;
      for (const std::string& piece : pieces(rules, text)) {
        CHECK_FALSE(piece.empty());
        joined += piece;
      }
      CAPTURE(round);
      CHECK(joined == text);
    }
  }
}
