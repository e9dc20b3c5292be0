#include "main/option_checks.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "core/printable.h"

namespace fathom {

std::string listed(std::span<const std::string> names, const std::string& last) {
  std::string text;
  for (size_t i = 0; i < names.size(); ++i) text += (i == 0 ? "" : i + 1 == names.size() ? last : ", ") + names[i];
  return text;
}

namespace {

/// `expected` says in words what [lowest, highest] is.
CLI::Validator whole_number(int64_t lowest, int64_t highest, const std::string& expected) {
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        int64_t value = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        const bool is_number = error != std::errc::invalid_argument && end == text.data() + text.size();
        if (!is_number) return "not a whole number; expected " + expected + ", got " + in_quotes(text);
        const bool is_inside = error == std::errc{} && value >= lowest && value <= highest;
        return is_inside ? "" : "out of range; expected " + expected + ", got " + text;
      },
      "");
}

}  // namespace

CLI::Validator at_least(int64_t lowest) {
  return whole_number(lowest, std::numeric_limits<int64_t>::max(), std::to_string(lowest) + " or more");
}

CLI::Validator in_range(int64_t lowest, int64_t highest) {
  return whole_number(lowest, highest, std::to_string(lowest) + " to " + std::to_string(highest));
}

CLI::Validator any_number() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        const char* begin = text.data() + (text.starts_with('+') ? 1 : 0);
        double value = 0;
        const auto [end, error] = std::from_chars(begin, text.data() + text.size(), value);
        return error == std::errc{} && end == text.data() + text.size()
                   ? ""
                   : "not a number; expected one as in 0.7, got " + in_quotes(text);
      },
      "");
}

CLI::Validator seed_number() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        uint64_t value = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        return error == std::errc{} && end == text.data() + text.size()
                   ? ""
                   : "not a seed; expected a whole number from 0 to 2^64 - 1, got " + in_quotes(text);
      },
      "");
}

CLI::Validator number_or(std::vector<std::string> words) {
  return CLI::Validator(
      [words = std::move(words)](std::string& text) -> std::string {
        const bool is_number = !text.empty() && text.size() < 10 &&
                               std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
        if (is_number || std::find(words.begin(), words.end(), text) != words.end()) return "";
        std::vector<std::string> expected = words;
        expected.emplace_back("a number");
        return "unknown value; expected " + listed(expected) + ", got " + in_quotes(text);
      },
      "");
}

CLI::Validator one_of(std::vector<std::string> names) {
  std::string choices;
  for (const std::string& name : names) choices += (choices.empty() ? "" : "|") + name;
  return CLI::Validator(
      [names = std::move(names)](std::string& text) -> std::string {
        if (std::find(names.begin(), names.end(), text) != names.end()) return "";
        return "unknown value; expected " + listed(names) + ", got " + in_quotes(text);
      },
      choices);
}

}  // namespace fathom
