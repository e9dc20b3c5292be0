#include "server/generation_fields.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "core/error.h"
#include "core/printable.h"
#include "sampling/stop_matcher.h"
#include "server/answer_run.h"

namespace fathom {
namespace {

void read_logit_bias(const Fields& body, SamplingParams& sampling) {
  const std::optional<Fields> bias = body.object("logit_bias");
  if (!bias) return;
  for (const auto& [key, value] : bias->value().items()) {
    int32_t id = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc{} || end != key.data() + key.size())
      refuse_field("logit_bias", "expected token ids as keys, got " + in_quotes(key));
    if (const std::optional<double> number = bias->number(key))
      sampling.logit_bias[id] = static_cast<float>(std::clamp(*number, -1e30, 1e30));
  }
}

}  // namespace

GenerateOptions read_generate_options(const Service& service, const Fields& body,
                                      std::initializer_list<std::string_view> max_tokens_names,
                                      std::string_view stop_name) {
  GenerateOptions options;
  SamplingParams& sampling = options.sampling = service.options.sampling;
  const auto read = [&](std::string_view name, float& into) {
    const std::optional<double> value = body.number(name);
    // What float cannot hold is out of every field's range, and so is what it becomes here.
    if (value) into = static_cast<float>(std::clamp(*value, -1e30, 1e30));
  };
  read("temperature", sampling.temperature);
  read("top_p", sampling.top_p);
  read("min_p", sampling.min_p);
  read("repetition_penalty", sampling.repeat_penalty);
  read("repeat_penalty", sampling.repeat_penalty);
  read("frequency_penalty", sampling.frequency_penalty);
  read("presence_penalty", sampling.presence_penalty);
  if (const auto k = body.integer("top_k", -1, std::numeric_limits<int32_t>::max()))
    sampling.top_k = static_cast<int32_t>(std::max<int64_t>(*k, 0));  // -1: off, as vLLM has it
  if (const auto n = body.integer("repeat_last_n", 0, std::numeric_limits<int32_t>::max()))
    sampling.repeat_last_n = static_cast<int32_t>(*n);
  const auto seed = body.integer("seed", std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max());
  sampling.seed = seed ? static_cast<uint64_t>(*seed) : random_seed();
  read_logit_bias(body, sampling);
  sampling.validate(service.engine.info().vocab_size);

  options.max_tokens = std::numeric_limits<int64_t>::max();
  for (const std::string_view name : max_tokens_names) {
    if (const auto n = body.integer(name, 1, int64_t{1} << 40)) {
      options.max_tokens = *n;
      break;
    }
  }
  options.stop = body.texts(stop_name);
  validate_stop_strings(options.stop);
  options.ignore_eos = body.flag("ignore_eos").value_or(false);
  return options;
}

void check_model_name(const Fields& body) {
  const std::string name = body.text("model").value_or("");
  const bool is_plain = std::none_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; });
  if (name.size() > 512 || !is_plain) refuse_field("model", "expected at most 512 bytes without control characters");
}

int read_n(const Service& service, const Fields& body) {
  return static_cast<int>(body.integer("n", 1, service.options.max_choices).value_or(1));
}

std::string read_user(const Fields& body) { return body.text("user").value_or("").substr(0, 256); }

}  // namespace fathom
