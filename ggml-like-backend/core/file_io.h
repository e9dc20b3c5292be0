// Calls to the system on files, made whole: interrupted and partial ones go on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace fathom {

/// Writes all bytes. False, with errno set, if the system refuses.
bool write_whole(int fd, uint64_t offset_bytes, const void* data, size_t size_bytes);

/// Makes new names in the folder of `path` survive a power cut, where the file system can.
void sync_folder_of(const std::filesystem::path& path);

/// A file's content; nothing if it cannot be read.
std::optional<std::string> read_whole(const std::filesystem::path& path);

/// A field of /proc/meminfo, "MemAvailable"; nothing where there is none.
std::optional<uint64_t> meminfo_bytes(std::string_view field);

}  // namespace fathom
