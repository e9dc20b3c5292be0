// Checks of values for CLI11 that speak as the rest of the program does.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

namespace fathom {

/// A whole number of so much or more.
CLI::Validator at_least(int64_t lowest);
/// A whole number from `lowest` to `highest`.
CLI::Validator in_range(int64_t lowest, int64_t highest);
/// A whole number from 0 to 2^64 - 1: CLI11 2.1.2 would take -1 as the last of them.
CLI::Validator seed_number();
CLI::Validator any_number();
/// A whole number of up to nine digits, or one of `words`.
CLI::Validator number_or(std::vector<std::string> words);
CLI::Validator one_of(std::vector<std::string> names);

/// "x, y or z"
std::string listed(std::span<const std::string> names, const std::string& last = " or ");

}  // namespace fathom
