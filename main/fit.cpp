#include "main/options.h"
namespace fathom {
Command add_fit(CLI::App& root) { return {root.add_subcommand("fit"), [] { return 1; }}; }
}
