// What was typed before, in this chat and the ones before it.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

/// The folder of the program's state, made with mode 0700: $XDG_STATE_HOME/fathom or ~/.local/state/fathom. Empty if
/// there is no home or it cannot be made.
std::string state_folder();

/// The newest kMaxEntries entries, kept in a file of mode 0600 unless `path` is empty. An entry of several lines takes
/// one line of the file, with \n and \\ escaped. A file that cannot be read or written is no reason to stop a chat:
/// then nothing is kept.
class History {
 public:
  static constexpr size_t kMaxEntries = 1000;
  static constexpr size_t kMaxEntryBytes = 64 * 1024;  ///< longer ones, pastes mostly, are not kept

  explicit History(std::string path);
  /// Not if it is empty, too long or equal to the newest.
  void add(std::string_view entry);
  size_t size() const { return entries_.size(); }
  const std::string& entry(size_t idx) const { return entries_[idx]; }  ///< oldest first
  /// Index of the newest entry before `before` that contains `text`, or size() if none does.
  size_t search_back(std::string_view text, size_t before) const;

 private:
  void save() const;

  std::string path_;
  std::vector<std::string> entries_;
};

}  // namespace fathom
