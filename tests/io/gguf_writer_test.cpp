#include "io/gguf_writer.h"

#include <vector>

#include "gguf_bytes.h"

namespace fathom {
namespace {

std::vector<float> ramp(size_t n, float from) {
  std::vector<float> values(n);
  for (size_t i = 0; i < n; ++i) values[i] = from + static_cast<float>(i);
  return values;
}

size_t n_files_in(const TempFolder& folder) {
  size_t n = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder / "")) ++n;
  return n;
}

TEST_CASE("what is written is read back: values, types, tensors") {
  const TempFolder folder;
  const std::string path = folder / "out.gguf";
  GgufWriter writer(path, {.alignment = 64});
  writer.set_text("general.architecture", "deepseek2");
  writer.set_u32("deepseek2.block_count", 2);
  writer.set_u32("deepseek2.block_count", 3);
  writer.set_u64("big", 1ull << 63);
  writer.set_f32("eps", 1e-6);
  writer.set_bool("yes", true);
  writer.set_texts("texts", {"a", "", "｜"});
  writer.set_i32s("ints", {-1, 2});
  writer.set_f32s("floats", {0.5, 2.0});
  writer.set("flags", std::vector<int64_t>{1, 0}, {GgufValueType::kArray, GgufValueType::kBool});
  writer.set("small", int64_t{-3}, {GgufValueType::kI8});
  writer.add_tensor("a", DType::kF32, {2, 3});
  writer.add_tensor("none", DType::kF32, {0, 3});
  writer.add_tensor("b", DType::kQ8_0, {2, 2, 32});
  writer.begin();
  const std::vector<float> a = ramp(6, 1.0f);
  writer.write("a", a.data(), 4);
  writer.write("a", a.data() + 1, 20);
  const std::string b(4 * 34, 'b');
  writer.write("b", b.data(), b.size());
  CHECK_FALSE(std::filesystem::exists(path));
  writer.finish();
  CHECK(n_files_in(folder) == 1);

  const GgufModel model = GgufModel::open(path);
  const Metadata& m = model.metadata();
  CHECK(m.integer("deepseek2.block_count") == 3);
  CHECK(m.integer("general.alignment") == 64);
  CHECK(std::get<uint64_t>(*m.find("big")) == 1ull << 63);
  CHECK(m.number("eps") == static_cast<double>(1e-6f));
  CHECK(m.boolean("yes") == true);
  CHECK(*m.texts("texts") == std::vector<std::string>{"a", "", "｜"});
  CHECK(*m.integers("ints") == std::vector<int64_t>{-1, 2});
  CHECK(*m.numbers("floats") == std::vector<double>{0.5, 2.0});
  CHECK(*m.integers("flags") == std::vector<int64_t>{1, 0});
  CHECK(m.integer("small") == -3);
  CHECK(model.files()[0].stored_types.at("ints").text() == "array of i32");
  CHECK(model.files()[0].stored_types.at("deepseek2.block_count").text() == "u32");
  CHECK(model.tensors().size() == 3);
  CHECK(model.find("a")->shape == Shape{2, 3});
  CHECK(std::memcmp(model.find("a")->data, a.data(), 24) == 0);
  CHECK(std::memcmp(model.find("b")->data, b.data(), b.size()) == 0);
  CHECK(reinterpret_cast<uintptr_t>(model.find("b")->data) % 64 == 0);
}

TEST_CASE("a copy of a model of others holds the same metadata and bytes") {
  const GgufModel from =
      GgufModel::open(std::string(FATHOM_FIXTURES) + "/models/v2lite/v2lite-q4_k_m-mla-00001-of-00003.gguf");
  const TempFolder folder;
  for (const uint64_t split : {uint64_t{0}, uint64_t{150000}}) {
    CAPTURE(split);
    GgufWriter writer(folder / ("copy" + std::to_string(split) + ".gguf"), {.split_max_bytes = split});
    writer.copy_metadata(from.files().front());
    for (const GgufFile& gguf : from.files()) {
      for (const GgufTensorInfo& t : gguf.tensors) writer.add_tensor(t.name, t.dtype, t.shape);
    }
    writer.begin();
    for (const GgufFile& gguf : from.files()) {
      for (const GgufTensorInfo& t : gguf.tensors)
        writer.write(t.name, gguf.file->data() + t.offset_bytes, t.size_bytes);
    }
    const std::vector<std::string> paths = writer.paths();
    writer.finish();
    if (split == 0) CHECK(paths == std::vector<std::string>{folder / "copy0.gguf"});
    if (split > 0) CHECK(contains(paths.at(1), "copy150000-00002-of-000"));
    const GgufModel copy = GgufModel::open(paths.back());
    CHECK(copy.files().size() == paths.size());
    for (const GgufFile& gguf : copy.files()) {
      uint64_t data_bytes = gguf.file->size_bytes() - gguf.data_offset;
      if (split > 0 && gguf.tensors.size() > 1) CHECK(data_bytes <= split + 32);
      CHECK_FALSE(gguf.tensors.empty());
    }
    REQUIRE(copy.tensors().size() == from.tensors().size());
    for (const auto& [name, t] : from.tensors()) {
      const Tensor& c = copy.tensors().at(name);
      CHECK(c.describe() == t.describe());
      CHECK(std::memcmp(c.data, t.data, t.size_bytes()) == 0);
    }
    for (const auto& [key, value] : from.metadata().all()) {
      if (key.starts_with("split.")) continue;
      CHECK(copy.metadata().all().at(key) == value);
      CHECK(copy.files().front().stored_types.at(key).text() == from.files().front().stored_types.at(key).text());
    }
  }
}

TEST_CASE("metadata alone is a file") {
  const TempFolder folder;
  GgufWriter writer(folder / "vocab.gguf");
  writer.set_texts("tokenizer.ggml.tokens", {"a"});
  writer.begin();
  writer.finish();
  const GgufModel model = GgufModel::open(folder / "vocab.gguf");
  CHECK(model.tensors().empty());
  CHECK(model.has_data());
}

TEST_CASE("a writer given up leaves the old file and no other") {
  const TempFolder folder;
  const std::string path = folder.write("out.gguf", "old");
  {
    GgufWriter writer(path);
    writer.add_tensor("a", DType::kF32, {4});
    writer.begin();
    writer.write("a", "0123", 4);
    CHECK_THROWS_AS(writer.finish(), BugError);
  }
  CHECK(read_bytes(path) == "old");
  CHECK(n_files_in(folder) == 1);
}

TEST_CASE("misuse of the writer is a bug, a folder that does not exist is an error") {
  const TempFolder folder;
  GgufWriter writer(folder / "out.gguf");
  CHECK_THROWS_AS(writer.set("k", int64_t{256}, {GgufValueType::kU8}), BugError);
  CHECK_THROWS_AS(writer.set("k", std::string("x"), {GgufValueType::kU8}), BugError);
  CHECK_THROWS_AS(writer.set("k", 1.0, {GgufValueType::kU32}), BugError);
  CHECK_THROWS_AS(writer.add_tensor("t", DType::kF8_E4M3, {4}), BugError);
  writer.add_tensor("a", DType::kF32, {1});
  writer.add_tensor("b", DType::kF32, {1});
  writer.begin();
  CHECK_THROWS_AS(writer.write("b", "0123", 4), BugError);
  CHECK_THROWS_AS(writer.write("a", "01234567", 8), BugError);
  CHECK_THROWS_AS(writer.set_u32("late", 1), BugError);
  GgufWriter twice(folder / "twice.gguf");
  twice.add_tensor("a", DType::kF32, {1});
  twice.add_tensor("a", DType::kF32, {1});
  CHECK_THROWS_AS(twice.begin(), BugError);
  GgufWriter nowhere(folder / "none/out.gguf");
  CHECK_THROWS_WITH_AS(nowhere.begin(), doctest::Contains("none/out.gguf"), Error);
}

}  // namespace
}  // namespace fathom
