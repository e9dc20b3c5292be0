#include "main/options.h"
namespace fathom {
Command add_doctor(CLI::App& root) { return {root.add_subcommand("doctor"), [] { return 1; }}; }
}
