// A prompt in pieces: what the program wrote itself, and what came from outside.
#pragma once

#include <string>

namespace fathom {

/// `special` parts may spell added tokens ("<｜User｜>"), which become their ids; the others are plain text whatever
/// they spell, so that a user or a tool cannot forge a turn. Splitting a text into parts changes nothing else about its
/// ids.
struct PromptPart {
  std::string text;
  bool special = false;
};

}  // namespace fathom
