// The fields of a request that say how to generate: the same names in the OpenAI endpoints.
#pragma once

#include "engine/request.h"
#include "server/json_fields.h"
#include "server/service.h"

namespace fathom {

/// Temperature, top_p, top_k, min_p, penalties, seed, logit_bias, stop, ignore_eos, and max_tokens under the given
/// names (the first that is there counts; absent: as many as fit). What it leaves open is the service's. Throws
/// Error{kUsage} naming the field.
GenerateOptions read_generate_options(const Service& service, const Fields& body,
                                      std::initializer_list<std::string_view> max_tokens_names,
                                      std::string_view stop_name);

/// "model": any printable text; the server has one model and answers for every name.
void check_model_name(const Fields& body);

/// "n", at most ServiceOptions::max_choices.
int read_n(const Service& service, const Fields& body);

/// "user" or its newer names, cut to a reasonable length.
std::string read_user(const Fields& body);

}  // namespace fathom
