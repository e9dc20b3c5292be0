#include "core/atomic_file.h"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <string>

#include "core/error.h"

namespace {

using fathom::AtomicFile;
namespace fs = std::filesystem;

struct TempFolder {
  fs::path path = fs::temp_directory_path() / ("fathom_atomic_file_test_" + std::to_string(::getpid()));
  TempFolder() {
    fs::remove_all(path);
    fs::create_directory(path);
  }
  ~TempFolder() { fs::remove_all(path); }
  size_t n_files() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(path), fs::directory_iterator()));
  }
};

std::string content(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST_CASE("a committed file holds what was written, with the asked mode and no leftovers") {
  TempFolder folder;
  const fs::path path = folder.path / "a";
  AtomicFile file(path, 0600);
  file.write("0000 world", 10);
  file.write_at(0, "helo", 4);
  CHECK(file.written_bytes() == 10);
  CHECK_FALSE(fs::exists(path));
  file.commit();
  CHECK(content(path) == "helo world");
  struct stat info {};
  REQUIRE(::stat(path.c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0600);
  CHECK(folder.n_files() == 1);
}

TEST_CASE("a file given up leaves the old one as it was and no temporary") {
  TempFolder folder;
  const fs::path path = folder.path / "a";
  std::ofstream(path) << "old";
  {
    AtomicFile file(path);
    file.write("new", 3);
  }
  CHECK(content(path) == "old");
  CHECK(folder.n_files() == 1);
}

TEST_CASE("two writers of one path do not mix: the last commit wins") {
  TempFolder folder;
  const fs::path path = folder.path / "a";
  AtomicFile first(path), second(path);
  first.write("first", 5);
  second.write("second", 6);
  second.commit();
  first.commit();
  CHECK(content(path) == "first");
  CHECK(folder.n_files() == 1);
}

TEST_CASE("a missing folder is an error that names the path; misuse is a bug") {
  TempFolder folder;
  CHECK_THROWS_WITH_AS(AtomicFile(folder.path / "none" / "a"), doctest::Contains("none/a"), fathom::Error);
  AtomicFile file(folder.path / "a");
  file.write("abc", 3);
  CHECK_THROWS_AS(file.write_at(2, "xy", 2), fathom::BugError);
  file.commit();
  CHECK_THROWS_AS(file.commit(), fathom::BugError);
}

}  // namespace
