// Which guesses are worth evaluating. A guess that is evaluated beside the token before it costs a row more in the step
// and saves a step if it was right. On a mixture of experts the row is dear, as it brings experts of its own: what it
// costs is a property of the machine, and what guesses are worth one of the text, so both are measured as answers go
// on. Nothing it says changes an answer: guesses that the sampler does not choose are dropped.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace fathom {

enum class DraftMode {
  kOff,
  kAuto,    ///< as far as it pays
  kAlways,  ///< every guess: for measuring
};

enum class DraftSource { kRepetition, kMtp };

class DraftPolicy {
 public:
  /// Rows of a step with guesses in it.
  static constexpr size_t kMostRows = 16;
  /// Guesses in a row for one answer.
  static constexpr size_t kMostChain = 8;

  /// `cost_of(rows)`: what a step of so many tokens must read, in any unit: how costs grow until they are measured.
  DraftPolicy(DraftMode mode, const std::function<double(int64_t rows)>& cost_of);

  DraftMode mode() const { return mode_; }

  /// Probability that the next guess of a chain is right, its forerunners being right. `hint`: tokens that match
  /// (kRepetition), or the probability the MTP block gives (kMtp).
  double chance(DraftSource source, double hint) const;

  /// One answer's guesses: the chance of each, its forerunners being right.
  struct Chain {
    std::vector<double> chances;
  };
  /// How many guesses of each chain to evaluate in a step of n_answers answers.
  std::vector<size_t> choose(size_t n_answers, const std::vector<Chain>& chains);

  /// Whether the MTP block is to run after the next step. Where it does not pay it rests, and is tried again later.
  bool mtp_pays() const { return mode_ == DraftMode::kAlways || (mode_ == DraftMode::kAuto && mtp_rest_ == 0); }

  /// A guess was evaluated behind right ones.
  void judged(DraftSource source, double hint, bool was_right);
  /// A step without prompt tokens.
  struct Outcome {
    size_t n_answers = 0, rows = 0;         ///< rows: a token of every answer, and guesses
    size_t mtp_guesses = 0, mtp_right = 0;  ///< of the guesses
    double seconds = 0;
  };
  void measured(const Outcome& step);
  /// The MTP block took so long after such a step.
  void measured_mtp(double seconds);

 private:
  static constexpr size_t kBuckets = 8;
  static size_t bucket(DraftSource source, double hint);
  double seconds(size_t rows) const;

  DraftMode mode_;
  std::array<double, kMostRows + 1> prior_{};            // relative cost of a step by rows
  std::array<double, kMostRows + 1> measured_{};         // seconds; 0: not yet
  std::array<std::array<double, kBuckets>, 2> right_{};  // by source: share of right guesses
  uint64_t steps_ = 0;
  double mtp_seconds_ = 0;                  // of the block after a step
  double mtp_guesses_ = 0, mtp_right_ = 0;  // a step's
  int mtp_steps_ = 0;                       // since its last rest
  int mtp_rest_ = 0;                        // steps until the block is tried again
};

}  // namespace fathom
