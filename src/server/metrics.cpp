#include "server/metrics.h"

#include <cstdio>

namespace fathom {
namespace {

std::string number(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.12g", value);
  return text;
}

std::string label_value(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n')
      out += "\\n";
    else
      out += c;
  }
  return out;
}

class Writer {
 public:
  explicit Writer(const std::string& model_name) : label_("model_name=\"" + label_value(model_name) + "\"") {}

  void counter(const std::string& name, const std::string& help, double value) { single(name, help, "counter", value); }
  void gauge(const std::string& name, const std::string& help, double value) { single(name, help, "gauge", value); }

  void histogram(const std::string& name, const std::string& help, const LatencyHistogram& histogram) {
    head(name, help, "histogram");
    uint64_t below = 0;
    for (size_t i = 0; i < histogram.counts.size(); ++i) {
      below += histogram.counts[i];
      const std::string bound = i < LatencyHistogram::kBounds.size() ? number(LatencyHistogram::kBounds[i]) : "+Inf";
      text_ += name + "_bucket{" + label_ + ",le=\"" + bound + "\"} " + std::to_string(below) + "\n";
    }
    text_ += name + "_sum{" + label_ + "} " + number(histogram.sum) + "\n" + name + "_count{" + label_ + "} " +
             std::to_string(below) + "\n";
  }

  std::string take() { return std::move(text_); }

 private:
  void head(const std::string& name, const std::string& help, const char* type) {
    text_ += "# HELP " + name + " " + help + "\n# TYPE " + name + " " + type + "\n";
  }
  void single(const std::string& name, const std::string& help, const char* type, double value) {
    head(name, help, type);
    const bool labelled = name.starts_with("vllm:") || name.starts_with("fathom:");
    text_ += name + (labelled ? "{" + label_ + "}" : "") + " " + number(value) + "\n";
  }

  const std::string label_;
  std::string text_;
};

double ratio(double a, double b) { return b > 0 ? a / b : 0; }

}  // namespace

std::string format_metrics(const SchedulerStats& s, const std::string& model_name) {
  const auto as_double = [](auto value) { return static_cast<double>(value); };
  const double evaluated = as_double(s.evaluated_tokens_total), generated = as_double(s.generated_tokens_total);
  const double used =
      ratio(as_double(s.used_pages), as_double(s.pages));  // what the cache keeps is free for the asking
  Writer out(model_name);
  out.counter("llamacpp:prompt_tokens_total", "Prompt tokens evaluated.", evaluated);
  out.counter("llamacpp:prompt_seconds_total", "Seconds of evaluating prompts.", s.prompt_seconds_total);
  out.counter("llamacpp:tokens_predicted_total", "Tokens generated.", generated);
  out.counter("llamacpp:tokens_predicted_seconds_total", "Seconds of generating.", s.decode_seconds_total);
  out.counter("llamacpp:n_decode_total", "Steps of the model.", as_double(s.steps_total));
  out.counter("llamacpp:spec_decode_num_drafts_total", "Steps of an answer with guessed tokens in them.",
              as_double(s.drafts_total));
  out.counter("llamacpp:spec_decode_num_draft_tokens_total", "Guessed tokens evaluated.",
              as_double(s.draft_tokens_total));
  out.counter("llamacpp:spec_decode_num_accepted_tokens_total", "Guessed tokens that were right.",
              as_double(s.accepted_tokens_total));
  out.gauge("llamacpp:n_busy_slots_per_decode", "Answers that one decode step advances, on average.",
            ratio(as_double(s.decode_parts_total), as_double(s.decode_steps_total)));
  out.gauge("llamacpp:prompt_tokens_seconds", "Prompt tokens evaluated in a second.",
            ratio(evaluated, s.prompt_seconds_total));
  out.gauge("llamacpp:predicted_tokens_seconds", "Tokens generated in a second.",
            ratio(generated, s.decode_seconds_total));
  out.gauge("llamacpp:requests_processing", "Requests being answered.", s.running);
  out.gauge("llamacpp:requests_deferred", "Requests waiting.", s.queued);
  out.gauge("llamacpp:n_tokens_max", "Most tokens a sequence has had.", as_double(s.longest_sequence));
  out.gauge("llamacpp:kv_cache_usage_ratio", "Share of the cache's pages in use.", used);

  out.gauge("vllm:num_requests_running", "Requests being answered.", s.running);
  out.gauge("vllm:num_requests_waiting", "Requests waiting.", s.queued);
  out.gauge("vllm:kv_cache_usage_perc", "Share of the cache's pages in use, 0 to 1.", used);
  out.counter("vllm:prompt_tokens_total", "Prompt tokens of started requests.", as_double(s.prompt_tokens_total));
  out.counter("vllm:generation_tokens_total", "Tokens generated.", generated);
  out.counter("vllm:request_success_total", "Requests finished.", as_double(s.finished_total));
  out.counter("vllm:num_preemptions_total", "Requests set back to make room.", as_double(s.preemptions_total));
  out.counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the cache.",
              as_double(s.prompt_tokens_total));
  out.counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the cache.", as_double(s.cached_tokens_total));
  out.histogram("vllm:time_to_first_token_seconds", "From a request's arrival to its first token.",
                s.first_token_seconds);
  out.histogram("vllm:inter_token_latency_seconds", "Between two tokens of an answer.", s.between_tokens_seconds);
  out.histogram("vllm:e2e_request_latency_seconds", "From a request's arrival to its end.", s.request_seconds);
  out.histogram("vllm:request_queue_time_seconds", "From a request's arrival to its start.", s.queue_seconds);

  out.gauge("fathom:cache_pages", "Pages of the cache.", as_double(s.pages));
  out.gauge("fathom:cache_pages_used", "Pages that running requests hold.", as_double(s.used_pages));
  out.gauge("fathom:cache_pages_cached", "Pages that only the prefix cache holds, free for the asking.",
            as_double(s.cached_pages));
  out.counter("fathom:requests_cancelled_total", "Requests whose client went away or gave up.",
              as_double(s.cancelled_total));
  out.counter("fathom:requests_failed_total", "Requests that failed.", as_double(s.failed_total));
  out.counter("fathom:requests_refused_total", "Requests refused because the queue was full.",
              as_double(s.refused_total));
  out.counter("fathom:disk_cache_hits_total", "Texts found on disk.", as_double(s.disk_hits_total));
  out.counter("fathom:disk_cache_problems_total", "Texts that could not be saved or restored.",
              as_double(s.disk_problems_total));
  return out.take();
}

}  // namespace fathom
