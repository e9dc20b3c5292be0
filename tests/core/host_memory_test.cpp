#include "core/host_memory.h"

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>
#include <string>

namespace fathom {
namespace {

namespace fs = std::filesystem;

/// Control groups as files.
struct Groups {
  fs::path root = fs::temp_directory_path() / ("fathom_host_memory_test_" + std::to_string(::getpid()));
  Groups() { fs::remove_all(root); }
  ~Groups() { fs::remove_all(root); }

  void write(const std::string& name, const std::string& text) const {
    fs::create_directories((root / name).parent_path());
    std::ofstream(root / name) << text;
  }
  std::optional<uint64_t> left(const std::string& membership) const {
    write("membership", membership);
    return group_memory_bytes(root / "membership", root);
  }
};

TEST_CASE("what a group's limit leaves counts pages of files as free") {
  const Groups groups;
  groups.write("box/memory.max", "1000\n");
  groups.write("box/memory.current", "700\n");
  groups.write("box/memory.stat", "anon 300\nfile 400\ninactive_file 150\nactive_file 50\ntotal_active_file 9\n");
  CHECK(groups.left("0::/box\n") == 500);
}

TEST_CASE("the narrowest of the groups around a process counts") {
  const Groups groups;
  groups.write("a/memory.max", "1000\n");
  groups.write("a/memory.current", "900\n");
  groups.write("a/b/memory.max", "max\n");
  groups.write("a/b/memory.current", "100\n");
  CHECK(groups.left("0::/a/b\n") == 100);
  groups.write("a/b/memory.max", "120\n");
  CHECK(groups.left("0::/a/b\n") == 20);
}

TEST_CASE("groups of version 1 have their own names") {
  const Groups groups;
  groups.write("memory/low/memory.limit_in_bytes", "5000\n");
  groups.write("memory/low/memory.usage_in_bytes", "4500\n");
  groups.write("memory/low/memory.stat", "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 900\n");
  CHECK(groups.left("9:cpu:/else\n4:memory:/low\n0::/\n") == 1500);
  CHECK(groups.left("4:cpu,memory:/low\n") == 1500);
}

TEST_CASE("a path from outside a container means the root that is seen in it") {
  const Groups groups;
  groups.write("memory.max", "300\n");
  groups.write("memory.current", "400\n");  // over its limit
  CHECK(groups.left("0::/docker/0123\n") == 0);
}

TEST_CASE("without limits, groups or files there is nothing to tell") {
  const Groups groups;
  CHECK_FALSE(groups.left("0::/\n").has_value());
  CHECK_FALSE(groups.left("nonsense\n\n:\n").has_value());
  groups.write("memory.max", "max\n");
  groups.write("memory.current", "400\n");
  CHECK_FALSE(groups.left("0::/\n").has_value());
  CHECK_FALSE(group_memory_bytes(groups.root / "none", groups.root).has_value());
}

TEST_CASE("pages of a file are in memory once they were read, and asking for none is fine") {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const std::string path = (fs::temp_directory_path() / ("fathom_pages_" + std::to_string(::getpid()))).string();
  std::ofstream(path) << std::string(8 * page, 'x');
  FILE* file = std::fopen(path.c_str(), "rb");
  REQUIRE(file != nullptr);
  void* mapped = ::mmap(nullptr, 8 * page, PROT_READ, MAP_SHARED, ::fileno(file), 0);
  REQUIRE(mapped != MAP_FAILED);
  const auto* bytes = static_cast<const std::byte*>(mapped);
  read_soon(bytes + 5, 0);
  read_soon(bytes + 5, 3 * page);
  CHECK(read_now(bytes + 5, 0));
  CHECK(read_now(bytes + 5, 8 * page - 5));
  fs::resize_file(path, page);
  CHECK_FALSE(read_now(bytes, 8 * page));  // and no signal
  ::munmap(mapped, 8 * page);
  std::fclose(file);
  fs::remove(path);
}

}  // namespace
}  // namespace fathom
