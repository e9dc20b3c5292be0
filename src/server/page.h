// The chat page at /, part of the program.
#pragma once

#include "server/http_message.h"

namespace fathom {

/// page.html with headers that let it use nothing but itself and this server.
HttpResponse page_response();

}  // namespace fathom
