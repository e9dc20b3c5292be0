// What memory this process can still have, and when pages of mapped files come into it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>

namespace fathom {

/// Memory that this process could still take without others losing theirs: what the system has (MemAvailable of
/// /proc/meminfo, page cache included) within the limits of its control groups (versions 1 and 2). Nothing where that
/// cannot be read.
std::optional<uint64_t> available_memory_bytes();

/// What the limits alone leave, all groups around the process's own included; nothing without limits. `membership` is
/// /proc/self/cgroup, `root` where the groups are mounted (/sys/fs/cgroup).
std::optional<uint64_t> group_memory_bytes(const std::filesystem::path& membership, const std::filesystem::path& root);

/// Starts to read those of the pages around [begin, begin + n) that a mapped file has outside memory; does not wait.
/// What is in memory costs about a microsecond a 100 KB. A hint: the system may ignore it.
void read_soon(const std::byte* begin, size_t n_bytes);

/// The same, and waits. False if the system cannot or the file has become too short: whoever touches the pages then
/// finds out (MappedFile).
bool read_now(const std::byte* begin, size_t n_bytes);

}  // namespace fathom
