#include "cache/disk_store.h"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <chrono>

#include "cache_fixture.h"
#include "core/error.h"

namespace {

using namespace fathom;
using namespace fathom::cache_test;
namespace fs = std::filesystem;

constexpr uint64_t kRoomy = uint64_t{1} << 30;

struct Stage {
  TempFolder folder;
  fs::path path = folder.path / "store";
  PagePool pool{two_layers(), 40};

  Sequence computed(const Tokens& tokens) {
    Sequence s(pool);
    REQUIRE(extend(s, tokens));
    return s;
  }
  std::vector<fs::path> saved() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(path)) {
      if (entry.path().extension() == ".fkv") files.push_back(entry.path());
    }
    return files;
  }
  /// Makes every saved file look used `minutes` ago.
  void age(int minutes) {
    for (const fs::path& file : saved()) {
      fs::last_write_time(file, fs::last_write_time(file) - std::chrono::minutes(minutes));
    }
  }
};

TEST_CASE("the store finds the longest beginning, also after a restart, also inside a page") {
  Stage stage;
  const Tokens text = counting(150);
  {
    DiskStore store(stage.path, kRoomy, "A");
    CHECK(store.match_length(text) == 0);
    CHECK_FALSE(store.restore(text, stage.pool).has_value());
    CHECK(store.save(text, stage.computed(text)));
    CHECK(store.save(counting(50, 900), stage.computed(counting(50, 900))));
    CHECK(store.save(text, stage.computed(text)));  // known already
    CHECK(stage.saved().size() == 2);
  }
  DiskStore store(stage.path, kRoomy, "A");
  const Sequence original = stage.computed(text);
  for (const int64_t n : {1, 63, 64, 65, 127, 128, 129, 150}) {
    CAPTURE(n);
    Tokens query = counting(n);
    query.push_back(-1);
    CHECK(store.match_length(query) == n);
    const std::optional<Sequence> back = store.restore(query, stage.pool);
    REQUIRE(back.has_value());
    CHECK(back->length() == n);
    CHECK(same_rows(original, *back, n));
    check_integrity(stage.pool, {&original, &*back});
  }
  CHECK(store.match_length(Tokens{7, 8}) == 0);
  CHECK_FALSE(store.save(Tokens{}, original));
}

TEST_CASE("a longer text takes the place of its own beginning") {
  Stage stage;
  DiskStore store(stage.path, kRoomy, "A");
  CHECK(store.save(counting(70), stage.computed(counting(70))));
  CHECK(store.save(counting(90), stage.computed(counting(90))));
  CHECK(stage.saved().size() == 1);
  CHECK(store.match_length(counting(200)) == 90);
}

TEST_CASE("files of another model are neither found nor removed") {
  Stage stage;
  DiskStore a(stage.path, kRoomy, "A"), b(stage.path, kRoomy, "B");
  CHECK(a.save(counting(70), stage.computed(counting(70))));
  CHECK(b.match_length(counting(70)) == 0);
  CHECK(b.save(counting(90), stage.computed(counting(90))));
  CHECK(a.match_length(counting(90)) == 70);
  CHECK(stage.saved().size() == 2);
}

TEST_CASE("a pool of another type gets converted rows, or its own if they were saved too") {
  Stage stage;
  DiskStore store(stage.path, kRoomy, "A");
  PagePool exact(two_layers(DType::kF32), 8), coarse(two_layers(DType::kQ8_0), 8);
  for (int32_t first = 0; first < 6000; first += 1000) {  // names, hence the order of files, differ
    CAPTURE(first);
    const Tokens tokens = counting(70, first);
    Sequence original(exact), rounded(coarse);
    REQUIRE(extend(original, tokens));
    REQUIRE(extend(rounded, tokens));
    CHECK(store.save(tokens, rounded));
    std::optional<Sequence> back = store.restore(tokens, exact);
    REQUIRE(back.has_value());
    CHECK(back->length() == 70);
    CHECK_FALSE(same_rows(original, *back, 70));
    back.reset();
    CHECK(store.save(tokens, original));
    back = store.restore(tokens, exact);
    REQUIRE(back.has_value());
    CHECK(same_rows(original, *back, 70));
  }
  CHECK(stage.saved().size() == 12);
}

TEST_CASE("the folder stays below its size, the least recently used files go first") {
  Stage stage;
  uint64_t one = 0;
  {
    DiskStore store(stage.path, kRoomy, "A");
    CHECK(store.save(counting(64, 0), stage.computed(counting(64, 0))));
    one = store.used_bytes();
  }
  std::ofstream(stage.path / "notes.txt") << "not the store's";
  std::ofstream(stage.path / "0123456789abcdef0123456789abcdef.txt") << "neither";
  DiskStore store(stage.path, one * 5 / 2, "A");
  stage.age(30);
  CHECK(store.save(counting(64, 1000), stage.computed(counting(64, 1000))));
  stage.age(10);
  CHECK(store.restore(counting(64, 0), stage.pool).has_value());  // used now
  CHECK(store.save(counting(64, 2000), stage.computed(counting(64, 2000))));
  CHECK(store.used_bytes() <= one * 5 / 2);
  CHECK(store.match_length(counting(64, 0)) == 64);
  CHECK(store.match_length(counting(64, 1000)) == 0);
  CHECK(store.match_length(counting(64, 2000)) == 64);
  CHECK(fs::exists(stage.path / "notes.txt"));
  CHECK(fs::exists(stage.path / "0123456789abcdef0123456789abcdef.txt"));
  CHECK_FALSE(store.save(counting(1000), stage.computed(counting(1000))));  // larger than the store
  CHECK(store.match_length(counting(64, 0)) == 64);
}

TEST_CASE("temporary files of dead writers go, those of living ones stay") {
  Stage stage;
  DiskStore store(stage.path, kRoomy, "A");
  const fs::path dead = stage.path / "0123456789abcdef0123456789abcdef.fkv.tmp-1-0";
  const fs::path living = stage.path / "0123456789abcdef0123456789abcdef.fkv.tmp-2-0";
  std::ofstream(dead) << "x";
  std::ofstream(living) << "x";
  fs::last_write_time(dead, fs::last_write_time(dead) - std::chrono::hours(2));
  store.evict();
  CHECK_FALSE(fs::exists(dead));
  CHECK(fs::exists(living));
}

TEST_CASE("a damaged file is reported once, removed, and leaves pool and store as they were") {
  Stage stage;
  DiskStore store(stage.path, kRoomy, "A");
  CHECK(store.save(counting(150), stage.computed(counting(150))));
  const Tokens other = counting(70, 500);
  CHECK(store.save(other, stage.computed(other)));
  CHECK(store.match_length(counting(150)) == 150);
  for (const fs::path& file : stage.saved()) {
    std::vector<char> bytes = bytes_of(file);
    if (SequenceFile(file).tokens() == other) continue;
    bytes.back() = static_cast<char>(bytes.back() ^ 1);
    write_bytes(file, bytes);
  }
  const Sequence live = stage.computed(counting(150));
  CHECK_THROWS_WITH_AS((void)store.restore(counting(150), stage.pool), doctest::Contains("damaged"), Error);
  check_integrity(stage.pool, {&live});
  CHECK_FALSE(store.restore(counting(150), stage.pool).has_value());
  CHECK(store.restore(other, stage.pool).has_value());
  CHECK(same_rows(live, stage.computed(counting(150)), 150));
}

TEST_CASE("a file that vanished is a miss, and garbage under a store's name is passed over") {
  Stage stage;
  DiskStore store(stage.path, kRoomy, "A");
  std::ofstream(stage.path / "0123456789abcdef0123456789abcdef.fkv") << "garbage";
  CHECK(store.match_length(counting(10)) == 0);
  CHECK(store.save(counting(150), stage.computed(counting(150))));
  CHECK(store.match_length(counting(150)) == 150);
  for (const fs::path& file : stage.saved()) fs::remove(file);
  CHECK_FALSE(store.restore(counting(150), stage.pool).has_value());
  CHECK(store.used_bytes() == 0);
}

TEST_CASE("a pool without room is a miss, and the file stays") {
  Stage stage;
  DiskStore store(stage.path, kRoomy, "A");
  CHECK(store.save(counting(150), stage.computed(counting(150))));
  PagePool small(two_layers(), 2);
  CHECK_FALSE(store.restore(counting(150), small).has_value());
  CHECK(store.match_length(counting(150)) == 150);
  CHECK(store.restore(counting(128), small).has_value());
}

TEST_CASE("the folder is private, and a place that is none is refused") {
  Stage stage;
  fs::create_directory(stage.path);
  fs::permissions(stage.path, fs::perms::all);
  DiskStore store(stage.path, kRoomy, "A");
  struct stat info {};
  REQUIRE(::stat(stage.path.c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0700);
  const fs::path deep = stage.folder.path / "x" / "y" / "z";
  DiskStore nested(deep, kRoomy, "A");
  CHECK(fs::is_directory(deep));
  std::ofstream(stage.folder.path / "file") << "x";
  CHECK_THROWS_AS(DiskStore(stage.folder.path / "file", kRoomy, "A"), Error);
}

TEST_CASE("two processes saving, restoring and evicting in one folder never meet a broken file") {
  Stage stage;
  const Tokens base = counting(64, 0);
  uint64_t one = 0;
  {
    DiskStore probe(stage.path, kRoomy, "A");
    REQUIRE(probe.save(base, stage.computed(base)));
    one = probe.used_bytes();
  }
  const auto work = [&](int32_t offset) {
    try {
      PagePool pool(two_layers(), 8);
      DiskStore store(stage.path, one * 3, "A");
      for (int32_t i = 0; i < 20; ++i) {
        const Tokens tokens = counting(64, (i + offset) % 7 * 100);
        Sequence s(pool);
        if (!extend(s, tokens) || !store.save(tokens, s)) return 2;
        const Tokens wanted = counting(64, i % 5 * 100);
        if (const std::optional<Sequence> back = store.restore(wanted, pool)) {
          Sequence expected(pool);
          if (!extend(expected, wanted) || !same_rows(expected, *back, back->length())) return 3;
        }
      }
      return 0;
    } catch (const std::exception&) {
      return 4;
    }
  };
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) ::_exit(work(3));
  CHECK(work(0) == 0);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  DiskStore store(stage.path, one * 3, "A");
  store.evict();
  CHECK(store.used_bytes() <= one * 3);
}

}  // namespace
