#include "io/safetensors.h"

#include <sys/stat.h>

#include <random>
#include <vector>

#include "gguf_bytes.h"

namespace fathom {
namespace {

std::string with_header(const std::string& json, size_t n_data_bytes) {
  std::string bytes(8, '\0');
  const uint64_t n = json.size();
  std::memcpy(bytes.data(), &n, 8);
  return bytes + json + std::string(n_data_bytes, 'd');
}

std::string refusal_of_path(const std::string& path) {
  try {
    (void)SafetensorsModel::open(path);
  } catch (const Error& error) {
    const std::string message = error.what();
    CAPTURE(message);
    CHECK(error.code() == ErrorCode::kModel);
    CHECK(contains(message, "expected "));
    CHECK(contains(message, ", got "));
    CHECK(contains(message, "; try "));
    return message;
  }
  FAIL("accepted: " << path);
  return "";
}

std::string refusal(const std::string& bytes) {
  const TempFolder folder;
  return refusal_of_path(folder.write("m.safetensors", bytes));
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

TEST_CASE("what is written is read back, aligned") {
  const TempFolder folder;
  const std::string path = folder / "out.safetensors";
  const std::vector<uint8_t> bytes = {1, 2, 3};
  const std::vector<float> floats = {1.5f, -2.0f, 0.0f, 4.0f};
  const std::vector<int64_t> ids = {-1, 1ll << 40};
  const int32_t scalar = 7;
  write_safetensors(path,
                    {{"bytes", SafetensorsType::kU8, {3}, bytes.data()},
                     {"floats", SafetensorsType::kF32, {2, 2}, floats.data()},
                     {"ids", SafetensorsType::kI64, {2}, ids.data()},
                     {"none", SafetensorsType::kF16, {0, 5}, nullptr},
                     {"scalar \"x\"", SafetensorsType::kI32, {}, &scalar}},
                    {{"format", "pt"}});
  const SafetensorsModel model = SafetensorsModel::open(path);
  CHECK(model.tensors().size() == 5);
  CHECK(model.metadata().at("format") == "pt");
  CHECK(std::memcmp(model.find("bytes")->data, bytes.data(), 3) == 0);
  const Tensor f = model.find("floats")->view("floats");
  CHECK(f.describe() == "f32 [2, 2]");
  CHECK(f.row_as<float>(1)[1] == 4.0f);
  CHECK(std::memcmp(model.find("ids")->data, ids.data(), 16) == 0);
  CHECK(model.find("none")->size_bytes == 0);
  CHECK(model.find("scalar \"x\"")->view("s").as<int32_t>()[0] == 7);
  for (const auto& [name, t] : model.tensors())
    CHECK(t.offset_bytes % static_cast<uint64_t>(safetensors_type_bytes(t.type)) == 0);
  CHECK_THROWS_WITH_AS((void)model.find("bytes")->view("bytes"), doctest::Contains("got U8"), Error);
  CHECK(model.find("nothing") == nullptr);
}

TEST_CASE("all types of checkpoints have their size") {
  const TempFolder folder;
  const std::pair<const char*, int> types[] = {
      {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1}, {"I64", 8},
      {"I32", 4}, {"I16", 2}, {"I8", 1},  {"U64", 8},  {"U32", 4},     {"U16", 2},     {"U8", 1},      {"BOOL", 1}};
  for (const auto& [name, size] : types) {
    const std::string path = folder.write(
        "m.safetensors", with_header("{" + entry("t", name, "[3,1]", "[0," + std::to_string(3 * size) + "]") + "}  ",
                                     static_cast<size_t>(3 * size)));
    const SafetensorsModel model = SafetensorsModel::open(path);
    CHECK(safetensors_type_name(model.find("t")->type) == name);
    CHECK(model.find("t")->shape == std::vector<int64_t>{3, 1});
  }
}

TEST_CASE("35: headers longer than the file or the limit are refused") {
  CHECK(contains(refusal(""), "too short"));
  CHECK(contains(refusal("1234567"), "got 7"));
  for (const uint64_t n : {~uint64_t{0}, uint64_t{1} << 62, uint64_t{100}}) {
    std::string bytes = with_header("{}", 10);
    std::memcpy(bytes.data(), &n, 8);
    CHECK(contains(refusal(bytes), "longer than the file"));
  }
  const TempFolder folder;
  std::string large = with_header("{}", 0);
  const uint64_t n = 100000000;
  std::memcpy(large.data(), &n, 8);
  const std::string path = folder.write("m.safetensors", large);
  std::filesystem::resize_file(path, n + 8);  // sparse
  CHECK(contains(refusal_of_path(path), "too long"));
}

TEST_CASE("35: damaged, nested and strange headers are refused") {
  for (const char* json : {"", "{", "nonsense", "{}x", "{\"a\":}", "{\"\xff\":{}}"})
    CHECK(contains(refusal(with_header(json, 0)), "damaged JSON"));
  for (const char* json :
       {"[]", "1", "null", "{\"a\":1}", "{\"a\":[]}", "{\"a\":{\"dtype\":1}}", "{\"a\":{\"shape\":{}}}",
        "{\"a\":{\"shape\":[-1]}}", "{\"a\":{\"shape\":[1.5]}}", "{\"a\":{\"shape\":[[1]]}}",
        "{\"a\":{\"data_offsets\":[-4,0]}}", "{\"a\":{\"data_offsets\":[1]}}", "{\"a\":{\"data_offsets\":[0,1,2]}}",
        "{\"__metadata__\":{\"k\":1}}", "{\"__metadata__\":{\"k\":{}}}"}) {
    CAPTURE(json);
    CHECK(contains(refusal(with_header(json, 8)), "a wrong value"));
  }
  CHECK(contains(refusal(with_header(std::string(1000000, '['), 0)), "a wrong value"));
  CHECK(contains(refusal(with_header("{\"a\":{\"shape\":" + std::string(1000000, '['), 0)), "a wrong value"));
  CHECK(contains(refusal(with_header("{\"a\":{\"dtype\":\"F32\"}}", 0)), "incomplete"));
  CHECK(contains(refusal(with_header("{\"a\":{\"other\":1}}", 0)), "unknown field"));
  CHECK(contains(refusal(with_header("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 0)), "twice"));
}

TEST_CASE("35: ranges and shapes that do not fit are refused") {
  const auto one = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return refusal(with_header("{" + entry("t", dtype, shape, offsets) + "}", 16));
  };
  CHECK(contains(one("F32", "[4]", "[0,17]"), "does not lie in the file"));
  CHECK(contains(one("F32", "[4]", "[16,0]"), "does not lie in the file"));
  CHECK(contains(one("F32", "[4]", "[18446744073709551600,18446744073709551615]"), "does not lie in the file"));
  CHECK(contains(one("F32", "[3]", "[0,16]"), "expected 12 bytes, got 16"));
  CHECK(contains(one("F16", "[4]", "[0,16]"), "expected 8 bytes, got 16"));
  CHECK(contains(one("F32", "[]", "[0,16]"), "expected 4 bytes, got 16"));
  CHECK(contains(one("F32", "[4294967296,4294967296,4]", "[0,16]"), "overflows"));
  CHECK(contains(one("F32", "[0,4294967296,4294967296]", "[0,0]"), "overflows"));
  CHECK(contains(one("F32", "[18446744073709551615]", "[0,16]"), "overflows"));
  CHECK(contains(one("F4", "[4]", "[0,16]"), "unknown dtype"));
  CHECK(contains(refusal(with_header(
                     "{" + entry("a", "U8", "[10]", "[0,10]") + "," + entry("b", "U8", "[7]", "[9,16]") + "}", 16)),
                 "'a' and 'b' overlap"));
  CHECK(contains(
      refusal(with_header("{" + entry("a", "U8", "[8]", "[0,8]") + "," + entry("a", "U8", "[8]", "[8,16]") + "}", 16)),
      "twice"));
}

struct Checkpoint {
  TempFolder folder;
  Checkpoint() {
    const float one = 1.0f;
    const float two = 2.0f;
    write_safetensors(folder / "model-00001-of-00002.safetensors",
                      {{"a", SafetensorsType::kF32, {1}, &one}, {"extra", SafetensorsType::kF32, {1}, &one}});
    write_safetensors(folder / "model-00002-of-00002.safetensors", {{"b", SafetensorsType::kF32, {1}, &two}});
  }
  void index(const std::string& json) const { folder.write("model.safetensors.index.json", json); }
};

TEST_CASE("a folder with an index holds the tensors that the index names") {
  const Checkpoint c;
  c.index(
      R"({"metadata":{"total_size":8,"x":[1,{"y":null}]},"weight_map":{"b":"model-00002-of-00002.safetensors","a":"model-00001-of-00002.safetensors"}})");
  for (const char* path : {"", "model.safetensors.index.json"}) {
    const SafetensorsModel model = SafetensorsModel::open(c.folder / path);
    CHECK(model.tensors().size() == 2);
    CHECK(model.files().size() == 2);
    CHECK(model.find("b")->view("b").as<float>()[0] == 2.0f);
  }
}

TEST_CASE("a folder without index holds model.safetensors") {
  const TempFolder folder;
  CHECK(contains(refusal_of_path(folder / ""), "no model in this folder"));
  const float one = 1.0f;
  write_safetensors(folder / "model.safetensors", {{"a", SafetensorsType::kF32, {1}, &one}});
  CHECK(SafetensorsModel::open(folder / "").tensors().size() == 1);
}

TEST_CASE("36: wrong indexes and missing shards are refused") {
  const Checkpoint c;
  const auto index = [&](const std::string& json) {
    c.index(json);
    return refusal_of_path(c.folder / "");
  };
  CHECK(contains(index(R"({"weight_map":{"a":"model-00003-of-00002.safetensors"}})"), "no such file"));
  CHECK(contains(index(R"({"weight_map":{"a":"model-00002-of-00002.safetensors"}})"), "the index is wrong"));
  for (const char* name : {"../x.safetensors", "/etc/passwd", "", "..", "a\\\\b", "a\\u0000b"}) {
    CHECK(contains(index(R"({"weight_map":{"a":")" + std::string(name) + "\"}}"), "outside its folder"));
  }
  CHECK(contains(index(R"({"weight_map":{"a":"x","a":"x"}})"), "twice"));
  CHECK(contains(index(R"({"weight_map":{"a":1}})"), "a wrong value"));
  CHECK(contains(index(R"({"weight_map":{"a":{}}})"), "a wrong value"));
  CHECK(contains(index(R"({"weight_map":[]})"), "a wrong value"));
  CHECK(contains(index(R"({"weight_map":null})"), "a wrong value"));
  CHECK(contains(index(R"({"metadata":{}})"), "weight_map"));
  CHECK(contains(index("{"), "damaged JSON"));
  CHECK(contains(index("[]"), "a wrong value"));
  CHECK(contains(index("{\"m\":" + std::string(1000000, '[')), "nested too deeply"));
}

TEST_CASE("38: an index or file that is no regular file is refused at once") {
  const TempFolder folder;
  REQUIRE(::mkfifo((folder / "model.safetensors").c_str(), 0600) == 0);
  CHECK(contains(refusal_of_path(folder / ""), "got a FIFO"));
  std::filesystem::create_directory(folder / "model.safetensors.index.json");
  CHECK(contains(refusal_of_path(folder / ""), "got a folder"));
}

TEST_CASE("files with flipped or missing bytes load or are refused") {
  const TempFolder folder;
  const std::vector<float> data(8, 1.0f);
  const std::string path = folder / "m.safetensors";
  write_safetensors(
      path, {{"a", SafetensorsType::kF32, {2, 3}, data.data()}, {"b", SafetensorsType::kBF16, {4}, data.data()}},
      {{"k", "v"}});
  const std::string whole = read_bytes(path);
  for (size_t n = 0; n < whole.size(); ++n) refusal_of_path(folder.write("cut.safetensors", whole.substr(0, n)));
  for (unsigned seed = 0; seed < 4000; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    std::string bytes = whole;
    for (unsigned i = 0; i < 1 + seed % 2; ++i)
      bytes[random() % (whole.size() - 32)] =
          static_cast<char>(seed % 3 == 0 ? random() : "0123456789[]{},:\""[random() % 17]);
    try {
      const SafetensorsModel model = SafetensorsModel::open(folder.write("flipped.safetensors", bytes));
      for (const auto& [name, t] : model.tensors()) CHECK(t.offset_bytes + t.size_bytes <= bytes.size());
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kModel);
    }
  }
}

TEST_CASE("a failed write leaves the old file") {
  const TempFolder folder;
  const float one = 1.0f;
  CHECK_THROWS_AS(write_safetensors(folder / "none/out.safetensors", {{"a", SafetensorsType::kF32, {1}, &one}}), Error);
  const std::string path = folder.write("out.safetensors", "old");
  CHECK_THROWS_AS(
      write_safetensors(path, {{"a", SafetensorsType::kF32, {1}, &one}, {"a", SafetensorsType::kF32, {1}, &one}}),
      BugError);
  CHECK(read_bytes(path) == "old");
}

}  // namespace
}  // namespace fathom
