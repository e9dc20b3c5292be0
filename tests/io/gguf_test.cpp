#include "io/gguf.h"

#include <cmath>

#include "gguf_bytes.h"

namespace fathom {
namespace {

using enum GgufValueType;

const std::string kModels = std::string(FATHOM_FIXTURES) + "/models/";
const std::string kFirstShard = kModels + "v2lite/v2lite-q4_k_m-mla-00001-of-00003.gguf";

TEST_CASE("all value types are read, in versions 2 and 3") {
  const TempFolder folder;
  for (const uint32_t version : {2u, 3u}) {
    CAPTURE(version);
    GgufBytes file = GgufBytes().header(0, 21, version);
    file.key("u8", kU8)
        .add<uint8_t>(200)
        .key("i8", kI8)
        .add<int8_t>(-5)
        .key("u16", kU16)
        .add<uint16_t>(60000)
        .key("i16", kI16)
        .add<int16_t>(-300);
    file.key("u32", kU32)
        .add<uint32_t>(4000000000)
        .key("i32", kI32)
        .add<int32_t>(-70000)
        .key("f32", kF32)
        .add(0.5f)
        .key("bool", kBool)
        .add<uint8_t>(1);
    file.key_text("text", "｜ and \n")
        .key("u64", kU64)
        .add<uint64_t>(1ull << 63)
        .key("i64", kI64)
        .add<int64_t>(-1)
        .key("f64", kF64)
        .add(1e300);
    file.key_array("a.u8", kU8, 2)
        .add<uint8_t>(1)
        .add<uint8_t>(255)
        .key_array("a.i16", kI16, 2)
        .add<int16_t>(-1)
        .add<int16_t>(7);
    file.key_array("a.u32", kU32, 1)
        .add<uint32_t>(4000000000)
        .key_array("a.i64", kI64, 1)
        .add<int64_t>(-9)
        .key_array("a.u64", kU64, 1)
        .add<uint64_t>(9);
    file.key_array("a.f32", kF32, 2)
        .add(1.0f)
        .add(-2.5f)
        .key_array("a.f64", kF64, 1)
        .add(1e-300)
        .key_array("a.text", kString, 2)
        .text("")
        .text("b");
    file.key_array("a.empty", kI32, 0);
    const GgufModel model = GgufModel::open(folder.write("model.gguf", file.bytes));
    const Metadata& m = model.metadata();
    CHECK(m.integer("u8") == 200);
    CHECK(m.integer("i8") == -5);
    CHECK(m.integer("u16") == 60000);
    CHECK(m.integer("i16") == -300);
    CHECK(m.integer("u32") == 4000000000);
    CHECK(m.integer("i32") == -70000);
    CHECK(m.number("f32") == 0.5);
    CHECK(m.boolean("bool") == true);
    CHECK(*m.text("text") == "｜ and \n");
    CHECK(std::get<uint64_t>(*m.find("u64")) == 1ull << 63);
    CHECK(m.integer("i64") == -1);
    CHECK(m.number("f64") == 1e300);
    CHECK(*m.integers("a.u8") == std::vector<int64_t>{1, 255});
    CHECK(*m.integers("a.i16") == std::vector<int64_t>{-1, 7});
    CHECK(*m.integers("a.u32") == std::vector<int64_t>{4000000000});
    CHECK(*m.integers("a.i64") == std::vector<int64_t>{-9});
    CHECK(*m.integers("a.u64") == std::vector<int64_t>{9});
    CHECK(*m.numbers("a.f32") == std::vector<double>{1.0, -2.5});
    CHECK(*m.numbers("a.f64") == std::vector<double>{1e-300});
    CHECK(*m.texts("a.text") == std::vector<std::string>{"", "b"});
    CHECK(m.integers("a.empty")->empty());
    CHECK(model.files().front().version == version);
    CHECK(model.files().front().stored_types.at("a.i16").text() == "array of i16");
  }
}

TEST_CASE("tensors view the file, slowest dimension first, at the stated alignment") {
  const TempFolder folder;
  GgufBytes file = GgufBytes().header(2, 1).key_u32("general.alignment", 128);
  file.tensor("a", {3, 2}, 0, 0).tensor("b", {32, 2, 2}, 8, 128).pad(128);
  const size_t data_at = file.bytes.size();
  for (int i = 0; i < 6; ++i) file.add(static_cast<float>(i));
  file.pad(128).data(4 * 34, 7);
  const GgufModel model = GgufModel::open(folder.write("model.gguf", file.bytes));
  const Tensor& a = *model.find("a");
  CHECK(a.dtype == DType::kF32);
  CHECK(a.shape == Shape{2, 3});
  CHECK(a.row_as<float>(1)[2] == 5.0f);
  const Tensor& b = *model.find("b");
  CHECK(b.shape == Shape{2, 2, 32});
  CHECK(b.size_bytes() == 4 * 34);
  CHECK(std::to_integer<int>(b.data[4 * 34 - 1]) == 7);
  const auto span = model.locate(b.slab(1));
  REQUIRE(span);
  CHECK(span->offset_bytes == data_at + 128 + 2 * 34);
  CHECK(span->size_bytes == 2 * 34);
  CHECK_FALSE(model.locate(Tensor(DType::kF32, {1}, file.bytes.data())));
  CHECK(model.find("c") == nullptr);
}

TEST_CASE("a vocabulary of real size is read") {
  const TempFolder folder;
  constexpr uint64_t kTokens = 129280;
  GgufBytes file = GgufBytes().header(0, 2).key_array("tokenizer.ggml.tokens", kString, kTokens);
  for (uint64_t i = 0; i < kTokens; ++i) file.text("token" + std::to_string(i));
  file.key_array("tokenizer.ggml.token_type", kI32, kTokens);
  for (uint64_t i = 0; i < kTokens; ++i) file.add<int32_t>(1);
  const GgufModel model = GgufModel::open(folder.write("vocab.gguf", file.bytes), {.header_only = true});
  CHECK(model.metadata().texts("tokenizer.ggml.tokens")->at(129279) == "token129279");
  CHECK(model.has_data());
}

TEST_CASE("model files of others are read") {
  const GgufModel v1 = GgufModel::open(kModels + "v1/v1-f16.gguf");
  CHECK(*v1.metadata().text("general.architecture") == "deepseek");
  CHECK(v1.tensors().size() == 38);
  CHECK(v1.find("token_embd.weight")->dtype == DType::kF16);
  const GgufModel v3 = GgufModel::open(kModels + "v3/v3-q4_k_m.gguf");
  CHECK(v3.tensors().size() == 49);
  for (const auto& [name, t] : v3.tensors()) {
    if (t.dtype != DType::kF32) continue;
    for (int64_t i = 0; i < t.shape.n_elements(); ++i) CHECK(std::isfinite(t.as<float>()[i]));
  }
}

TEST_CASE("any shard opens the whole model") {
  for (const char* shard : {"00001", "00002", "00003"}) {
    const GgufModel model = GgufModel::open(kModels + "v2lite/v2lite-q4_k_m-mla-" + shard + "-of-00003.gguf");
    CHECK(model.files().size() == 3);
    CHECK(model.tensors().size() == 44);
    CHECK(*model.metadata().text("general.architecture") == "deepseek2");
    CHECK(model.path() == kFirstShard);
    for (const auto& [name, t] : model.tensors()) CHECK(model.locate(t));
  }
}

// The three shards under other names and with other contents.
struct Shards {
  TempFolder folder;
  std::string name(int number, int count = 3) const {
    return folder / ("m-0000" + std::to_string(number) + "-of-0000" + std::to_string(count) + ".gguf");
  }
  void put(int from, const std::string& to) const {
    std::filesystem::copy_file(kModels + "v2lite/v2lite-q4_k_m-mla-0000" + std::to_string(from) + "-of-00003.gguf", to,
                               std::filesystem::copy_options::overwrite_existing);
  }
  void put_all() const {
    for (int i = 1; i <= 3; ++i) put(i, name(i));
  }
};

TEST_CASE("36: a missing shard is refused by its name") {
  Shards s;
  s.put_all();
  std::filesystem::remove(s.name(2));
  for (const int asked : {1, 3}) {
    const std::string message = [&] {
      try {
        (void)GgufModel::open(s.name(asked));
      } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::kModel);
        return std::string(error.what());
      }
      return std::string();
    }();
    CHECK(contains(message, "shard 2 of 3"));
    CHECK(contains(message, "m-00002-of-00003.gguf: no such file"));
  }
}

TEST_CASE("36: shards out of order, under another count and of another model are refused") {
  Shards s;
  s.put_all();
  s.put(3, s.name(2));
  const std::string swapped = [&] {
    try {
      (void)GgufModel::open(s.name(1));
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  }();
  CHECK(contains(swapped, "m-00002-of-00003.gguf: this is another shard than its name says"));
  CHECK(contains(swapped, "expected shard 2 (split.no 1), got split.no 2"));

  Shards two;
  two.put(1, two.name(1, 2));
  two.put(2, two.name(2, 2));
  CHECK(contains(refusal_of(two.name(1, 2)), "expected 2 as in the file's name, got 3"));

  Shards mixed;
  mixed.put_all();
  GgufBytes other =
      GgufBytes().header(0, 3).key("split.no", kU16).add<uint16_t>(1).key("split.count", kU16).add<uint16_t>(3);
  other.key("split.tensors.count", kI32).add<int32_t>(99);
  mixed.folder.write("m-00002-of-00003.gguf", other.bytes);
  CHECK_THROWS_WITH_AS(GgufModel::open(mixed.name(1)), doctest::Contains("a shard of another model"), Error);
}

TEST_CASE("36: shards that together lack tensors, renamed shards and impossible names are refused") {
  Shards s;
  s.put_all();
  GgufBytes empty =
      GgufBytes().header(0, 3).key("split.no", kU16).add<uint16_t>(2).key("split.count", kU16).add<uint16_t>(3);
  empty.key("split.tensors.count", kI32).add<int32_t>(44);
  s.folder.write("m-00003-of-00003.gguf", empty.bytes);
  CHECK(contains(refusal_of(s.name(1)), "the shards do not hold all tensors"));

  const std::string renamed = s.folder / "model.gguf";
  s.put(1, renamed);
  CHECK(contains(refusal_of(renamed), "MODEL-00001-of-00003.gguf"));
  s.put(1, s.name(4));
  CHECK(contains(refusal_of(s.name(4)), "impossible shard name"));
  s.put(1, s.name(0));
  CHECK(contains(refusal_of(s.name(0)), "impossible shard name"));
  s.put(1, s.name(1, 0));
  CHECK(contains(refusal_of(s.name(1, 0)), "impossible shard name"));
  CHECK(contains(refusal_of(s.folder.write("x-00001-of-00002.gguf", GgufBytes().header(0, 0).bytes)),
                 "expected 2 as in the file's name, got none"));
}

TEST_CASE("36: a truncated last shard is refused by its name") {
  Shards s;
  s.put_all();
  std::filesystem::resize_file(s.name(3), std::filesystem::file_size(s.name(3)) - 4096);
  CHECK_THROWS_WITH_AS(GgufModel::open(s.name(1)), doctest::Contains("shard 3 of 3, "), Error);
}

TEST_CASE("a model whose file is cut after opening says so when asked") {
  Shards s;
  s.put_all();
  const GgufModel model = GgufModel::open(s.name(1));
  model.check_intact();
  std::filesystem::resize_file(s.name(2), 4096);
  CHECK_THROWS_WITH_AS(model.check_intact(), doctest::Contains("m-00002-of-00003.gguf: the file became smaller"),
                       Error);
}

}  // namespace
}  // namespace fathom
