// Ctrl-C and termination: counted, asked for between tokens, and never leaving a terminal in raw mode.
#pragma once

#include <termios.h>

namespace fathom {

/// SIGINT is counted (a second one before clear_interrupt ends the program with 130 at once); SIGTERM and SIGHUP put
/// the terminal right and end the program as they would have; SIGPIPE and SIGXFSZ are ignored, so that writing reports
/// it. Blocking calls are not restarted. Once, at the start.
void install_signal_handlers();

/// Whether SIGINT came since the start or the last clear_interrupt.
bool interrupted();
void clear_interrupt();

/// While a terminal is in another mode than `normal`: what a fatal signal must put right. Null: nothing to do.
void set_terminal_to_restore(const termios* normal);

}  // namespace fathom
