#include "split/split_backend.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "core/error.h"

namespace fathom {
namespace {

/// Looks at whether to go on are further apart than the nodes of a layer whose experts take long.
constexpr size_t kNodesAtOnce = 8;

/// Nodes of the device, then perhaps a mixture whose experts' weights are the host's.
struct Stretch {
  std::vector<Node> nodes;
  std::optional<MoeFfnArgs> experts;
  bool streams = false;  ///< the device computes them, else the host the routed ones
};

/// What the host reads and writes of a mixture, and its result on the way back.
struct Exchange {
  std::shared_ptr<Buffer> host;    ///< x, ids, weights, sums
  std::shared_ptr<Buffer> device;  ///< sums
};

class SplitBackend final : public Backend {
 public:
  SplitBackend(std::unique_ptr<Backend> device, std::unique_ptr<Backend> host, HostExperts experts, int64_t stream_from)
      : device_(std::move(device)), host_(std::move(host)), experts_(std::move(experts)), stream_from_(stream_from) {
    FATHOM_CHECK(!device_->shares_host_memory() && host_->shares_host_memory(), "a split between equals");
    FATHOM_CHECK(stream_from == 0 || device_->can_stream_experts(), "a device that cannot stream experts");
  }

  std::string_view name() const override { return device_->name(); }
  std::string describe() const override {
    return device_->describe() + "; experts of " + std::to_string(experts_.size()) +
           (experts_.size() == 1 ? " layer" : " layers") +
           (stream_from_ > 0 ? " (streamed from " + std::to_string(stream_from_) + " tokens on): " : ": ") +
           host_->describe();
  }
  std::shared_ptr<Buffer> allocate(size_t size_bytes, std::string_view what) override {
    return device_->allocate(size_bytes, what);
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
    make_room(nodes);
    for (const Stretch& stretch : cut(nodes)) {
      if (!stretch.nodes.empty()) device_->execute(stretch.nodes);
      run_experts(stretch);
    }
  }
  void replay(uint64_t key, std::span<const Node> nodes) override {
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
      if (stretch.streams) device_->reserve_streaming(*stretch.experts);
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
  bool streams(const MoeFfnArgs& mixture) const {
    if (stream_from_ == 0 || mixture.x.dim(0) < stream_from_) return false;
    try {
      device_->check_supported({mixture});
      return true;
    } catch (const Error&) {
      return false;  // of a type that the host alone can multiply with
    }
  }
  void run_experts(const Stretch& stretch) {
    if (!stretch.experts) return;
    stretch.streams ? device_->execute_streaming(*stretch.experts) : run_on_host(*stretch.experts);
  }
  static Node shared_only(const MoeFfnArgs& a) { return {GatedFfnArgs{a.x, a.shared, a.out, a.shared_clamp}}; }
  static MoeFfnArgs routed_only(MoeFfnArgs a) {
    a.shared = {};
    return a;
  }

  /// The sums of the step's mixtures on the device: one tensor, written by one mixture after the other.
  Tensor sums_like(const Tensor& out) const { return Tensor(DType::kF32, out.shape, exchange_.device->data()); }

  /// After make_room(): the device's nodes read the sums at their address.
  std::vector<Stretch> cut(std::span<const Node> nodes) const {
    std::vector<Stretch> stretches(1);
    for (const Node& node : nodes) {
      const MoeFfnArgs* mixture = host_mixture(node);
      if (mixture == nullptr) {
        stretches.back().nodes.push_back(node);
        continue;
      }
      stretches.back().experts = *mixture;
      stretches.back().streams = streams(*mixture);
      const bool has_shared = !stretches.back().streams && mixture->shared.gate;
      if (has_shared) stretches.back().nodes.push_back(shared_only(*mixture));
      stretches.emplace_back();
      if (has_shared) stretches.back().nodes.push_back({AddArgs{mixture->out, sums_like(mixture->out), mixture->out}});
    }
    if (stretches.back().nodes.empty() && stretches.size() > 1) stretches.pop_back();
    return stretches;
  }

  static size_t sums_bytes(const MoeFfnArgs& a) { return a.x.size_bytes(); }
  static size_t host_bytes(const MoeFfnArgs& a) {
    return 2 * a.x.size_bytes() + a.expert_ids.size_bytes() + a.expert_weights.size_bytes();
  }

  void make_room(std::span<const Node> nodes) {
    size_t on_host = 0, on_device = 0;
    for (const Node& node : nodes) {
      const MoeFfnArgs* mixture = host_mixture(node);
      if (mixture == nullptr || streams(*mixture)) continue;
      on_host = std::max(on_host, host_bytes(*mixture));
      on_device = std::max(on_device, sums_bytes(*mixture));
    }
    if (on_device > 0 && (!exchange_.device || exchange_.device->size_bytes() < on_device)) {
      forget_replays();  // they read the old memory
      device_->finish();
      exchange_.device.reset();
      exchange_.device = device_->allocate(on_device, "sums of experts from the host");
    }
    if (on_host > 0 && (!exchange_.host || exchange_.host->size_bytes() < on_host)) {
      exchange_.host.reset();
      exchange_.host = device_->allocate_staging(on_host, "activations for experts on the host");
    }
  }

  void run_on_host(const MoeFfnArgs& a) {
    FATHOM_CHECK(a.x.is_contiguous() && a.expert_ids.is_contiguous() && a.expert_weights.is_contiguous() &&
                     a.out.is_contiguous(),
                 "a mixture on the host with gaps in its rows");
    std::byte* at = exchange_.host->data();
    const auto fetch = [&](const Tensor& t) {
      device_->download(at, t.data, t.size_bytes());
      return Tensor(t.dtype, t.shape, std::exchange(at, at + t.size_bytes()));
    };
    MoeFfnArgs here = routed_only(a);
    here.x = fetch(a.x);
    here.out = Tensor(DType::kF32, a.out.shape, std::exchange(at, at + a.out.size_bytes()));
    here.expert_ids = fetch(a.expert_ids);
    here.expert_weights = fetch(a.expert_weights);
    const Node node{here};
    host_->execute({&node, 1});
    device_->upload(a.shared.gate ? exchange_.device->data() : a.out.data, here.out.data, here.out.size_bytes());
  }

  const std::unique_ptr<Backend> device_, host_;
  const HostExperts experts_;
  const int64_t stream_from_;
  Exchange exchange_;
  std::map<uint64_t, Cut> cuts_;
  uint64_t next_key_ = 0;
};

}  // namespace

std::unique_ptr<Backend> make_split_backend(std::unique_ptr<Backend> device, std::unique_ptr<Backend> host,
                                            HostExperts experts, int64_t stream_from) {
  return std::make_unique<SplitBackend>(std::move(device), std::move(host), std::move(experts), stream_from);
}

}  // namespace fathom
