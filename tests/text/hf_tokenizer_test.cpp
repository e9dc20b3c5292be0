#include "text/hf_tokenizer.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <functional>

#include "core/error.h"
#include "tokenizer_fixture.h"

using namespace fathom;
using namespace fathom::test;
using nlohmann::json;

namespace {

json read_fixture(const std::string& name) {
  std::ifstream file(tokenizer_path(name + "/tokenizer.json"));
  return json::parse(file);
}

std::string refusal(const std::function<void(json&)>& damage) {
  json tokenizer = read_fixture("deepseek-v3");
  damage(tokenizer);
  try {
    Vocab vocab(tokenizer_metadata(tokenizer, {}));
    return "";
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kModel);
    return error.what();
  }
}

}  // namespace

TEST_CASE("tokenizer.json gives the metadata of the GGUF of the same model") {
  for (const char* name : kTokenizers) {
    const Metadata gguf = vocab_metadata(name), hf = read_tokenizer_folder(tokenizer_path(name));
    for (const auto& [key, value] : gguf.all()) {
      if (!key.starts_with("tokenizer.ggml.")) continue;
      CAPTURE(std::string(name));
      CAPTURE(key);
      REQUIRE(hf.find(key) != nullptr);
      CHECK((*hf.find(key) == value));
    }
    CHECK(hf.all().size() == 10);
  }
}

TEST_CASE("tokenizer_config.json gives roles, BOS rule and chat template") {
  const json tokenizer = read_fixture("deepseek-v3");
  const json config = {{"bos_token", {{"content", "<｜User｜>"}}},
                       {"eos_token", "<|EOT|>"},
                       {"pad_token", "no such token"},
                       {"add_bos_token", false},
                       {"chat_template", "{{ x }}"}};
  const Vocab expected(vocab_metadata("deepseek-v3"));
  const Metadata m = tokenizer_metadata(tokenizer, config);
  CHECK(m.integer("tokenizer.ggml.bos_token_id") == expected.find("<｜User｜>"));
  CHECK(m.integer("tokenizer.ggml.eos_token_id") == expected.find("<|EOT|>"));
  CHECK(m.integer("tokenizer.ggml.padding_token_id") == expected.find("<|EOT|>"));
  CHECK(m.boolean("tokenizer.ggml.add_bos_token") == false);
  CHECK(*m.text("tokenizer.chat_template") == "{{ x }}");

  const json named = {
      {"chat_template", {{{"name", "tool_use"}, {"template", "t"}}, {{"name", "default"}, {"template", "d"}}}}};
  CHECK(*tokenizer_metadata(tokenizer, named).text("tokenizer.chat_template") == "d");
  CHECK_FALSE(tokenizer_metadata(tokenizer, {}).has("tokenizer.chat_template"));
}

TEST_CASE("ids up to the model's vocabulary size are padded with unused tokens") {
  const Vocab vocab(tokenizer_metadata(read_fixture("deepseek-v3"), {}, 2000));
  CHECK(vocab.size() == 2000);
  CHECK(vocab.text(1999) == "[PAD1999]");
  CHECK(vocab.type(1999) == TokenType::kUnused);
  CHECK_THROWS_AS(tokenizer_metadata(read_fixture("deepseek-v3"), {}, 1000), Error);
  CHECK_THROWS_AS(tokenizer_metadata(read_fixture("deepseek-v3"), {}, INT64_MAX), Error);
}

TEST_CASE("what would change ids and is not supported is refused") {
  const std::pair<const char*, std::function<void(json&)>> cases[] = {
      {"model.type", [](json& t) { t["model"]["type"] = "Unigram"; }},
      {"model.type", [](json& t) { t = json::array(); }},
      {"byte_fallback", [](json& t) { t["model"]["byte_fallback"] = true; }},
      {"ignore_merges", [](json& t) { t["model"]["ignore_merges"] = true; }},
      {"end_of_word_suffix", [](json& t) { t["model"]["end_of_word_suffix"] = "</w>"; }},
      {"normalizer",
       [](json& t) {
         t["normalizer"] = {{"type", "NFC"}};
       }},
      {"pre_tokenizer", [](json& t) { t["pre_tokenizer"] = nullptr; }},
      {"pre_tokenizer", [](json& t) { t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\p{N}"; }},
      {"pretokenizers[0]", [](json& t) { t["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; }},
      {"pretokenizers[1]", [](json& t) { t["pre_tokenizer"]["pretokenizers"][1] = 5; }},
      {"ByteLevel", [](json& t) { t["pre_tokenizer"]["pretokenizers"].back()["add_prefix_space"] = true; }},
      {"lstrip", [](json& t) { t["added_tokens"][3]["lstrip"] = true; }},
      {"added_tokens[1].content", [](json& t) { t["added_tokens"][1]["content"] = ""; }},
      {"added_tokens[1].id", [](json& t) { t["added_tokens"][1]["id"] = "x"; }},
      {"model.vocab", [](json& t) { t["model"]["vocab"] = 1; }},
      {"model.vocab", [](json& t) { t["model"]["vocab"]["b"] = t["model"]["vocab"]["a"]; }},
      {"model.vocab", [](json& t) { t["model"]["vocab"]["a"] = -1; }},
      {"model.vocab", [](json& t) { t["model"]["vocab"]["a"] = 1.5; }},
      {"model.vocab", [](json& t) { t["model"]["vocab"]["a"] = UINT64_MAX; }},
      {"model.vocab", [](json& t) { t["model"]["vocab"]["a"] = 2000000000; }},
      {"model.merges", [](json& t) { t["model"]["merges"] = "a b"; }},
      {"model.merges[1]",
       [](json& t) {
         t["model"]["merges"][1] = {"a", "b", "c"};
       }},
      {"merges[0]", [](json& t) { t["model"]["merges"][0] = "no-such token"; }},
  };
  for (const auto& [part, damage] : cases) {
    const std::string message = refusal(damage);
    CAPTURE(std::string(part));
    CAPTURE(message);
    CHECK(message.find(part) != std::string::npos);
  }
  CHECK(refusal([](json&) {}).empty());
}

TEST_CASE("a folder without a readable tokenizer.json is refused by its path") {
  const auto folder = std::filesystem::path(FATHOM_FIXTURES) / "no-such-folder";
  try {
    read_tokenizer_folder(folder);
    FAIL("accepted");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kModel);
    CHECK(std::string(error.what()).find("no-such-folder") != std::string::npos);
  }
}
