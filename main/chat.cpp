#include "main/options.h"
namespace fathom {
Command add_chat(CLI::App& root) { return {root.add_subcommand("chat"), [] { return 1; }}; }
}
