// The bytes a terminal sends for keys, made into keys.
#pragma once

#include <string>
#include <string_view>

namespace fathom {

struct Key {
  enum class Kind {
    kText,     ///< typed or pasted characters, in `text`
    kPaste,    ///< a whole bracketed paste, in `text`; never submits
    kControl,  ///< Ctrl and a letter, in `letter` ('a' to 'z')
    kAlt,      ///< Alt and a key, in `letter`
    kEnter,
    kNewline,
    kTab,
    kEscape,
    kBackspace,
    kDelete,
    kLeft,
    kRight,
    kUp,
    kDown,
    kHome,
    kEnd,
    kWordLeft,
    kWordRight,
    kUnknown,  ///< an escape sequence without meaning here
  };
  Kind kind;
  std::string text;
  char letter = 0;
};

/// Cuts a stream of bytes into keys. Feed bytes, take keys until none is complete; what is incomplete waits for more
/// bytes.
class KeyReader {
 public:
  void feed(std::string_view bytes) { pending_ += bytes; }
  /// The next key, if a complete one is there. `no_more_bytes`: nothing followed within the time a sequence takes, so
  /// that a lone ESC is the Escape key.
  bool next(Key& key, bool no_more_bytes);
  bool has_pending() const { return !pending_.empty() || in_paste_; }
  bool in_paste() const { return in_paste_; }

 private:
  bool next_escape(Key& key, bool no_more_bytes);
  bool next_paste(Key& key);

  std::string pending_;
  std::string pasted_;
  bool in_paste_ = false;
};

}  // namespace fathom
