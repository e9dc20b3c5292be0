// Options and output that fathom convert, quantize and prune share.
#pragma once

#include <string>

#include "convert/convert.h"
#include "main/options.h"

namespace fathom {

struct WriteFlags {
  CommonOptions common;
  std::string split_max_size;
  bool json = false;

  /// Declares what both commands take; the values arrive in `options`, those of threads and sizes with apply().
  void declare(CLI::App& app, WriteOptions& options);
  void apply(WriteOptions& options) const;
};

/// --split-max-size.
void declare_split(CLI::App& app, std::string& split_max_size);

/// Runs `write` with a progress line and Ctrl-C obeyed, then tells what it did: the plan of a dry run and JSON to
/// standard output, everything else to standard error.
int write_and_report(const WriteFlags& flags, WriteOptions& options, const char* doing,
                     const std::function<WriteReport()>& write);

}  // namespace fathom
