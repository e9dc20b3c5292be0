#include "io/mapped_file.h"

#include <sys/stat.h>

#include "gguf_bytes.h"

namespace fathom {
namespace {

constexpr size_t kPage = 4096;

std::string refusal_to_map(const std::string& path) {
  try {
    (void)MappedFile::open(path);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kModel);
    return error.what();
  }
  FAIL("mapped: " << path);
  return "";
}

TEST_CASE("a regular file is mapped as it is") {
  const TempFolder folder;
  const auto file = MappedFile::open(folder.write("f", "hello"));
  CHECK(file->kind() == BufferKind::kMappedFile);
  CHECK(file->size_bytes() == 5);
  CHECK(std::memcmp(file->data(), "hello", 5) == 0);
  CHECK(MappedFile::open(folder.write("empty", ""))->size_bytes() == 0);
  std::filesystem::create_symlink(folder / "f", folder / "link");
  CHECK(MappedFile::open(folder / "link")->size_bytes() == 5);
}

TEST_CASE("38: whatever is not a readable regular file is refused at once") {
  const TempFolder folder;
  CHECK(contains(refusal_to_map(folder / "none"), "no such file"));
  CHECK(contains(refusal_to_map(folder / ""), "got a folder"));
  CHECK(contains(refusal_to_map("/dev/zero"), "got a character device"));
  REQUIRE(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
  CHECK(contains(refusal_to_map(folder / "fifo"), "got a FIFO"));
  std::filesystem::create_symlink(folder / "b", folder / "a");
  std::filesystem::create_symlink(folder / "a", folder / "b");
  CHECK(contains(refusal_to_map(folder / "a"), "symbolic links"));
  const std::string secret = folder.write("secret", "x");
  REQUIRE(::chmod(secret.c_str(), 0) == 0);
  if (::geteuid() != 0) CHECK(contains(refusal_to_map(secret), "not readable"));
  CHECK(contains(refusal_to_map(std::string("a\0b", 3)), "zero bytes"));
  CHECK(contains(refusal_to_map(folder / std::string(5000, 'x')), "cannot open"));
}

TEST_CASE("39: reading behind the end of a file cut while mapped gives zeros and an error state") {
  install_mapped_file_guard();
  install_mapped_file_guard();
  const TempFolder folder;
  const std::string path = folder.write("f", std::string(16 * kPage, 'x'));
  const auto file = MappedFile::open(path);
  const auto other = MappedFile::open(folder.write("g", std::string(kPage, 'y')));
  file->check_intact();
  std::filesystem::resize_file(path, kPage + 10);
  CHECK_FALSE(file->was_truncated());
  CHECK_THROWS_WITH_AS(file->check_intact(), doctest::Contains("became smaller"), Error);
  const volatile std::byte* bytes = file->data();
  CHECK(std::to_integer<int>(bytes[9 * kPage]) == 0);
  CHECK(std::to_integer<int>(bytes[2 * kPage]) == 0);
  CHECK(std::to_integer<int>(bytes[16 * kPage - 1]) == 0);
  CHECK(std::to_integer<char>(bytes[kPage]) == 'x');
  CHECK(file->was_truncated());
  CHECK_FALSE(other->was_truncated());

  // The state stays even when the file grows back.
  std::filesystem::resize_file(path, 16 * kPage);
  CHECK_THROWS_WITH_AS(file->check_intact(), doctest::Contains("could not be read"), Error);
}

TEST_CASE("39: a registration is forgotten with its file") {
  install_mapped_file_guard();
  const TempFolder folder;
  for (int i = 0; i < 3; ++i) {
    const std::string path = folder.write("f", std::string(2 * kPage, 'x'));
    const auto file = MappedFile::open(path);
    CHECK_FALSE(file->was_truncated());
    std::filesystem::resize_file(path, 0);
    const volatile std::byte* bytes = file->data();
    CHECK(std::to_integer<int>(bytes[kPage]) == 0);
    CHECK(file->was_truncated());
  }
}

TEST_CASE("39: a file replaced by rename leaves the mapping as it was") {
  const TempFolder folder;
  const std::string path = folder.write("f", "old content");
  const auto file = MappedFile::open(path);
  std::filesystem::rename(folder.write("new", "x"), path);
  file->check_intact();
  CHECK(std::memcmp(file->data(), "old content", 11) == 0);
}

TEST_CASE("advice and residency take any range inside the file") {
  const TempFolder folder;
  const auto file = MappedFile::open(folder.write("f", std::string(10 * kPage + 5, 'x')));
  using enum MappedFile::Access;
  for (const auto access : {kHugePages, kDontNeed}) {
    file->advise(access);
    file->advise(access, 5000, 1);
    file->advise(access, file->size_bytes(), 0);
  }
  CHECK_THROWS_AS(file->advise(kHugePages, file->size_bytes(), 1), BugError);
  CHECK(file->resident_fraction(0, file->size_bytes()) == 1.0);  // just written: in the page cache
  CHECK(file->resident_fraction(kPage - 1, 2, 1) == 1.0);
  CHECK(file->resident_fraction(7, 0) == 1.0);
  CHECK_THROWS_AS((void)file->resident_fraction(1, file->size_bytes()), BugError);
}

}  // namespace
}  // namespace fathom
