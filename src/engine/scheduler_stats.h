// What a scheduler counts, in the units of a metrics page.
#pragma once

#include <array>
#include <cstdint>
#include <numeric>
#include <optional>
#include <string>

namespace fathom {

/// Counts of values by bounds, as Prometheus histograms have them. Seconds.
struct LatencyHistogram {
  static constexpr std::array<double, 14> kBounds = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
                                                     1,     2.5,  5,     10,   30,  60,   300};
  std::array<uint64_t, kBounds.size() + 1>
      counts{};  ///< at most kBounds[i] and above the bound before; the last: above all
  double sum = 0;

  void add(double seconds) {
    size_t i = 0;
    while (i < kBounds.size() && seconds > kBounds[i]) ++i;
    ++counts[i];
    sum += seconds;
  }
  uint64_t total() const { return std::accumulate(counts.begin(), counts.end(), uint64_t{0}); }
};

/// A consistent snapshot. Totals count from the scheduler's start.
struct SchedulerStats {
  int running = 0, queued = 0;
  /// Of all pages: held by running requests, and held by the cache alone (free for the asking). The rest is empty.
  int64_t pages = 0, used_pages = 0, cached_pages = 0;
  uint64_t finished_total = 0, cancelled_total = 0, failed_total = 0, refused_total = 0;
  uint64_t prompt_tokens_total = 0,
           cached_tokens_total = 0;     ///< of requests whose prompt is done: all, and not evaluated
  uint64_t evaluated_tokens_total = 0;  ///< tokens of prompts that went through the model, after preemptions once more
  uint64_t generated_tokens_total = 0;
  uint64_t prefix_queries_total = 0, prefix_hits_total = 0, disk_hits_total = 0;
  uint64_t preemptions_total = 0, steps_total = 0;
  double prompt_seconds_total = 0, decode_seconds_total = 0;  ///< time of steps, shared out by what they did
  uint64_t decode_parts_total = 0, decode_steps_total = 0;    ///< their ratio: answers in a step
  uint64_t drafts_total = 0;                                  ///< steps of an answer with guesses in them
  uint64_t draft_tokens_total = 0, accepted_tokens_total = 0;
  int64_t longest_sequence = 0;  ///< most tokens a sequence has had
  LatencyHistogram queue_seconds{}, first_token_seconds{}, between_tokens_seconds{}, request_seconds{};
  uint64_t disk_problems_total = 0;
  std::optional<std::string> last_disk_problem{};  ///< saving or restoring went wrong; answers are unaffected
};

}  // namespace fathom
