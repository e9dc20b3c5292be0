#include "main/history.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "core/atomic_file.h"
#include "core/error.h"

namespace fathom {
namespace {

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\')
      out += "\\\\";
    else if (c == '\n')
      out += "\\n";
    else
      out += c;
  }
  return out;
}

std::string unescaped(std::string_view line) {
  std::string out;
  for (size_t i = 0; i < line.size(); ++i) {
    if (line[i] == '\\' && i + 1 < line.size())
      out += line[++i] == 'n' ? '\n' : line[i];
    else
      out += line[i];
  }
  return out;
}

}  // namespace

std::string state_folder() {
  const char* state = std::getenv("XDG_STATE_HOME");
  const char* home = std::getenv("HOME");
  std::filesystem::path folder;
  if (state != nullptr && *state == '/')
    folder = state;  // the specification: relative paths are ignored
  else if (home != nullptr && *home == '/')
    folder = std::filesystem::path(home) / ".local/state";
  else
    return "";
  folder /= "fathom";
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return "";
  ::chmod(folder.c_str(), 0700);
  return folder.string();
}

History::History(std::string path) : path_(std::move(path)) {
  if (path_.empty()) return;
  std::ifstream file(path_);
  for (std::string line; std::getline(file, line);) {
    if (line.size() <= 2 * kMaxEntryBytes) entries_.push_back(unescaped(line));
  }
  if (entries_.size() > kMaxEntries) entries_.erase(entries_.begin(), entries_.end() - kMaxEntries);
}

void History::add(std::string_view entry) {
  if (entry.empty() || entry.size() > kMaxEntryBytes || (!entries_.empty() && entries_.back() == entry)) return;
  entries_.emplace_back(entry);
  if (entries_.size() > kMaxEntries) entries_.erase(entries_.begin());
  save();
}

size_t History::search_back(std::string_view text, size_t before) const {
  for (size_t i = std::min(before, entries_.size()); i-- > 0;) {
    if (entries_[i].find(text) != std::string::npos) return i;
  }
  return entries_.size();
}

void History::save() const {
  if (path_.empty()) return;
  try {
    AtomicFile file(path_, 0600);
    for (const std::string& entry : entries_) {
      const std::string line = escaped(entry) + "\n";
      file.write(line.data(), line.size());
    }
    file.commit();
  } catch (const Error&) {  // disk full, folder gone: the chat goes on without
  }
}

}  // namespace fathom
