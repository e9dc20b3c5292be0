#include "io/gguf_writer.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <random>
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
  writer.set("big", uint64_t{1} << 63, {GgufValueType::kU64});
  writer.set_f32("eps", 1e-6);
  writer.set_bool("yes", true);
  writer.set_texts("texts", {"a", "", "｜"});
  writer.set_i32s("ints", {-1, 2});
  writer.set("floats", std::vector<double>{0.5, 2.0}, {GgufValueType::kArray, GgufValueType::kF32});
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

// Twelve tensors of 4 to 48 KB in one or several shards, the journal written after each.
struct Job {
  std::string path;
  uint64_t split_max_bytes = 0;
  char first_byte = 'a';  ///< of all tensors

  /// Declares, goes on with what is there, writes in pieces. `before` is asked with the bytes written by this call.
  size_t run(const std::function<void(uint64_t)>& before, bool finishes = true) const {
    GgufWriter writer(path,
                      {.split_max_bytes = split_max_bytes, .resume_key = std::string(1, first_byte), .note_bytes = 1});
    writer.set_text("general.name", "job");
    for (int64_t i = 0; i < 12; ++i) writer.add_tensor(name(i), DType::kF32, {i + 1, 1024});
    const size_t n_there = writer.begin();
    uint64_t written = 0;
    for (auto i = static_cast<int64_t>(n_there); i < 12; ++i) {
      const std::string piece(2048, static_cast<char>(first_byte + i));
      for (int64_t k = 0; k < 2 * (i + 1); ++k, written += piece.size()) {
        before(written);
        writer.write(name(i), piece.data(), piece.size());
      }
    }
    if (finishes) writer.finish();
    return n_there;
  }
  /// The same in a process that kills itself before it would write byte `at`.
  void run_killed(uint64_t at, bool finishes = true) const {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      run(
          [&](uint64_t written) {
            if (written >= at) ::kill(::getpid(), SIGKILL);
          },
          finishes);
      ::kill(::getpid(), SIGKILL);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));
  }
  std::string bytes() const {
    std::string all;
    if (split_max_bytes == 0) return read_bytes(path);
    const GgufModel model = GgufModel::open(path.substr(0, path.size() - 5) + "-00001-of-00005.gguf");
    for (const GgufFile& file : model.files()) all += read_bytes(file.file->path());
    return all;
  }
  static std::string name(int64_t i) { return "t" + std::to_string(i); }
};

TEST_CASE("a writer killed at any moment is gone on with, and the bytes are those of one left alone") {
  std::mt19937 rng(5);
  int n_gone_on = 0;
  for (const uint64_t split : {uint64_t{0}, uint64_t{90000}}) {
    CAPTURE(split);
    const TempFolder undisturbed;
    const Job whole{undisturbed / "out.gguf", split};
    whole.run([](uint64_t) {});
    for (int round = 0; round < 12; ++round) {
      CAPTURE(round);
      const TempFolder folder;
      const Job job{folder / "out.gguf", split};
      for (int kill = 0; kill < 3; ++kill) job.run_killed(rng() % 160000, false);
      CHECK_FALSE(std::filesystem::exists(folder / "out.gguf"));
      const size_t n_there = job.run([](uint64_t) {});
      n_gone_on += n_there > 0 ? 1 : 0;
      CHECK(job.bytes() == whole.bytes());
      CHECK(n_files_in(folder) == n_files_in(undisturbed));
    }
  }
  CHECK(n_gone_on > 20);
}

TEST_CASE("a writer killed when all was written, or while shards got their names, only has to put them in place") {
  for (const uint64_t split : {uint64_t{0}, uint64_t{90000}}) {
    CAPTURE(split);
    const TempFolder folder;
    const Job job{folder / "out.gguf", split};
    job.run_killed(uint64_t{1} << 30, false);
    CHECK(job.run([](uint64_t) {}) == 12);
  }
  // As finish() leaves it between two shards: the journal says that all are whole, the last has its name.
  const TempFolder folder;
  const Job job{folder / "out.gguf", 90000};
  job.run([](uint64_t) {});
  const std::string whole = job.bytes();
  const auto shard = [&](int i) { return folder / ("out-0000" + std::to_string(i) + "-of-00005.gguf"); };
  job.run_killed(uint64_t{1} << 30, false);
  std::string journal = read_bytes(folder / "out.gguf.journal");
  journal = journal.substr(0, journal.find(' ', 18)) + " 5 0\n";
  folder.write("out.gguf.journal", journal);
  for (const int i : {4, 5}) std::filesystem::rename(shard(i) + ".part", shard(i));
  CHECK(job.run([](uint64_t) {}) == 12);
  CHECK(job.bytes() == whole);
  CHECK(n_files_in(folder) == 5);
}

TEST_CASE("a journal does not speak for what another job wrote in the place of its own bytes") {
  const TempFolder folder;
  const Job mine{folder / "out.gguf"}, other{folder / "out.gguf", 0, 'A'};
  mine.run_killed(100000);
  std::string journal = read_bytes(folder / "out.gguf.journal");
  other.run_killed(3000);
  CHECK(read_bytes(folder / "out.gguf.journal") != journal);
  CHECK(mine.run([](uint64_t) {}) == 0);
  CHECK(mine.bytes().find('A' + std::string(100, 'A')) == std::string::npos);
}

TEST_CASE("a writer that is discarded leaves nothing behind") {
  const TempFolder folder;
  {
    GgufWriter writer(folder / "out.gguf", {.resume_key = "source"});
    writer.add_tensor("a", DType::kF32, {1});
    writer.begin();
    CHECK(n_files_in(folder) == 1);
    writer.discard();
  }
  CHECK(n_files_in(folder) == 0);
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
