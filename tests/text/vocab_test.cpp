#include "text/vocab.h"

#include <doctest/doctest.h>

#include "core/error.h"
#include "text/byte_alphabet.h"
#include "tokenizer_fixture.h"

using namespace fathom;
using namespace fathom::test;

namespace {

using Texts = std::vector<std::string>;
using Integers = std::vector<int64_t>;

/// The character for a byte, by the description of bytes_to_unicode in GPT-2's encoder.py.
std::string spelled(int byte) {
  const auto is_printable = [](int b) { return (b > 0x20 && b < 0x7F) || (b > 0xA0 && b < 0x100 && b != 0xAD); };
  int character = byte;
  if (!is_printable(byte)) {
    character = 0x100;
    for (int b = 0; b < byte; ++b) character += is_printable(b) ? 0 : 1;
  }
  if (character < 0x80) return std::string(1, static_cast<char>(character));
  return {static_cast<char>(0xC0 | character >> 6), static_cast<char>(0x80 | (character & 0x3F))};
}

// 256 byte tokens, "ab", and three added tokens.
Metadata small_vocab() {
  Texts tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(spelled(byte));
  tokens.insert(tokens.end(), {"ab", "<bos>", "<eos>", "<tag>"});
  Integers types(257, 1);
  types.insert(types.end(), {3, 3, 4});
  Metadata m;
  m.set("tokenizer.ggml.model", std::string("gpt2"));
  m.set("tokenizer.ggml.pre", std::string("deepseek-v3"));
  m.set("tokenizer.ggml.tokens", tokens);
  m.set("tokenizer.ggml.token_type", types);
  m.set("tokenizer.ggml.merges", Texts{"a b"});
  m.set("tokenizer.ggml.bos_token_id", uint64_t{257});
  m.set("tokenizer.ggml.eos_token_id", uint64_t{258});
  return m;
}

Metadata with(const std::string& key, MetadataValue value) {
  Metadata m = small_vocab();
  m.set("tokenizer.ggml." + key, std::move(value));
  return m;
}

Metadata without(const std::string& key) {
  const Metadata all = small_vocab();
  Metadata m;
  for (const auto& [k, v] : all.all()) {
    if (k != "tokenizer.ggml." + key) m.set(k, v);
  }
  return m;
}

Metadata with_token(size_t index, const std::string& text, int64_t type) {
  const Metadata all = small_vocab();
  Texts tokens = *all.texts("tokenizer.ggml.tokens");
  Integers types = *all.integers("tokenizer.ggml.token_type");
  tokens.at(index) = text;
  types.at(index) = type;
  Metadata m = with("tokens", tokens);
  m.set("tokenizer.ggml.token_type", types);
  return m;
}

// The message of the refusal; empty if the vocabulary was accepted.
std::string refusal(const Metadata& metadata) {
  try {
    Vocab vocab(metadata);
    return "";
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kModel);
    CHECK(std::string(error.what()).find('\n') == std::string::npos);
    return error.what();
  }
}

bool names(const std::string& message, const std::string& part) { return message.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a small vocabulary loads") {
  const Vocab vocab(small_vocab());
  CHECK(vocab.size() == 260);
  CHECK(vocab.text(256) == "ab");
  CHECK(vocab.text(' ') == "\u0120");
  CHECK(vocab.bytes(' ') == " ");
  CHECK(vocab.bytes(0xFF) == "\xFF");
  CHECK(vocab.bytes(257) == "<bos>");
  CHECK(vocab.type(257) == TokenType::kControl);
  CHECK(vocab.type(259) == TokenType::kUserDefined);
  CHECK(vocab.bos() == 257);
  CHECK(vocab.eos() == 258);
  CHECK_FALSE(vocab.pad());
  CHECK(vocab.add_bos());
  CHECK(vocab.find("<tag>") == 259);
  CHECK_FALSE(vocab.find("ab"));
  CHECK_FALSE(vocab.find("<ta"));
  CHECK_FALSE(vocab.find("zzz"));
  CHECK(vocab.byte_token('a') == 'a');
  REQUIRE(vocab.merges().size() == 1);
  CHECK(vocab.merges()[0].result == 256);
  CHECK_THROWS_AS(vocab.bytes(260), Error);
  CHECK_THROWS_AS(vocab.type(-1), Error);
}

TEST_CASE("what ends generation") {
  const Vocab coder(vocab_metadata("deepseek-coder"));
  CHECK(coder.end_ids().size() == 2);
  CHECK(coder.is_end(coder.eos()));
  CHECK(coder.is_end(*coder.find("<|EOT|>")));
  CHECK_FALSE(coder.is_end(coder.bos()));
  CHECK_FALSE(coder.is_end(-1));
  CHECK_FALSE(coder.is_end(INT32_MAX));
  const Vocab eot(with("eot_token_id", uint64_t{259}));
  CHECK(eot.end_ids() == std::vector<int32_t>{258, 259});
}

TEST_CASE("keys that are missing or of another kind") {
  for (const char* key : {"model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id"}) {
    CAPTURE(std::string(key));
    CHECK(names(refusal(without(key)), std::string("tokenizer.ggml.") + key));
    CHECK(names(refusal(with(key, true)), std::string("tokenizer.ggml.") + key));
  }
  CHECK(names(refusal(with("model", std::string("llama"))), "'llama'"));
  CHECK(names(refusal(with("pre", std::string("qwen2"))), "'qwen2'"));
  CHECK(names(refusal(with("tokens", Texts{})), "tokenizer.ggml.tokens"));
}

TEST_CASE("missing bos and eos ids are found by their usual spelling") {
  Metadata m = with_token(257, "<｜begin▁of▁sentence｜>", 3);
  Texts tokens = *m.texts("tokenizer.ggml.tokens");
  tokens[258] = "<｜end▁of▁sentence｜>";
  Metadata found;
  for (const auto& [key, value] : m.all()) {
    if (!key.ends_with("os_token_id")) found.set(key, value);
  }
  found.set("tokenizer.ggml.tokens", tokens);
  CHECK(Vocab(found).bos() == 257);
  CHECK(Vocab(found).eos() == 258);
}

TEST_CASE("lists of another length than the tokens") {
  CHECK(names(refusal(with("token_type", Integers(259, 1))), "tokenizer.ggml.token_type"));
  CHECK(names(refusal(with("token_type", Integers(261, 1))), "got 261"));
  CHECK(names(refusal(with("token_type", Integers{})), "got 0"));
  CHECK(names(refusal(with("scores", std::vector<double>(3))), "tokenizer.ggml.scores"));
}

TEST_CASE("special ids beyond the vocabulary") {
  for (const char* key : {"bos", "eos", "padding", "eot", "unknown", "fim_pre", "fim_suf", "fim_mid", "eom"}) {
    const std::string name = std::string(key) + "_token_id";
    CAPTURE(name);
    CHECK(names(refusal(with(name, uint64_t{260})), name));
    CHECK(names(refusal(with(name, uint64_t{UINT32_MAX})), name));
    CHECK(names(refusal(with(name, int64_t{-1})), name));
    CHECK(refusal(with(name, uint64_t{259})).empty());
  }
}

TEST_CASE("token types that do not exist") {
  for (int64_t type : {0, 7, -1, 256, 257}) CHECK(names(refusal(with_token(256, "ab", type)), "token_type[256]"));
}

TEST_CASE("malformed byte tokens") {
  for (const char* text : {"<0x-1>", "<0xZZ>", "<0x1>", "<0x123>", "<0x>", "", "x"}) {
    CAPTURE(std::string(text));
    CHECK(names(refusal(with_token(259, text, 6)), "tokens[259]"));
  }
  const Vocab vocab(with_token(259, "<0xfE>", 6));
  CHECK(vocab.bytes(259) == "\xFE");
}

TEST_CASE("merges that do not fit the vocabulary") {
  CHECK(names(refusal(with("merges", Texts{"a b", "a c"})), "merges[1]"));
  CHECK(names(refusal(with("merges", Texts{"ab zz"})), "'zz'"));
  for (const char* line : {"", "ab", " ", " a", "a ", "a  b", "a b c"}) {
    CAPTURE(std::string(line));
    CHECK(names(refusal(with("merges", Texts{line})), "merges[0]"));
  }
  CHECK(refusal(with("merges", Texts{})).empty());
}

TEST_CASE("a byte of UTF-8 without a token is refused, one that UTF-8 never uses is not") {
  CHECK(names(refusal(with_token('q', "qq", 1)), "byte 113"));
  const Vocab vocab(with_token(0xC0, "xyz", 1));
  CHECK_FALSE(vocab.byte_token(0xC0));
}

TEST_CASE("added tokens that are empty or too long") {
  CHECK(names(refusal(with_token(259, "", 4)), "tokens[259]"));
  CHECK(names(refusal(with_token(259, std::string(2000, 'x'), 3)), "tokens[259]"));
  CHECK(names(refusal(with_token(256, std::string(2 << 20, 'x'), 1)), "tokens[256]"));
}

TEST_CASE("the first of several equal added tokens counts") {
  const Vocab vocab(with_token(259, "<eos>", 4));
  CHECK(vocab.find("<eos>") == 258);
  CHECK(vocab.added_tokens().size() == 2);
}

TEST_CASE("a normal token outside the byte alphabet is literal text") {
  CHECK(Vocab(with_token(259, "<｜x y｜>", 1)).bytes(259) == "<｜x y｜>");
}

TEST_CASE("every byte is read from its character of the byte alphabet") {
  for (int byte = 0; byte < 256; ++byte)
    CHECK(from_byte_alphabet(spelled(byte)) == std::string(1, static_cast<char>(byte)));
  CHECK(from_byte_alphabet("\u0120\u010A\u0143") == " \n\xAD");
  CHECK_FALSE(from_byte_alphabet(" "));
  CHECK_FALSE(from_byte_alphabet("\u0144"));
  CHECK_FALSE(from_byte_alphabet("你"));
  CHECK_FALSE(from_byte_alphabet("\xFF"));
}
