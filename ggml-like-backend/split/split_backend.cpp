#include "split/split_backend.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "core/error.h"
#include "split/expert_cache.h"

namespace fathom {
namespace {

/// Looks at whether to go on are further apart than the nodes of a layer whose experts take long.
constexpr size_t kNodesAtOnce = 8;

/// Steps that hot experts on the device are used for: its kernels for few tokens.
constexpr int64_t kMostHotTokens = 16;

/// Nodes of the device, then perhaps a mixture whose experts' weights are the host's.
struct Stretch {
  enum Who {
    kHost,    ///< computes the routed ones
    kBoth,    ///< the device those that it has, and the shared ones
    kDevice,  ///< all of them, brought for this step
  };
  std::vector<Node> nodes;
  std::optional<MoeFfnArgs> experts;
  Who who = kHost;
};

/// What the host reads and writes of a mixture, and its result on the way back.
struct Exchange {
  std::shared_ptr<Buffer> host;    ///< x, ids, weights, sums
  std::shared_ptr<Buffer> device;  ///< sums
  std::shared_ptr<Buffer> routes;  ///< on the device: ids and weights of its share
};

class SplitBackend final : public Backend {
 public:
  SplitBackend(std::unique_ptr<Backend> device, std::unique_ptr<Backend> host, HostExperts experts,
               const SplitOptions& options)
      : device_(std::move(device)),
        host_(std::move(host)),
        experts_(std::move(experts)),
        options_(options),
        cache_(*device_, options.cache_bytes, experts_.size()) {
    FATHOM_CHECK(!device_->shares_host_memory() && host_->shares_host_memory(), "a split between equals");
    FATHOM_CHECK(options.stream_from == 0 || device_->can_stream_experts(), "a device that cannot stream experts");
  }

  std::string_view name() const override { return device_->name(); }
  std::string describe() const override {
    std::string how;
    if (options_.stream_from > 0) how = "streamed from " + std::to_string(options_.stream_from) + " tokens on";
    if (options_.cache_bytes > 0) how += how.empty() ? "hot ones cached" : "; hot ones cached";
    return device_->describe() + "; experts of " + std::to_string(experts_.size()) +
           (experts_.size() == 1 ? " layer" : " layers") + (how.empty() ? "" : " (" + how + ")") + ": " +
           host_->describe();
  }
  std::shared_ptr<Buffer> allocate(size_t size_bytes, std::string_view what) override {
    return device_->allocate(size_bytes, what);
  }
  std::unique_ptr<SparseRange> reserve_units(size_t n, size_t unit_bytes, std::string_view what) override {
    return device_->reserve_units(n, unit_bytes, what);
  }
  void check_supported(const Node& node) const override {
    const MoeFfnArgs* mixture = host_mixture(node);
    if (mixture == nullptr) {
      device_->check_supported(node);
      return;
    }
    host_->check_supported({routed_only(*mixture)});
    if (mixture->shared.gate) device_->check_supported({shared_only(*mixture)});
  }

  void execute(std::span<const Node> nodes) override {
    cache_.begin_step();
    make_room(nodes);
    for (const Stretch& stretch : cut(nodes)) {
      if (!stretch.nodes.empty()) device_->execute(stretch.nodes);
      run_experts(stretch);
    }
  }
  void replay(uint64_t key, std::span<const Node> nodes) override {
    cache_.begin_step();
    auto found = cuts_.find(key);
    if (found == cuts_.end()) {
      make_room(nodes);  // first: it may forget
      found = cuts_.emplace(key, Cut{next_key_, cut(nodes)}).first;
      next_key_ += found->second.stretches.size();
    }
    uint64_t device_key = found->second.first_key;
    for (const Stretch& stretch : found->second.stretches) {
      if (!stretch.nodes.empty()) device_->replay(device_key, stretch.nodes);
      ++device_key;
      run_experts(stretch);
    }
  }
  void forget_replays() override {
    cuts_.clear();
    device_->forget_replays();
  }
  void reserve(std::span<const Node> nodes) override {
    make_room(nodes);
    for (const Stretch& stretch : cut(nodes)) {
      device_->reserve(stretch.nodes);
      if (stretch.who == Stretch::kDevice) device_->reserve_streaming(*stretch.experts);
      if (stretch.who == Stretch::kBoth) {
        const Node node{on_places(*stretch.experts)};
        device_->reserve({&node, 1});
      }
    }
  }
  size_t nodes_at_once() const override { return std::min(kNodesAtOnce, device_->nodes_at_once()); }

  bool shares_host_memory() const override { return false; }
  std::optional<uint64_t> free_bytes() const override { return device_->free_bytes(); }
  uint64_t allocated_bytes() const override { return device_->allocated_bytes(); }
  void finish() override { device_->finish(); }
  std::shared_ptr<Buffer> allocate_staging(size_t size_bytes, std::string_view what) override {
    return device_->allocate_staging(size_bytes, what);
  }
  void upload(std::byte* to, const std::byte* from_host, size_t size_bytes) override {
    device_->upload(to, from_host, size_bytes);
  }
  void upload_weights(std::byte* to, const std::byte* from_host, DType dtype, int64_t n_rows,
                      int64_t n_columns) override {
    device_->upload_weights(to, from_host, dtype, n_rows, n_columns);
  }
  size_t weight_row_bytes(DType dtype, int64_t n_columns) const override {
    return device_->weight_row_bytes(dtype, n_columns);
  }
  ExpertHits expert_hits() const override { return hits_; }
  bool can_stream_experts() const override { return device_->can_stream_experts(); }
  int fused_nodes() const override { return device_->fused_nodes(); }
  void download(std::byte* to_host, const std::byte* from, size_t size_bytes) override {
    device_->download(to_host, from, size_bytes);
  }
  void copy(std::byte* to, const std::byte* from, size_t size_bytes) override { device_->copy(to, from, size_bytes); }

 private:
  struct Cut {
    uint64_t first_key;  ///< of the device's, one a stretch
    std::vector<Stretch> stretches;
  };

  const MoeFfnArgs* host_mixture(const Node& node) const {
    const auto* mixture = std::get_if<MoeFfnArgs>(&node.args);
    return mixture != nullptr && experts_.contains(mixture->experts.gate.data) ? mixture : nullptr;
  }
  bool device_can_run(const MoeFfnArgs& mixture) const {
    try {
      device_->check_supported({mixture});
      return true;
    } catch (const Error&) {
      return false;  // of a type that the host alone can multiply with
    }
  }
  /// After make_room(), which gives mixtures their places.
  Stretch::Who who_runs(const MoeFfnArgs& mixture) {
    const int64_t n_tokens = mixture.x.dim(0);
    if (n_tokens <= kMostHotTokens && cache_.places_of(mixture) != nullptr) return Stretch::kBoth;
    const bool streams = options_.stream_from > 0 && n_tokens >= options_.stream_from;
    return streams && device_can_run(mixture) ? Stretch::kDevice : Stretch::kHost;
  }
  void run_experts(const Stretch& stretch) {
    if (!stretch.experts) return;
    switch (stretch.who) {
      case Stretch::kHost: run_on_host(*stretch.experts); break;
      case Stretch::kBoth: run_on_both(*stretch.experts); break;
      case Stretch::kDevice: device_->execute_streaming(*stretch.experts); break;
    }
  }
  static Node shared_only(const MoeFfnArgs& a) { return {GatedFfnArgs{a.x, a.shared, a.out, a.shared_clamp}}; }
  static MoeFfnArgs routed_only(MoeFfnArgs a) {
    a.shared = {};
    return a;
  }

  /// The sums of the step's mixtures on the device: one tensor, written by one mixture after the other.
  Tensor sums_like(const Tensor& out) const { return Tensor(DType::kF32, out.shape, exchange_.device->data()); }

  /// After make_room(): the device's nodes read the sums at their address.
  std::vector<Stretch> cut(std::span<const Node> nodes) {
    std::vector<Stretch> stretches(1);
    for (const Node& node : nodes) {
      const MoeFfnArgs* mixture = host_mixture(node);
      if (mixture == nullptr) {
        stretches.back().nodes.push_back(node);
        continue;
      }
      Stretch& stretch = stretches.back();
      stretch.experts = *mixture;
      stretch.who = who_runs(*mixture);
      const bool adds_sums = stretch.who != Stretch::kDevice && mixture->shared.gate;
      if (adds_sums && stretch.who == Stretch::kHost) stretch.nodes.push_back(shared_only(*mixture));
      stretches.emplace_back();
      if (adds_sums) stretches.back().nodes.push_back({AddArgs{mixture->out, sums_like(mixture->out), mixture->out}});
    }
    if (stretches.back().nodes.empty() && stretches.size() > 1) stretches.pop_back();
    return stretches;
  }

  static size_t sums_bytes(const MoeFfnArgs& a) { return a.x.size_bytes(); }
  static size_t host_bytes(const MoeFfnArgs& a) {
    return 2 * a.x.size_bytes() + a.expert_ids.size_bytes() + a.expert_weights.size_bytes();
  }

  static size_t routes_bytes(const MoeFfnArgs& a) { return a.expert_ids.size_bytes() + a.expert_weights.size_bytes(); }

  void make_room(std::span<const Node> nodes) {
    size_t on_host = 0, sums = 0, routes = 0;
    for (const Node& node : nodes) {
      const MoeFfnArgs* mixture = host_mixture(node);
      if (mixture == nullptr) continue;
      if (options_.cache_bytes > 0 && mixture->shared.gate && device_can_run(*mixture)) cache_.take(*mixture);
      const Stretch::Who who = who_runs(*mixture);
      if (who == Stretch::kDevice) continue;
      on_host = std::max(on_host, host_bytes(*mixture));
      sums = std::max(sums, sums_bytes(*mixture));
      if (who == Stretch::kBoth) routes = std::max(routes, routes_bytes(*mixture));
    }
    grow(exchange_.device, sums, "sums of experts from the host");
    grow(exchange_.routes, routes, "routes to hot experts");
    if (on_host > 0 && (!exchange_.host || exchange_.host->size_bytes() < on_host)) {
      exchange_.host.reset();
      exchange_.host = device_->allocate_staging(on_host, "activations for experts on the host");
    }
  }
  void grow(std::shared_ptr<Buffer>& on_device, size_t n_bytes, const char* what) {
    if (n_bytes == 0 || (on_device && on_device->size_bytes() >= n_bytes)) return;
    forget_replays();  // they read the old memory
    device_->finish();
    on_device.reset();
    on_device = device_->allocate(n_bytes, what);
  }

  /// A mixture's rows in host memory.
  struct Fetched {
    Tensor x, ids, weights, out;
  };
  Fetched fetch(const MoeFfnArgs& a) {
    FATHOM_CHECK(a.x.is_contiguous() && a.expert_ids.is_contiguous() && a.expert_weights.is_contiguous() &&
                     a.out.is_contiguous(),
                 "a mixture on the host with gaps in its rows");
    std::byte* at = exchange_.host->data();
    const auto take = [&](const Tensor& t) { return Tensor(t.dtype, t.shape, std::exchange(at, at + t.size_bytes())); };
    const auto bring = [&](const Tensor& t) {
      const Tensor here = take(t);
      device_->download(here.data, t.data, t.size_bytes());
      return here;
    };
    const Tensor x = bring(a.x), ids = bring(a.expert_ids), weights = bring(a.expert_weights);
    return {x, ids, weights, take(a.out)};
  }

  void run_on_host(const MoeFfnArgs& a) {
    const Fetched here = fetch(a);
    host_->execute(one({here.x, here.ids, here.weights, a.experts, {}, here.out, a.clamp}));
    device_->upload(a.shared.gate ? exchange_.device->data() : a.out.data, here.out.data, here.out.size_bytes());
  }

  /// The mixture over the places of the cache: ids are places.
  MoeFfnArgs on_places(MoeFfnArgs a) {
    a.experts = cache_.places_of(a)->weights;
    a.expert_ids = Tensor(DType::kI32, a.expert_ids.shape, exchange_.routes->data());
    a.expert_weights =
        Tensor(DType::kF32, a.expert_weights.shape, exchange_.routes->data() + a.expert_ids.size_bytes());
    return a;
  }
  /// The device is at its share while the host computes the other one.
  void run_on_both(const MoeFfnArgs& a) {
    HotExperts& hot = cache_.places_of(a)->experts;
    const Fetched here = fetch(a);
    const int64_t n_tokens = a.x.dim(0), n_used = a.expert_ids.dim(1);
    const std::span<const int32_t> ids(here.ids.as<int32_t>(), static_cast<size_t>(n_tokens * n_used));
    DividedRoutes routes = divide_routes(ids, {here.weights.as<float>(), ids.size()}, n_used, hot);
    hits_.hits += static_cast<uint64_t>(routes.n_hits);
    hits_.routes += ids.size();
    for (int64_t t = 0; t < n_tokens; ++t)
      hot.used(ids.subspan(static_cast<size_t>(t * n_used), static_cast<size_t>(n_used)));

    if (routes.n_hits > 0) {
      const MoeFfnArgs there = on_places(a);
      device_->upload(there.expert_ids.data, reinterpret_cast<const std::byte*>(routes.places.data()),
                      there.expert_ids.size_bytes());
      device_->upload(there.expert_weights.data, reinterpret_cast<const std::byte*>(routes.place_weights.data()),
                      there.expert_weights.size_bytes());
      device_->execute(one(there));
    } else {
      const Node shared = shared_only(a);
      device_->execute({&shared, 1});
    }
    if (routes.n_missed > 0) {
      const Shape shape{n_tokens, routes.n_missed};
      host_->execute(one({here.x,
                          Tensor(DType::kI32, shape, routes.missed.data()),
                          Tensor(DType::kF32, shape, routes.missed_weights.data()),
                          a.experts,
                          {},
                          here.out,
                          a.clamp}));
    } else {
      std::memset(here.out.data, 0, here.out.size_bytes());
    }
    device_->upload(exchange_.device->data(), here.out.data, here.out.size_bytes());
    cache_.bring_hot(a);
  }
  std::span<const Node> one(const MoeFfnArgs& a) {
    node_ = {a};
    return {&node_, 1};
  }

  const std::unique_ptr<Backend> device_, host_;
  const HostExperts experts_;
  const SplitOptions options_;
  ExpertCache cache_;
  ExpertHits hits_;
  Node node_;  ///< of one()
  Exchange exchange_;
  std::map<uint64_t, Cut> cuts_;
  uint64_t next_key_ = 0;
};

}  // namespace

std::unique_ptr<Backend> make_split_backend(std::unique_ptr<Backend> device, std::unique_ptr<Backend> host,
                                            HostExperts experts, const SplitOptions& options) {
  return std::make_unique<SplitBackend>(std::move(device), std::move(host), std::move(experts), options);
}

}  // namespace fathom
