#include "text/pretokenize.h"

#include "core/error.h"
#include "core/printable.h"
#include "text/unicode_classes.h"
#include "text/utf8.h"

namespace fathom {
namespace {

// A character as the rules see it. At the end of a piece: length 0, no class, and a code point that equals no
// character.
struct Char {
  uint32_t code_point;
  uint32_t length;
  uint8_t classes;

  bool is(uint8_t mask) const { return (classes & mask) != 0; }
};

Char char_at(std::string_view piece, size_t pos) {
  if (pos >= piece.size()) return {0xFFFFFFFF, 0, 0};
  const Utf8Unit unit = read_utf8(piece, pos);
  return {unit.code_point, unit.length, code_point_classes(unit.code_point)};
}

bool is_newline(Char c) { return c.code_point == '\r' || c.code_point == '\n'; }

bool is_ascii_letter(Char c) {
  return (c.code_point >= 'A' && c.code_point <= 'Z') || (c.code_point >= 'a' && c.code_point <= 'z');
}

bool is_ascii_punctuation(Char c) {
  return c.code_point > ' ' && c.code_point < 0x7F && !is_ascii_letter(c) &&
         !(c.code_point >= '0' && c.code_point <= '9');
}

// End of the longest run of characters with `test` that begins at `pos`.
template <typename Test> size_t run_end(std::string_view piece, size_t pos, Test test) {
  for (Char c = char_at(piece, pos); c.length > 0 && test(c); c = char_at(piece, pos)) pos += c.length;
  return pos;
}

// Splits like a regex whose matches are isolated: matches and the gaps between them are pieces. `match(piece, pos)`
// gives the end of the match that begins exactly at pos, or pos for none. Linear as long as a failing match takes
// constant time.
template <typename Match, typename Sink> void isolate(std::string_view piece, Match match, const Sink& sink) {
  size_t gap = 0;
  for (size_t pos = 0; pos < piece.size();) {
    const size_t end = match(piece, pos);
    if (end == pos) {
      pos += char_at(piece, pos).length;
      continue;
    }
    if (gap < pos) sink(piece.substr(gap, pos - gap));
    sink(piece.substr(pos, end - pos));
    gap = pos = end;
  }
  if (gap < piece.size()) sink(piece.substr(gap));
}

// \s?X+
template <typename Test> auto spaced_run(Test test) {
  return [test](std::string_view piece, size_t pos) {
    const Char c = char_at(piece, pos);
    if (test(c)) return run_end(piece, pos, test);
    return c.is(kSpace) && test(char_at(piece, pos + c.length)) ? run_end(piece, pos + c.length, test) : pos;
  };
}

// [\r\n]
size_t one_newline(std::string_view piece, size_t pos) {
  const Char c = char_at(piece, pos);
  return is_newline(c) ? pos + c.length : pos;
}

// \p{N}. The tokenizer.json of the older models has Digits(individual_digits) here, the GGUF rules of deepseek-llm
// `\p{N}+`; their vocabularies have no merge between digits, so that the ids are the same.
size_t one_number(std::string_view piece, size_t pos) {
  const Char c = char_at(piece, pos);
  return c.is(kNumber) ? pos + c.length : pos;
}

// \p{N}{1,3}
size_t up_to_three_numbers(std::string_view piece, size_t pos) {
  for (int i = 0; i < 3; ++i) pos = one_number(piece, pos);
  return pos;
}

// [\u4E00-\u9FA5\u0800-\u4E00\uAC00-\uD7FF]+
size_t east_asian_run(std::string_view piece, size_t pos) {
  return run_end(piece, pos, [](Char c) {
    return (c.code_point >= 0x800 && c.code_point <= 0x9FA5) || (c.code_point >= 0xAC00 && c.code_point <= 0xD7FF);
  });
}

// [\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+
size_t han_kana_run(std::string_view piece, size_t pos) {
  return run_end(piece, pos, [](Char c) {
    return (c.code_point >= 0x4E00 && c.code_point <= 0x9FA5) || (c.code_point >= 0x3040 && c.code_point <= 0x30FF);
  });
}

// [!-/:-~！-／：-～‘-‟　-。]: has the ASCII letters in it, as the original does (`:-~`).
bool is_llm_punctuation(Char c) {
  const uint32_t u = c.code_point;
  return (u >= 0x21 && u <= 0x2F) || (u >= 0x3A && u <= 0x7E) || (u >= 0xFF01 && u <= 0xFF0F) ||
         (u >= 0xFF1A && u <= 0xFF5E) || (u >= 0x2018 && u <= 0x201F) || (u >= 0x3000 && u <= 0x3002);
}

// \s+$ : not by isolate(), where every inner run of spaces would be scanned once per space.
template <typename Sink> void isolate_trailing_space(std::string_view piece, const Sink& sink) {
  size_t trailing = 0;
  for (size_t pos = 0; pos < piece.size();) {
    const Char c = char_at(piece, pos);
    pos += c.length;
    if (!c.is(kSpace)) trailing = pos;
  }
  if (trailing > 0) sink(piece.substr(0, trailing));
  if (trailing < piece.size()) sink(piece.substr(trailing));
}

// The end of `\s*[\r\n]+|\s+(?!\S)|\s+` at `pos`, where a run of white space begins: up to its last newline if it has
// one; else all of it at the end of the piece; else all but the last space, which is left for the word after it; else
// that one space.
size_t white_space(std::string_view piece, size_t pos) {
  size_t end = pos, after_newline = pos, last = pos;
  for (Char c = char_at(piece, end); c.is(kSpace); c = char_at(piece, end)) {
    last = end;
    end += c.length;
    if (is_newline(c)) after_newline = end;
  }
  if (after_newline > pos) return after_newline;
  return end == piece.size() || last == pos ? end : last;
}

// The third regex of deepseek-v3, one alternation tried left to right.
size_t v3_word(std::string_view piece, size_t pos) {
  const auto letter_or_mark = [](Char c) { return c.is(kLetter | kMark); };
  const auto punctuation_or_symbol = [](Char c) { return c.is(kPunctuation | kSymbol); };
  const Char c = char_at(piece, pos);
  const size_t second = pos + c.length;
  const Char next = char_at(piece, second);

  // [!-/:-@\[-`{-~][A-Za-z]+
  if (is_ascii_punctuation(c) && is_ascii_letter(next)) return run_end(piece, second, is_ascii_letter);
  // [^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+
  if (letter_or_mark(c)) return run_end(piece, second, letter_or_mark);
  if (!is_newline(c) && !punctuation_or_symbol(c) && letter_or_mark(next))
    return run_end(piece, second, letter_or_mark);
  // ` ?[\p{P}\p{S}]+[\r\n]*`
  if (punctuation_or_symbol(c) || (c.code_point == ' ' && punctuation_or_symbol(next))) {
    return run_end(piece, run_end(piece, second, punctuation_or_symbol), is_newline);
  }
  return white_space(piece, pos);
}

template <typename Sink> void split_v3(std::string_view text, const Sink& sink) {
  isolate(text, up_to_three_numbers, [&](std::string_view a) {
    isolate(a, han_kana_run, [&](std::string_view b) { isolate(b, v3_word, sink); });
  });
}

template <typename Sink> void split_coder(std::string_view text, const Sink& sink) {
  const auto letters = spaced_run([](Char c) { return c.is(kLetter); });
  const auto punctuation = spaced_run([](Char c) { return c.is(kPunctuation); });
  isolate(text, one_newline, [&](std::string_view a) {
    isolate(a, letters, [&](std::string_view b) {
      isolate(b, punctuation, [&](std::string_view c) {
        isolate(c, east_asian_run, [&](std::string_view d) { isolate(d, one_number, sink); });
      });
    });
  });
}

template <typename Sink> void split_llm(std::string_view text, const Sink& sink) {
  const auto letters = spaced_run([](Char c) { return c.is(kCased); });
  const auto punctuation = spaced_run(is_llm_punctuation);
  isolate(text, one_newline, [&](std::string_view a) {
    isolate(a, letters, [&](std::string_view b) {
      isolate(b, punctuation, [&](std::string_view c) {
        isolate_trailing_space(c, [&](std::string_view d) {
          isolate(d, east_asian_run, [&](std::string_view e) { isolate(e, one_number, sink); });
        });
      });
    });
  });
}

}  // namespace

PreTokenizer pre_tokenizer_from_name(std::string_view name) {
  if (name == "deepseek-llm") return PreTokenizer::kDeepSeekLlm;
  if (name == "deepseek-coder") return PreTokenizer::kDeepSeekCoder;
  if (name == "deepseek-v3" || name == "joyai-llm") return PreTokenizer::kDeepSeekV3;
  throw Error(ErrorCode::kModel,
              "tokenizer.ggml.pre: unknown pre-tokenizer; expected deepseek-llm, deepseek-coder, "
              "deepseek-v3 or joyai-llm, got " +
                  in_quotes(name));
}

void split_pieces(PreTokenizer rules, std::string_view text, const std::function<void(std::string_view)>& sink) {
  switch (rules) {
    case PreTokenizer::kDeepSeekLlm: return split_llm(text, sink);
    case PreTokenizer::kDeepSeekCoder: return split_coder(text, sink);
    case PreTokenizer::kDeepSeekV3: return split_v3(text, sink);
  }
}

}  // namespace fathom
