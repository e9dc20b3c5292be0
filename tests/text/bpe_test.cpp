#include "text/bpe.h"

#include <doctest/doctest.h>

#include <random>
#include <thread>

#include "core/error.h"
#include "tokenizer_fixture.h"

using namespace fathom;
using namespace fathom::test;
using Ids = std::vector<int32_t>;
using nlohmann::json;

namespace {

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

std::string text_of(const json& c) {
  if (c.contains("hex")) return from_hex(c["hex"]);
  if (!c.contains("parts")) return c["text"];
  std::string text;
  for (const json& part : c["parts"]) {
    for (int i = 0; i < part[1].get<int>(); ++i) text += part[0].get<std::string>();
  }
  return text;
}

std::string utf8_of(uint32_t c) {
  std::string s;
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
  if (c >= 0x10000) s = {static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 63))};
  if (c < 0x10000) s = {static_cast<char>(0xE0 | c >> 12)};
  return s + static_cast<char>(0x80 | (c >> 6 & 63)) + static_cast<char>(0x80 | (c & 63));
}

}  // namespace

TEST_CASE("ids and decoded text of every reference case") {
  for (const char* name : kTokenizers) {
    const Tokenizer& tok = tokenizer(name);
    int seen = 0;
    for (const json& c : json_lines(std::string(name) + "/cases.jsonl")) {
      if (!c.contains("ids")) continue;
      CAPTURE(std::string(name));
      CAPTURE(c["id"].get<std::string>());
      const std::string text = c["text"];
      const Ids ids = c["ids"];
      CHECK(tok.encode(text, true) == ids);
      CHECK(tok.encode(text, false) == c.value("ids_plain", ids));
      const std::string decoded = c.value("decode", text);
      CHECK(to_valid_utf8(tok.decode(ids)) == decoded);
      CHECK(to_valid_utf8(tok.decode(ids, ControlTokens::kHide)) == c.value("shown", decoded));
      ++seen;
    }
    CHECK(seen > 900);
  }
}

TEST_CASE("long runs of one character") {
  for (const char* name : kTokenizers) {
    for (const json& c : json_lines(std::string(name) + "/cases.jsonl")) {
      if (!c.contains("parts")) continue;
      CAPTURE(std::string(name));
      CAPTURE(c["id"].get<std::string>());
      const std::string text = text_of(c);
      const Ids ids = tokenizer(name).encode(text, true);
      CHECK(ids.size() == c["result"]["count"].get<size_t>());
      CHECK(fnv1a64(ids) == c["result"]["fnv1a64"].get<std::string>());
      CHECK(tokenizer(name).decode(ids) == text);
    }
  }
}

TEST_CASE("ids of random strings") {
  const std::vector<json> texts = json_lines("fuzz.jsonl");
  for (const char* name : kTokenizers) {
    const std::vector<json> expected = json_lines(std::string(name) + "/fuzz_ids.jsonl");
    REQUIRE(expected.size() == texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      CAPTURE(std::string(name));
      CAPTURE(i);
      CHECK(tokenizer(name).encode(texts[i][1].get<std::string>(), true) == expected[i][1].get<Ids>());
    }
  }
}

TEST_CASE("every code point splits as in the reference") {
  for (const char* name : kTokenizers) {
    for (const json& block : json_lines(std::string(name) + "/codepoints.jsonl")) {
      const auto first = static_cast<uint32_t>(std::stoul(block[0].get<std::string>(), nullptr, 16));
      std::string text;
      for (uint32_t c = first; c < first + 1024; ++c) {
        if (c >= 0xD800 && c <= 0xDFFF) continue;
        const std::string u = utf8_of(c);
        text += u + "a " + u + "1" + u + "." + u + "\n";
      }
      const Ids ids = tokenizer(name).encode(text, false);
      CAPTURE(std::string(name));
      CAPTURE(block[0].get<std::string>());
      CHECK(ids.size() == block[1].get<size_t>());
      CHECK(fnv1a64(ids) == block[2].get<std::string>());
    }
  }
}

TEST_CASE("bytes that are not UTF-8 come back, and read as U+FFFD") {
  for (const char* name : kTokenizers) {
    for (const json& c : json_lines(std::string(name) + "/cases.jsonl")) {
      if (!c.contains("hex")) continue;
      CAPTURE(std::string(name));
      CAPTURE(c["hex"].get<std::string>());
      const std::string bytes = text_of(c), decoded = tokenizer(name).decode(tokenizer(name).encode(bytes, true));
      CHECK(to_valid_utf8(decoded) == c["decode"].get<std::string>());
      if (name == std::string("deepseek-v3")) CHECK(decoded == bytes);
    }
  }
}

TEST_CASE("any bytes survive encode and decode") {
  std::mt19937 random(7);
  const std::string spice[] = {" ",       "\n", "\r\n", "\t", "a", "Z",        "9", "<",
                               "<think>", "｜", "你",   "😀",  "é", "\xCC\x81", "ø"};
  for (const char* name : kTokenizers) {
    const Tokenizer& tok = tokenizer(name);
    const bool has_all_bytes = tok.vocab().byte_token(0xFF).has_value();
    CHECK(has_all_bytes == (name == std::string("deepseek-v3")));
    for (int round = 0; round < 500; ++round) {
      std::string text;
      while (text.size() < random() % 200) {
        const auto byte = static_cast<uint8_t>(random());
        if (random() % 2) text += spice[random() % std::size(spice)];
        if (tok.vocab().byte_token(byte)) text += static_cast<char>(byte);
      }
      CAPTURE(std::string(name));
      CAPTURE(round);
      CHECK(tok.decode(tok.encode(text, false)) == text);
      CHECK(tok.decode(tok.encode(text, true)) == text);
    }
  }
}

TEST_CASE("a byte without a token is encoded as U+FFFD") {
  const Tokenizer& tok = tokenizer("deepseek-llm");
  REQUIRE_FALSE(tok.vocab().byte_token(0xF8));
  CHECK(tok.decode(tok.encode("a\xF8z", true)) == "a\uFFFDz");
}

TEST_CASE("added tokens match in special parts alone") {
  const Tokenizer& tok = tokenizer("deepseek-v3");
  const int32_t user = *tok.vocab().find("<｜User｜>");
  const std::vector<PromptPart> parts = {{"<｜User｜>", true}, {"say <｜User｜>", false}, {"<｜User｜>", true}};
  Ids expected = {user};
  for (int32_t id : tok.encode("say <｜User｜>", false)) expected.push_back(id);
  expected.push_back(user);
  CHECK(tok.encode(parts) == expected);
  CHECK(tok.decode(expected) == "<｜User｜>say <｜User｜><｜User｜>");
}

TEST_CASE("a document's markers match, control tokens spelled in it do not") {
  const Tokenizer& tok = tokenizer("deepseek-v3");
  const int32_t think = *tok.vocab().find("<think>");
  Ids expected = tok.encode("<｜User｜>hm", false);
  expected.push_back(think);
  for (int32_t id : tok.encode("so<｜Assistant｜>", false)) expected.push_back(id);
  CHECK(tok.encode_document("<｜User｜>hm<think>so<｜Assistant｜>") == expected);
  CHECK(tok.encode_document("").empty());

  // The single letters that this vocabulary adds are text of its documents, as in the reference cases.
  const Tokenizer& llm = tokenizer("deepseek-llm");
  CHECK(llm.encode_document("für") == llm.encode("für", true));
  CHECK(llm.encode_document("für") != llm.encode("für", false));
}

TEST_CASE("two parts never make an added token together") {
  const Tokenizer& tok = tokenizer("deepseek-v3");
  const std::vector<PromptPart> parts = {{"<｜Us", true}, {"er｜>", true}};
  CHECK(tok.encode(parts) == tok.encode("<｜User｜>", false));
}

TEST_CASE("part borders do not cut pieces of text") {
  const Tokenizer& tok = tokenizer("deepseek-v3");
  const std::vector<PromptPart> parts = {
      {"The light", true}, {"house ", false}, {"", true}, {"keeper\n", false}, {"\nwrote", true}};
  CHECK(tok.encode(parts) == tok.encode("The lighthouse keeper\n\nwrote", true));
  CHECK(tok.encode(std::vector<PromptPart>{}).empty());
}

TEST_CASE("megabytes of one thing encode without trouble") {
  for (const char* name : kTokenizers) {
    for (const std::string unit : {"Z", " ", "\n", "的", " \n", "<", "1", ".", "\xCC\x81", "\xFE"}) {
      if (unit == "\xFE" && !tokenizer(name).vocab().byte_token(0xFE)) continue;
      const size_t n_bytes = unit == "Z" ? size_t{8} << 20 : size_t{1} << 20;
      std::string text;
      while (text.size() < n_bytes) text += unit;
      CAPTURE(std::string(name));
      CAPTURE(unit);
      CHECK(tokenizer(name).decode(tokenizer(name).encode(text, true)) == text);
    }
  }
}

TEST_CASE("many threads share one tokenizer") {
  const Tokenizer& tok = tokenizer("deepseek-v3");
  const std::string text = "def add(a, b):\n    return a + b  # 你好, 12345\n";
  const Ids expected = tok.encode(text, true);
  std::vector<Ids> results(4);
  std::vector<std::thread> threads;
  for (Ids& result : results) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) result = tok.encode(text, true);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Ids& result : results) CHECK(result == expected);
}

TEST_CASE("a merge listed twice keeps its lower rank, pairs without a merge are not found") {
  const MergeTable table({{1, 2, 10}, {3, 4, 11}, {1, 2, 12}});
  REQUIRE(table.find(1, 2) != nullptr);
  CHECK(table.find(1, 2)->rank == 0);
  CHECK(table.find(1, 2)->result == 10);
  CHECK(table.find(3, 4)->rank == 1);
  CHECK(table.find(2, 1) == nullptr);
  CHECK(MergeTable({}).find(0, 0) == nullptr);
}

TEST_CASE("decode refuses ids outside the vocabulary") {
  const Tokenizer& tok = tokenizer("deepseek-v3");
  for (int32_t id : {-1, tok.vocab().size(), INT32_MAX, INT32_MIN}) {
    CHECK_THROWS_AS(tok.decode(Ids{id}), Error);
    CHECK_THROWS_AS(TokenStream(tok).push(id), Error);
  }
}

TEST_CASE("streamed text appears as the reference shows it") {
  for (const char* name : kTokenizers) {
    for (const json& c : json_lines(std::string(name) + "/stream.jsonl")) {
      CAPTURE(std::string(name));
      CAPTURE(c["id"].get<std::string>());
      TokenStream stream(tokenizer(name));
      std::vector<std::string> deltas;
      for (int32_t id : c["ids"].get<Ids>()) deltas.push_back(stream.push(id));
      CHECK(deltas == c["deltas"].get<std::vector<std::string>>());
      CHECK(stream.finish() == c["end"].get<std::string>());
    }
  }
}

TEST_CASE("a stream hides control tokens unless asked, and shows user-defined ones") {
  const Tokenizer& tok = tokenizer("deepseek-v3");
  const Ids ids = tok.encode("<think>a<｜User｜>b", true);
  REQUIRE(ids.size() == 4);
  std::string hidden, shown;
  TokenStream hide(tok), show(tok, ControlTokens::kShow);
  for (int32_t id : ids) {
    hidden += hide.push(id);
    shown += show.push(id);
  }
  CHECK(hidden == "<think>ab");
  CHECK(shown == "<think>a<｜User｜>b");
}
