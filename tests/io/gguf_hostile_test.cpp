// Damaged and malicious GGUF files: each is refused with one clear line, nothing large is allocated on its word.
#include <atomic>
#include <cstdlib>
#include <limits>
#include <new>
#include <random>
#include <vector>

#include "gguf_bytes.h"

namespace {
std::atomic<size_t> largest_allocation{0};

void* watched_allocate(size_t n) {
  size_t seen = largest_allocation;
  while (n > seen && !largest_allocation.compare_exchange_weak(seen, n)) {
  }
  if (void* p = std::malloc(n == 0 ? 1 : n)) return p;
  throw std::bad_alloc();
}
}  // namespace

// Replaced for this whole test program: hostile files must not make the reader ask for more than they could fill.
void* operator new(size_t n) { return watched_allocate(n); }
void* operator new[](size_t n) { return watched_allocate(n); }
void* operator new(size_t n, const std::nothrow_t&) noexcept { return std::malloc(n == 0 ? 1 : n); }
void* operator new[](size_t n, const std::nothrow_t&) noexcept { return std::malloc(n == 0 ? 1 : n); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t) noexcept { std::free(p); }

namespace fathom {
namespace {

using enum GgufValueType;

constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max();
constexpr uint32_t kF32Type = 0;
constexpr uint32_t kQ4KType = 12;

std::string refusal(const GgufBytes& file, GgufOptions options = {}) {
  const TempFolder folder;
  const std::string path = folder.write("model.gguf", file.bytes);
  largest_allocation = 0;
  std::string message = refusal_of(path, options);
  CHECK(largest_allocation < 100000 + 16 * file.bytes.size());
  return message;
}

GgufModel accepted(const TempFolder& folder, const GgufBytes& file, GgufOptions options = {}) {
  return GgufModel::open(folder.write("model.gguf", file.bytes), options);
}

GgufBytes one_key() { return GgufBytes().header(0, 1); }
GgufBytes one_tensor() { return GgufBytes().header(1, 0); }

TEST_CASE("1: files too short for a header are refused with their length") {
  for (const size_t n : {0, 1, 4, 8, 23}) {
    GgufBytes file = GgufBytes().header(0, 0);
    file.bytes.resize(n);
    CHECK(contains(refusal(file), "got " + std::to_string(n) + " bytes"));
  }
}

TEST_CASE("2: a wrong magic is refused and shown without control characters") {
  GgufBytes file = GgufBytes().header(0, 0);
  file.bytes.replace(0, 4, "GG\x1bX");
  CHECK(contains(refusal(file), "'GG\\x1bX'"));
}

TEST_CASE("3: versions other than 2 and 3 are refused by number") {
  for (const uint32_t version : {0u, 1u, 4u, 0xffffffffu}) {
    const std::string message = refusal(GgufBytes().header(0, 0, version));
    CHECK(contains(message, "got " + std::to_string(version)));
    CHECK(contains(message, "version 2 or 3"));
  }
  CHECK(contains(refusal(GgufBytes().header(0, 0, 0x03000000u)), "big-endian"));
}

TEST_CASE("4, 5: tensor and key counts beyond the bytes left are refused before anything is allocated") {
  for (const uint64_t count : {kHuge, kHuge / 64, uint64_t{1} << 40, uint64_t{1000}}) {
    CHECK(contains(refusal(GgufBytes().header(count, 0).data(100)), "more tensors"));
    CHECK(contains(refusal(GgufBytes().header(0, count).data(100)), "more keys"));
  }
}

TEST_CASE("6: a key longer than the file is refused") {
  for (const uint64_t length : {kHuge, uint64_t{1} << 30, uint64_t{129}}) {
    CHECK(contains(refusal(one_key().add(length).data(128)), "longer than the file"));
  }
  CHECK(contains(refusal(one_key().text(std::string(70000, 'k')).data(16)), "too long"));
}

TEST_CASE("7, 8: empty and repeated keys are refused, the repeated one by name") {
  CHECK(contains(refusal(one_key().key_u32("", 1)), "no name"));
  CHECK(contains(refusal(GgufBytes().header(0, 2).key_u32("a.b", 1).key_u32("a.b", 1)), "'a.b' appears twice"));
}

TEST_CASE("9: unknown value types are refused") {
  for (const uint32_t type : {13u, 255u, 0xffffffffu}) {
    CHECK(contains(refusal(one_key().text("k").add(type).data(64)), "unknown value type of key 'k'"));
    CHECK(contains(refusal(one_key().key("k", kArray).add(type).add<uint64_t>(1).data(64)), "unknown value type"));
  }
}

TEST_CASE("10: strings and arrays beyond the file are refused before anything is allocated") {
  for (const uint64_t n : {kHuge, kHuge / 8, uint64_t{1} << 41, uint64_t{1} << 31, uint64_t{65}}) {
    CHECK(contains(refusal(one_key().key("k", kString).add(n).data(64)), "longer than the file"));
    for (const GgufValueType element : {kU8, kBool, kI32, kF64, kString}) {
      CHECK(contains(refusal(one_key().key_array("k", element, n).data(64)), "more elements of key 'k'"));
    }
  }
  CHECK(contains(refusal(one_key().key_array("k", kString, 2).text("fits").add<uint64_t>(9).data(8)),
                 "longer than the file"));
}

TEST_CASE("11: nested arrays are refused, and arrays that no model has") {
  CHECK(contains(refusal(one_key().key_array("k", kArray, 1).data(64)), "array of arrays"));
  const TempFolder folder;
  const std::string path = folder.write("model.gguf", one_key().key_array("k", kU8, kGgufMaxArrayElements + 1).bytes);
  std::filesystem::resize_file(path, 2 * kGgufMaxArrayElements);  // sparse
  CHECK(contains(refusal_of(path), "too many elements"));
}

TEST_CASE("12: tokenizer arrays of another element type are refused with key, expected and found type") {
  const std::string types = refusal(one_key().key_array("tokenizer.ggml.token_type", kU8, 2).data(2));
  CHECK(contains(types, "'tokenizer.ggml.token_type' has the wrong type"));
  CHECK(contains(types, "array of i32"));
  CHECK(contains(types, "got array of u8"));
  CHECK(contains(refusal(one_key().key_array("tokenizer.ggml.scores", kU8, 2).data(2)),
                 "expected array of f32 or f64, got array of u8"));
  CHECK(contains(refusal(one_key().key_array("tokenizer.ggml.tokens", kI32, 0)), "expected array of string"));
  CHECK(contains(refusal(one_key().key_text("tokenizer.ggml.merges", "a b")), "got string"));
}

TEST_CASE("13: bools take one byte, 0 or 1") {
  const TempFolder folder;
  const GgufModel model = accepted(folder, GgufBytes()
                                               .header(0, 2)
                                               .key("b", kBool)
                                               .add<uint8_t>(1)
                                               .key_array("bs", kBool, 3)
                                               .add<uint8_t>(1)
                                               .add<uint8_t>(0)
                                               .add<uint8_t>(1));
  CHECK(model.metadata().boolean("b") == true);
  CHECK(*model.metadata().integers("bs") == std::vector<int64_t>{1, 0, 1});
  CHECK(contains(refusal(one_key().key("b", kBool).add<uint8_t>(2)), "not a bool"));
  CHECK(contains(refusal(one_key().key_array("bs", kBool, 4).add<int32_t>(2)), "not a bool"));
}

TEST_CASE("14: an alignment that is no power of two, too small, huge or of another type is refused") {
  for (const uint32_t alignment : {0u, 1u, 3u, 13u, 33u, 0x80000000u, 0xffffffffu}) {
    CHECK(contains(refusal(one_key().key_u32("general.alignment", alignment)), "got " + std::to_string(alignment)));
  }
  CHECK(contains(refusal(one_key().key("general.alignment", kI32).add<int32_t>(32)), "expected u32, got i32"));
  CHECK(contains(refusal(one_key().key_text("general.alignment", "32")), "got string"));
}

TEST_CASE("15, 16: tensor names that are too long, empty or repeated are refused") {
  CHECK(contains(refusal(one_tensor().tensor(std::string(64, 't'), {1}, kF32Type, 0).pad().data(32)), "too long"));
  CHECK(contains(refusal(one_tensor().tensor("", {1}, kF32Type, 0).pad().data(32)), "no name"));
  CHECK(contains(
      refusal(GgufBytes().header(2, 0).tensor("t", {8}, kF32Type, 0).tensor("t", {8}, kF32Type, 32).pad().data(64)),
      "tensor 't' appears twice"));
}

TEST_CASE("17, 18: a rank outside 1 to 4 and negative dimensions are refused") {
  CHECK(contains(refusal(one_tensor().tensor("t", {}, kF32Type, 0).data(64)), "number of dimensions"));
  CHECK(contains(refusal(one_tensor().tensor("t", {1, 1, 1, 1, 1}, kF32Type, 0).data(64)), "expected 1 to 4, got 5"));
  CHECK(contains(refusal(one_tensor().text("t").add(uint32_t{0xffffffff}).data(64)), "number of dimensions"));
  CHECK(contains(refusal(one_tensor().tensor("t", {8, kHuge}, kF32Type, 0).data(64)), "negative dimension"));
}

TEST_CASE("18: a tensor without elements is read") {
  const TempFolder folder;
  const GgufModel model = accepted(folder, one_tensor().tensor("t", {32, 0}, kF32Type, 0).pad());
  CHECK(model.find("t")->shape == Shape{0, 32});
  CHECK(model.find("t")->size_bytes() == 0);
}

TEST_CASE("19, 20, 21: products and sizes that overflow are refused") {
  const uint64_t big = uint64_t{1} << 40;
  CHECK(contains(refusal(one_tensor().tensor("t", {big, big}, kF32Type, 0).pad()), "overflows"));
  CHECK(contains(refusal(one_tensor().tensor("t", {big, 0, big}, kF32Type, 0).pad()), "overflows"));
  CHECK(contains(refusal(one_tensor().tensor("t", {big, uint64_t{1} << 21, 0}, 28, 0).pad()), "overflows"));
  CHECK(contains(refusal(one_tensor().tensor("t", {0x7fffffffffffffc0}, 24, 0).pad()), "overflows"));
  CHECK(contains(refusal(one_tensor().tensor("t", {0x7fffffffffffffc0}, kF32Type, 0).pad()), "overflows"));
  CHECK(contains(refusal(one_tensor().tensor("t", {uint64_t{1} << 32, uint64_t{1} << 30}, kF32Type, 0).pad()),
                 "overflows"));
  CHECK(contains(refusal(one_tensor().tensor("t", {100}, kQ4KType, 0).pad().data(512)), "multiple of 256"));
}

TEST_CASE("22: unreadable tensor types are refused by tensor, number and name") {
  const auto got = [](uint32_t type) {
    return refusal(one_tensor().tensor("blk.0.x", {256}, type, 0).pad().data(512));
  };
  CHECK(contains(got(139), "tensor 'blk.0.x' has a type that cannot be read"));
  CHECK(contains(got(139), "type 139 (IQ4_K of ik_llama.cpp)"));
  CHECK(contains(got(212), "type 212 (Q4_K with interleaved rows of ik_llama.cpp)"));
  CHECK(contains(got(40), "type 40 (NVFP4)"));
  CHECK(contains(got(34), "type 34 (TQ1_0)"));
  CHECK(contains(got(4), "withdrawn"));
  CHECK(contains(got(77), "type 77 (unknown)"));
  CHECK(contains(got(1000), "type 1000 (unknown)"));
  CHECK(contains(got(0xffffffff), "type 4294967295 (unknown)"));
}

TEST_CASE("23: unaligned, overlapping and unordered tensors are refused") {
  const auto two = [](uint64_t first, uint64_t second) {
    return GgufBytes()
        .header(2, 0)
        .tensor("a", {16}, kF32Type, first)
        .tensor("b", {16}, kF32Type, second)
        .pad()
        .data(1024);
  };
  CHECK(contains(refusal(two(0, 65)), "not aligned"));
  CHECK(contains(refusal(two(0, 32)), "overlaps"));
  CHECK(contains(refusal(two(64, 0)), "out of order"));
  const TempFolder folder;
  CHECK(accepted(folder, two(32, 128)).tensors().size() == 2);
}

TEST_CASE("24: data that ends before a tensor does is refused with the tensor and its offset") {
  const GgufBytes head = GgufBytes().header(2, 0).tensor("a", {16}, kF32Type, 0).tensor("b", {16}, kF32Type, 64).pad();
  const size_t data_at = head.bytes.size();
  for (const size_t n : {0, 1, 63, 64, 127}) {
    const std::string message = refusal(GgufBytes(head).data(n));
    CHECK(contains(message, n < 64 ? "tensor 'a'" : "tensor 'b'"));
    CHECK(contains(message, "(byte offset " + std::to_string(data_at + (n < 64 ? 0 : 64)) + ")"));
  }
  CHECK(contains(refusal(one_tensor().tensor("t", {8}, kF32Type, uint64_t{1} << 62).pad().data(64)), "beyond the end"));
  CHECK(contains(refusal(one_tensor().tensor("t", {8}, kF32Type, uint64_t{0x7fffffffffffffe0}).pad().data(64)),
                 "overflows"));
  CHECK(contains(refusal(one_tensor().tensor("t", {8}, kF32Type, kHuge - 31).pad().data(64)), "overflows"));
  const TempFolder folder;
  CHECK(accepted(folder, GgufBytes(head).data(128)).tensors().size() == 2);
}

TEST_CASE("24: a header alone is enough where only the header is asked for, a file cut among its data is not") {
  const GgufBytes head = GgufBytes().header(1, 0).tensor("a", {16}, kF32Type, 0);
  const TempFolder folder;
  for (const GgufBytes& file : {head, GgufBytes(head).pad()}) {
    const GgufModel model = accepted(folder, file, {.header_only = true});
    CHECK_FALSE(model.has_data());
    CHECK(model.find("a")->shape == Shape{16});
    CHECK(model.find("a")->data == nullptr);
  }
  CHECK(contains(refusal(GgufBytes(head).pad().data(1), {.header_only = true}), "tensor 'a'"));
  CHECK(contains(refusal(head), "tensor 'a'"));
}

TEST_CASE("26: many legal tensors whose sizes add up beyond 2^64 are refused") {
  GgufBytes file = GgufBytes().header(5, 0);
  const uint64_t size = uint64_t{1} << 62;
  for (uint64_t i = 0; i < 5; ++i) file.tensor("t" + std::to_string(i), {size}, 24, i * size);
  CHECK(contains(refusal(file.pad()), "overflows"));
}

GgufBytes architecture(uint64_t n_more_keys) {
  return GgufBytes().header(0, 1 + n_more_keys).key_text("general.architecture", "deepseek2");
}

TEST_CASE("27: impossible layer counts are refused") {
  for (const uint32_t n : {0u, 513u, 1000000000u, 0x80000000u}) {
    CHECK(contains(refusal(architecture(1).key_u32("deepseek2.block_count", n)),
                   "expected 1 to 512, got " + std::to_string(n)));
  }
  CHECK(contains(refusal(architecture(1).key("deepseek2.block_count", kI32).add<int32_t>(-1)), "got -1"));
  CHECK(contains(refusal(architecture(1).key("deepseek2.block_count", kU64).add(kHuge)), "too large"));
  CHECK(contains(refusal(architecture(1).key_text("deepseek2.block_count", "3")), "expected an integer, got string"));
}

TEST_CASE("28: head and expert counts of 0 and more experts used than there are are refused") {
  for (const char* key : {"deepseek2.attention.head_count", "deepseek2.attention.head_count_kv",
                          "deepseek2.expert_count", "deepseek2.expert_used_count"}) {
    const std::string message = refusal(architecture(1).key_u32(key, 0));
    CHECK(contains(message, key));
    CHECK(contains(message, "got 0"));
  }
  const std::string message =
      refusal(architecture(2).key_u32("deepseek2.expert_count", 8).key_u32("deepseek2.expert_used_count", 9));
  CHECK(contains(message, "at most 8 (expert_count), got 9"));
}

GgufBytes vocabulary(uint64_t n_more_keys) {
  return GgufBytes().header(0, 1 + n_more_keys).key_array("tokenizer.ggml.tokens", kString, 2).text("a").text("b");
}

TEST_CASE("29, 30: special ids outside the vocabulary and arrays of another length are refused") {
  const std::string message = refusal(vocabulary(1).key_u32("tokenizer.ggml.eos_token_id", 2));
  CHECK(contains(message, "'tokenizer.ggml.eos_token_id' is not an id of the vocabulary"));
  CHECK(contains(message, "expected 0 to 1, got 2"));
  CHECK(contains(refusal(vocabulary(1).key("tokenizer.ggml.bos_token_id", kI32).add<int32_t>(-1)), "got -1"));
  CHECK(contains(refusal(vocabulary(1).key_array("tokenizer.ggml.token_type", kI32, 1).add<int32_t>(1)),
                 "expected 2 elements, got 1"));
  CHECK(contains(refusal(vocabulary(1).key_array("tokenizer.ggml.scores", kF32, 3).data(12)),
                 "expected 2 elements, got 3"));
}

TEST_CASE("names with control characters do not reach the message") {
  CHECK(contains(refusal(one_tensor().tensor("a\nb\x1b[2J", {8}, 77, 0).pad()), "'a\\nb\\x1b[2J'"));
}

GgufBytes small_model() {
  GgufBytes file = GgufBytes().header(3, 6);
  file.key_text("general.architecture", "deepseek2")
      .key_u32("deepseek2.block_count", 1)
      .key("f", kF32)
      .add(1.5f)
      .key_array("i", kI32, 2)
      .add(1)
      .add(2);
  file.key_array("tokenizer.ggml.tokens", kString, 2).text("x").text("yz").key("u", kU64).add(kHuge);
  return file.tensor("a", {32, 2}, 8, 0)
      .tensor("b", {8}, kF32Type, 96)
      .tensor("c", {256}, kQ4KType, 128)
      .pad()
      .data(128 + 144);
}

TEST_CASE("25: a file cut at any byte is refused") {
  const GgufBytes whole = small_model();
  const TempFolder folder;
  CHECK(GgufModel::open(folder.write("whole.gguf", whole.bytes)).tensors().size() == 3);
  for (size_t n = 0; n < whole.bytes.size(); ++n) {
    CAPTURE(n);
    refusal_of(folder.write("cut.gguf", std::string_view(whole.bytes).substr(0, n)));
  }
}

// Loads or refuses; what loads stays inside the file.
void check_robust(const std::string& path, const std::string& bytes) {
  try {
    const GgufModel model = GgufModel::open(path);
    unsigned sum = 0;
    for (const auto& [name, t] : model.tensors()) {
      const auto span = t.size_bytes() == 0 ? std::nullopt : model.locate(t);
      if (!span) continue;
      CHECK(span->offset_bytes + span->size_bytes <= bytes.size());
      for (size_t i = 0; i < t.size_bytes(); ++i) sum += std::to_integer<unsigned>(t.data[i]);
    }
    CHECK(sum <= 255 * bytes.size());
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kModel);
  }
}

TEST_CASE("25: files with flipped bytes load or are refused") {
  const GgufBytes whole = small_model();
  const size_t header_bytes = whole.bytes.size() - (128 + 144);
  const TempFolder folder;
  constexpr uint8_t kEdges[] = {0, 1, 0x7f, 0x80, 0xff};
  for (unsigned seed = 0; seed < 6000; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    std::string bytes = whole.bytes;
    for (unsigned i = 0; i < 1 + seed % 3; ++i) {
      const size_t at = random() % header_bytes;
      bytes[at] = static_cast<char>(seed % 2 == 0 ? random() : kEdges[random() % std::size(kEdges)]);
    }
    check_robust(folder.write("flipped.gguf", bytes), bytes);
  }
}

TEST_CASE("25: every byte of the header set to an edge value: loads or is refused") {
  const GgufBytes whole = small_model();
  const size_t header_bytes = whole.bytes.size() - (128 + 144);
  const TempFolder folder;
  for (size_t at = 0; at < header_bytes; ++at) {
    for (const int value : {0, 1, 0x7f, 0x80, 0xff}) {
      CAPTURE(at);
      CAPTURE(value);
      std::string bytes = whole.bytes;
      bytes[at] = static_cast<char>(value);
      check_robust(folder.write("edge.gguf", bytes), bytes);
    }
  }
}

}  // namespace
}  // namespace fathom
