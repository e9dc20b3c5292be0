// Text from files and from standard input.
#pragma once

#include <optional>
#include <string>

namespace fathom {

/// The whole of a file, or of standard input for "-". Throws Error{kModel} naming `where` and the path if it cannot be
/// read, Error{kUsage} above 2^31 - 1 bytes, Error{kInterrupted} on SIGINT.
std::string read_input(const std::string& path, const std::string& where);

/// `path` with the user's home folder for a leading "~/", as a shell would have it.
std::string with_home(const std::string& path);

/// Standard input where it is a pipe, socket or file; nothing where it is a terminal, closed or a device.
std::optional<std::string> read_piped_input();

/// One newline less at the end: echo and editors add one that is not meant.
std::string without_last_newline(std::string text);

/// A subcommand's text: the argument, or standard input for "-" and, where it is piped, for no argument at all.
/// Throws Error{kUsage} naming `where` if there is none.
std::string text_argument(const std::optional<std::string>& argument, const std::string& where);

}  // namespace fathom
