#include "sampling/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>

#include "core/error.h"
#include "sampling/random.h"
#include "sampling/softmax.h"

namespace fathom {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kGreedyBelow = 1e-5f;

// Tokens further than this below the best (e^-8 = 3e-4 and e^-14 = 8e-7 of its probability) are rarely needed to reach
// top_k or top_p. Looking at the others only when it turns out that they are keeps the common case cheap.
constexpr float kReach[] = {8.0f, 14.0f, kInfinity};

/// Maps floats to integers of the same order; -0 and +0 to the same one.
uint32_t rank_key(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// The highest logit; throws if the model did not return numbers.
float checked_max(std::span<const float> logits) {
  const LogitScan scan = scan_logits(logits);
  if (!scan.has_nan && scan.max < kInfinity) return scan.max;
  const auto bad = std::find_if(logits.begin(), logits.end(), [](float x) { return std::isnan(x) || x == kInfinity; });
  throw Error(ErrorCode::kRuntime, "sampling: the model's logit of token " + std::to_string(bad - logits.begin()) +
                                       " is not a number; expected finite logits, got " +
                                       (std::isnan(*bad) ? "NaN" : "infinity") + "; try another backend or model file");
}

/// Of a token whose logit is given; `total` is the sum of e^(logit - max).
float logprob_of(float logit, float max, double total) {
  return static_cast<float>(static_cast<double>(logit) - static_cast<double>(max) - std::log(total));
}

}  // namespace

Sampler::Sampler(SamplingParams params) : params_(std::move(params)) {}

void Sampler::prime(std::span<const int32_t> prompt_ids) {
  FATHOM_CHECK(n_accepted_ == 0, "the prompt comes before the answer");
  const size_t n = std::min(prompt_ids.size(), static_cast<size_t>(params_.repeat_last_n));
  for (const int32_t id : prompt_ids.last(n)) remember(id);
}

void Sampler::accept(int32_t token_id) {
  ++n_accepted_;
  if (params_.frequency_penalty != 0 || params_.presence_penalty != 0) ++answer_counts_[token_id];
  remember(token_id);
}

void Sampler::remember(int32_t token_id) {
  if (params_.repeat_penalty == 1.0f || params_.repeat_last_n == 0) return;
  if (window_.size() == static_cast<size_t>(params_.repeat_last_n)) {
    const auto oldest = window_counts_.find(window_.front());
    if (--oldest->second == 0) window_counts_.erase(oldest);
    window_.pop_front();
  }
  window_.push_back(token_id);
  ++window_counts_[token_id];
}

/// Steps 1 to 4 on logits_. Returns whether anything may have changed.
bool Sampler::edit_logits(std::span<const uint64_t> allowed) {
  const auto known = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < logits_.size(); };
  for (const auto& [id, bias] : params_.logit_bias) {
    if (known(id)) logits_[static_cast<size_t>(id)] += bias;
  }
  for (const auto& [id, count] : window_counts_) {
    if (!known(id)) continue;
    float& logit = logits_[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / params_.repeat_penalty : logit * params_.repeat_penalty;
  }
  for (const auto& [id, count] : answer_counts_) {
    if (!known(id)) continue;
    logits_[static_cast<size_t>(id)] -=
        params_.frequency_penalty * static_cast<float>(count) + params_.presence_penalty;
  }
  if (!allowed.empty()) {
    FATHOM_CHECK(allowed.size() >= (logits_.size() + 63) / 64,
                 "the mask of allowed tokens is shorter than the vocabulary");
    for (size_t i = 0; i < logits_.size(); ++i) {
      if (((allowed[i / 64] >> (i % 64)) & 1) == 0) logits_[i] = -kInfinity;
    }
  }
  return !params_.logit_bias.empty() || !window_counts_.empty() || !answer_counts_.empty() || !allowed.empty();
}

TokenChoice Sampler::sample(std::span<const float> logits, std::span<const uint64_t> allowed) {
  const float raw_max = checked_max(logits);
  logits_.assign(logits.begin(), logits.end());
  const bool edited = edit_logits(allowed);
  const float max = edited ? checked_max(logits_) : raw_max;
  if (max == -kInfinity) {
    throw Error(ErrorCode::kRuntime, "sampling: no token may be chosen; expected at least one of " +
                                         std::to_string(logits.size()) +
                                         " allowed, got none; try a looser schema or logit bias");
  }
  const double raw_total = sum_exp(logits, raw_max, 1.0f);
  int32_t id;
  if (params_.temperature < kGreedyBelow) {
    id = static_cast<int32_t>(std::find(logits_.begin(), logits_.end(), max) - logits_.begin());
  } else {
    id = narrow(max, edited ? std::nullopt : std::optional(raw_total)) ? draw_from_candidates(max) : draw_from_all(max);
  }
  return {id, logprob_of(logits[static_cast<size_t>(id)], raw_max, raw_total)};
}

/// Steps 6 to 8. `total`: sum of all weights, if already known. False: every token stays, candidates_ was not filled.
bool Sampler::narrow(float max, std::optional<double> total) {
  bool narrowed = false;
  if (params_.top_k > 0 && static_cast<size_t>(params_.top_k) < logits_.size()) {
    const auto k = static_cast<size_t>(params_.top_k);
    for (const float reach : kReach) {
      gather(max - reach, max);
      if (candidates_.size() >= k) break;
    }
    cut_after(static_cast<double>(k), true);
    total = 0;
    for (const Candidate& c : candidates_) *total += static_cast<double>(c.weight);
    narrowed = true;
  }
  if (params_.top_p < 1.0f) {
    if (!total) total = sum_exp(logits_, max, 1.0f);
    const double target = static_cast<double>(params_.top_p) * *total;
    for (const float reach : kReach) {
      if (narrowed || gather(max - reach, max) >= target) break;
    }
    cut_after(target, false);
    narrowed = true;
  }
  if (params_.min_p > 0.0f) {
    const float lowest = max + std::log(params_.min_p);
    if (narrowed) {
      std::erase_if(candidates_, [&](const Candidate& c) { return c.logit < lowest; });
    } else {
      gather(lowest, max);
      narrowed = true;
    }
  }
  return narrowed;
}

/// candidates_ becomes the tokens with logit >= lowest, except forbidden ones, by id. Returns the sum of their weights.
double Sampler::gather(float lowest, float max) {
  near_ids_.clear();
  select_at_least(logits_, std::max(lowest, std::numeric_limits<float>::lowest()), near_ids_);
  candidates_.clear();
  double total = 0;
  for (const int32_t id : near_ids_) {
    const float logit = logits_[static_cast<size_t>(id)];
    const float weight = exp_nonpositive(logit - max);
    total += static_cast<double>(weight);
    candidates_.push_back({logit, weight, id});
  }
  return total;
}

/// Keeps the best candidates (higher logits first, then lower ids) up to and including the one where the running sum of
/// weights, or the count, reaches `target`. Linear time: the boundary is found by a histogram over the top 12 bits of
/// the logits, then over the next bits of the bin it fell into; only a small rest is ever sorted.
void Sampler::cut_after(double target, bool by_count) {
  constexpr int kBinBits = 12;
  constexpr size_t kSmall = 512;
  const auto mass = [&](const Candidate& c) { return by_count ? 1.0 : static_cast<double>(c.weight); };

  rest_ = candidates_;
  uint32_t fixed_bits = 0;  // leading key bits that all of rest_ share
  while (rest_.size() > kSmall && fixed_bits < 32) {
    const uint32_t bits = std::min<uint32_t>(kBinBits, 32 - fixed_bits);
    const uint32_t shift = 32 - fixed_bits - bits;
    const auto bin_of = [&](const Candidate& c) { return (rank_key(c.logit) >> shift) & ((1u << bits) - 1); };
    histogram_.assign(size_t{1} << bits, 0.0);
    for (const Candidate& c : rest_) histogram_[bin_of(c)] += mass(c);
    uint32_t boundary = 0;
    double above = 0, here = 0;  // masses of the filled bins over the boundary, and of the boundary itself
    for (uint32_t bin = 1u << bits; bin-- > 0;) {
      if (histogram_[bin] == 0) continue;
      boundary = bin;
      above += here;
      here = histogram_[bin];
      if (above + here >= target) break;
    }
    target -= above;
    std::erase_if(rest_, [&](const Candidate& c) { return bin_of(c) != boundary; });
    fixed_bits += bits;
  }
  if (fixed_bits < 32) {  // otherwise all equal, and still by id
    std::sort(rest_.begin(), rest_.end(), [](const Candidate& a, const Candidate& b) {
      return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
    });
  }
  size_t i = 0;
  for (double reached = mass(rest_[0]); reached < target && i + 1 < rest_.size(); reached += mass(rest_[++i])) {
  }
  const Candidate last = rest_[i];
  std::erase_if(candidates_,
                [&](const Candidate& c) { return c.logit < last.logit || (c.logit == last.logit && c.id > last.id); });
}

/// Walks the cumulative distribution to the first token past the random point.
int32_t Sampler::draw_from_candidates(float max) {
  double total = 0;
  for (Candidate& c : candidates_) {
    c.weight = exp_nonpositive((c.logit - max) / params_.temperature);
    total += static_cast<double>(c.weight);
  }
  const double point = random_unit(params_.seed, n_accepted_) * total;
  double reached = 0;
  int32_t id = candidates_.front().id;
  for (const Candidate& c : candidates_) {
    if (c.weight == 0) continue;
    id = c.id;
    reached += static_cast<double>(c.weight);
    if (reached > point) break;
  }
  return id;
}

/// The same over the whole vocabulary: whole blocks are skipped by their sums.
int32_t Sampler::draw_from_all(float max) const {
  constexpr size_t kBlock = 1024;
  const std::span<const float> all(logits_);
  const float temperature = params_.temperature;
  const double point = random_unit(params_.seed, n_accepted_) * sum_exp(all, max, temperature);
  double reached = 0;
  size_t best_block = 0;
  double before = 0;
  for (size_t begin = 0; begin < all.size(); begin += kBlock) {
    const double sum = sum_exp(all.subspan(begin, std::min(kBlock, all.size() - begin)), max, temperature);
    if (sum == 0) continue;
    best_block = begin;
    before = reached;
    reached += sum;
    if (reached > point) break;
  }
  int32_t id = 0;
  reached = before;
  for (size_t i = best_block; i < std::min(best_block + kBlock, all.size()); ++i) {
    const float weight = exp_nonpositive((all[i] - max) / temperature);
    if (weight == 0) continue;
    id = static_cast<int32_t>(i);
    reached += static_cast<double>(weight);
    if (reached > point) break;
  }
  return id;
}

std::vector<TokenChoice> top_logprobs(std::span<const float> logits, int k) {
  FATHOM_CHECK(k >= 0, "a negative number of tokens");
  const float max = checked_max(logits);
  if (k == 0 || max == -kInfinity) return {};
  const auto better = [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  // A heap of the best so far with the worst of them on top: most tokens fail the one comparison with it.
  std::vector<int32_t> best;
  for (size_t i = 0; i < logits.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    if (best.size() == static_cast<size_t>(k)) {
      if (!better(id, best.front())) continue;
      std::pop_heap(best.begin(), best.end(), better);
      best.pop_back();
    }
    best.push_back(id);
    std::push_heap(best.begin(), best.end(), better);
  }
  std::sort_heap(best.begin(), best.end(), better);
  const double total = sum_exp(logits, max, 1.0f);
  std::vector<TokenChoice> choices;
  choices.reserve(best.size());
  for (const int32_t id : best) {
    choices.push_back({id, logprob_of(logits[static_cast<size_t>(id)], max, total)});
  }
  return choices;
}

}  // namespace fathom
