#include "engine/draft_policy.h"

#include <algorithm>
#include <cmath>

namespace fathom {
namespace {

constexpr double kForget = 1.0 / 16;  // weight of the newest observation
constexpr uint64_t kStepsFirst = 4;   // without guesses, so that there is something to compare with
constexpr uint64_t kStepsBetweenTrials = 64;
constexpr double kTrialChance = 0.4;  // a guess that is tried although it does not seem to pay
constexpr int kMtpTrialSteps = 24, kMtpRestSteps = 512;

void blend(double& old, double now, double weight) { old += weight * (now - old); }

}  // namespace

DraftPolicy::DraftPolicy(DraftMode mode, const std::function<double(int64_t rows)>& cost_of) : mode_(mode) {
  for (size_t rows = 1; rows <= kMostRows; ++rows) prior_[rows] = cost_of(static_cast<int64_t>(rows));
  // Longer matches are likelier to go on; the MTP block's probabilities are taken at their word.
  for (size_t i = 0; i < kBuckets; ++i) {
    right_[static_cast<size_t>(DraftSource::kRepetition)][i] = 0.3 + 0.6 * static_cast<double>(i) / (kBuckets - 1);
    right_[static_cast<size_t>(DraftSource::kMtp)][i] = (static_cast<double>(i) + 0.5) / kBuckets;
  }
}

size_t DraftPolicy::bucket(DraftSource source, double hint) {
  const double place = source == DraftSource::kMtp ? hint * kBuckets : std::log2(hint / 3 + 1) * 3 - 3;
  return static_cast<size_t>(std::clamp(place, 0.0, static_cast<double>(kBuckets - 1)));
}

double DraftPolicy::chance(DraftSource source, double hint) const {
  return right_[static_cast<size_t>(source)][bucket(source, hint)];
}

void DraftPolicy::judged(DraftSource source, double hint, bool was_right) {
  blend(right_[static_cast<size_t>(source)][bucket(source, hint)], was_right ? 1 : 0, kForget);
}

/// Measured, or from the nearest number of rows that was, grown as the prior grows.
double DraftPolicy::seconds(size_t rows) const {
  for (size_t away = 0; away <= kMostRows; ++away) {
    for (const size_t near : {rows - std::min(rows, away), rows + away}) {
      if (near >= 1 && near <= kMostRows && measured_[near] > 0) return measured_[near] * prior_[rows] / prior_[near];
    }
  }
  return prior_[rows];
}

std::vector<size_t> DraftPolicy::choose(size_t n_answers, const std::vector<Chain>& chains) {
  std::vector<size_t> chosen(chains.size(), 0);
  if (mode_ == DraftMode::kOff || n_answers == 0 || n_answers >= kMostRows) return chosen;
  const size_t room = kMostRows - n_answers;
  struct Candidate {
    double chance;  // of this and all before it in its chain
    size_t chain;
  };
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < chains.size(); ++i) {
    double all = 1;
    for (const double chance : chains[i].chances) candidates.push_back({all *= chance, i});
  }
  // Chances fall along a chain, so that a chain's guesses stay in order.
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.chance > b.chance; });
  candidates.resize(std::min(candidates.size(), room));
  size_t best = 0;
  if (mode_ == DraftMode::kAlways) {
    best = candidates.size();
  } else if (steps_ >= kStepsFirst) {
    double tokens = static_cast<double>(n_answers), best_rate = tokens / seconds(n_answers);
    for (size_t n = 1; n <= candidates.size(); ++n) {
      tokens += candidates[n - 1].chance;
      const double rate = tokens / seconds(n_answers + n);
      if (rate > best_rate) best = n, best_rate = rate;
    }
    const bool is_trial = best == 0 && steps_ % kStepsBetweenTrials == 0;
    if (is_trial && !candidates.empty() && candidates[0].chance >= kTrialChance) best = 1;
  }
  for (size_t n = 0; n < best; ++n) ++chosen[candidates[n].chain];
  return chosen;
}

void DraftPolicy::measured(const Outcome& step) {
  ++steps_;
  if (step.rows >= 1 && step.rows <= kMostRows) {
    double& old = measured_[step.rows];
    old == 0 ? void(old = step.seconds) : blend(old, step.seconds, kForget);
  }
  if (mode_ != DraftMode::kAuto || step.n_answers == 0 || step.n_answers >= kMostRows) return;
  if (mtp_rest_ > 0) {
    --mtp_rest_;
    return;
  }
  if (mtp_seconds_ == 0) return;  // there is no block
  blend(mtp_guesses_, static_cast<double>(step.mtp_guesses), kForget);
  blend(mtp_right_, static_cast<double>(step.mtp_right), kForget);
  if (++mtp_steps_ < kMtpTrialSteps) return;
  // The block's tokens against those that the same time would give without it.
  const double alone = seconds(step.n_answers), row = seconds(step.n_answers + 1) - alone;
  if (mtp_right_ * alone < static_cast<double>(step.n_answers) * (mtp_guesses_ * row + mtp_seconds_)) {
    mtp_rest_ = kMtpRestSteps;
    mtp_steps_ = 0;
  }
}

void DraftPolicy::measured_mtp(double seconds) {
  mtp_seconds_ == 0 ? void(mtp_seconds_ = seconds) : blend(mtp_seconds_, seconds, kForget);
}

}  // namespace fathom
