// The command line beyond its options: their environment variables, the configuration file, what is said of mistakes.
#pragma once

#include <span>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "main/commands.h"

namespace fathom {

/// Gives every long option of the subcommands its variable: --max-tokens is FATHOM_MAX_TOKENS.
void name_environment_variables(std::span<const Command> commands);

/// Variables called FATHOM_.. that belong to no option of any command: most are misspelt.
std::vector<std::string> unknown_variables(std::span<const Command> commands);

/// Applies `path` to the options of `active` that neither command line nor environment set. Keys before any section
/// count for the subcommands that have them, keys of a section [run] for that one. Throws Error{kUsage} for keys no
/// subcommand has, Error{kModel} for a file that cannot be read.
void apply_config_file(const std::string& path, std::span<const Command> commands, const CLI::App& active);

/// The CLI11 error as a message of the house: "run: what; expected ..".
std::string usage_message(const CLI::ParseError& error, const CLI::App& root);

}  // namespace fathom
