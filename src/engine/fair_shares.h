// Who has had how much of the engine: the next turn goes to whoever has had least.
#pragma once

#include <algorithm>
#include <map>
#include <set>
#include <string>

namespace fathom {

/// A counter of tokens for each user. Whoever comes after a pause starts level with the least served of those present:
/// rest earns no credit. Source: the virtual token counter of arXiv:2401.00588, section 4.
class FairShares {
 public:
  /// `present`: users with a request in the house, this one not counted.
  void arrive(const std::string& user, const std::set<std::string>& present) {
    if (present.contains(user)) return;
    if (present.empty()) {
      served_.clear();
      return;
    }
    double least = served(*present.begin());
    for (const std::string& other : present) least = std::min(least, served(other));
    // Nothing is lost by forgetting those who would be raised to `least` anyway.
    std::erase_if(served_, [&](const auto& entry) { return !present.contains(entry.first) && entry.second <= least; });
    double& own = served_[user];
    own = std::max(own, least);
  }
  void charge(const std::string& user, double tokens) { served_[user] += tokens; }
  double served(const std::string& user) const {
    const auto found = served_.find(user);
    return found == served_.end() ? 0 : found->second;
  }

 private:
  std::map<std::string, double> served_;
};

}  // namespace fathom
