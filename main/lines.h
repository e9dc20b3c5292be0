// One JSON value a line in, one a line out.
#pragma once

#include <functional>
#include <string>

namespace fathom {

/// Reads standard input or `path` line by line and writes transform(line, "where: line N") and a newline for each.
/// Every answer stands on standard output before the next line is waited for, so that a program can hold a conversation
/// over pipes.
void transform_lines(const std::string& where,
                     const std::function<std::string(const std::string& line, const std::string& where)>& transform,
                     const std::string& path = "-");

}  // namespace fathom
