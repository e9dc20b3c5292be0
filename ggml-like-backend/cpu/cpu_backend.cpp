#include "cpu/cpu_backend.h"

#include <algorithm>

#include "core/error.h"
#include "core/threads.h"
#include "cpu/attention.h"
#include "cpu/fast/fast.h"
#include "cpu/op_context.h"
#include "cpu/reference/reference.h"

namespace fathom {
namespace {

using namespace cpu;

constexpr size_t kAlign = 64;

template <typename... Fns> struct Overload : Fns... { using Fns::operator()...; };

/// What an operation needs beside its tensors; `kernels` null means the reference.
Workspace workspace_of(const Node& node, const MatmulKernels* kernels, int n_threads) {
  return std::visit(
      Overload{
          [&](const LinearArgs& a) {
            return kernels ? fast::linear_workspace(a, *kernels) : reference::linear_workspace(a, n_threads);
          },
          [&](const GatedFfnArgs& a) {
            return kernels ? fast::gated_ffn_workspace(a, *kernels) : reference::gated_ffn_workspace(a, n_threads);
          },
          [&](const MoeFfnArgs& a) {
            return kernels ? fast::moe_ffn_workspace(a, *kernels) : reference::moe_ffn_workspace(a, n_threads);
          },
          [&](const LatentAttentionArgs& a) {
            return kernels ? fast::latent_attention_workspace(a, *kernels, n_threads)
                           : reference::latent_attention_workspace(a, n_threads);
          },
          [&](const MultiHeadAttentionArgs& a) {
            return kernels ? fast::multi_head_attention_workspace(a, *kernels, n_threads)
                           : reference::multi_head_attention_workspace(a, n_threads);
          },
          [&](const StoreLatentArgs& a) { return reference::store_latent_workspace(a); },
          [&](const RouteExpertsArgs& a) { return reference::route_experts_workspace(a); },
          [&](const IndexRowsArgs& a) {
            return kernels ? fast::index_rows_workspace(a, *kernels) : reference::index_rows_workspace(a);
          },
          [&](const CollapseStreamsArgs& a) { return kernels ? fast::collapse_streams_workspace(a) : Workspace{}; },
          [&](const CompressRowsArgs& a) {
            return kernels ? fast::compress_rows_workspace(a) : reference::compress_rows_workspace(a);
          },
          [&](const GroupedLinearArgs& a) {
            return kernels ? fast::grouped_linear_workspace(a, *kernels)
                           : reference::grouped_linear_workspace(a, n_threads);
          },
          [&](const CompressedAttentionArgs& a) {
            return kernels ? fast::compressed_attention_workspace(a, *kernels, n_threads)
                           : reference::compressed_attention_workspace(a, n_threads);
          },
          [&](const auto&) { return Workspace{}; },
      },
      node.args);
}

void run_node(const Node& node, OpContext& c) {
  const bool fast_kernels = c.matmul != nullptr;
  std::visit(
      Overload{
          [&](const EmbedRowsArgs& a) { reference::embed_rows(a, c); },
          [&](const TakeRowsArgs& a) { reference::take_rows(a, c); },
          [&](const ConcatRowsArgs& a) { reference::concat_rows(a, c); },
          [&](const AddArgs& a) { fast_kernels ? fast::add(a, c) : reference::add(a, c); },
          [&](const RmsNormArgs& a) { fast_kernels ? fast::rms_norm(a, c) : reference::rms_norm(a, c); },
          [&](const LayerNormArgs& a) { reference::layer_norm(a, c); },
          [&](const RopeTableArgs& a) { reference::rope_table(a, c); },
          [&](const RotateHeadsArgs& a) { reference::rotate_heads(a, c); },
          [&](const StoreLatentArgs& a) { reference::store_latent(a, c); },
          [&](const StoreKeyValueArgs& a) { reference::store_key_value(a, c); },
          [&](const StoreRowsArgs& a) { reference::store_rows(a, c); },
          [&](const IndexRowsArgs& a) { fast_kernels ? fast::index_rows(a, c) : reference::index_rows(a, c); },
          [&](const RouteExpertsArgs& a) { reference::route_experts(a, c); },
          [&](const CollapseStreamsArgs& a) {
            fast_kernels ? fast::collapse_streams(a, c) : reference::collapse_streams(a, c);
          },
          [&](const ExpandStreamsArgs& a) {
            fast_kernels ? fast::expand_streams(a, c) : reference::expand_streams(a, c);
          },
          [&](const CompressRowsArgs& a) { fast_kernels ? fast::compress_rows(a, c) : reference::compress_rows(a, c); },
          [&](const CompressedAttentionArgs& a) {
            fast_kernels ? fast::compressed_attention(a, c) : reference::compressed_attention(a, c);
          },
          [&](const GroupedLinearArgs& a) {
            fast_kernels ? fast::grouped_linear(a, c) : reference::grouped_linear(a, c);
          },
          [&](const LinearArgs& a) { fast_kernels ? fast::linear(a, c) : reference::linear(a, c); },
          [&](const GatedFfnArgs& a) { fast_kernels ? fast::gated_ffn(a, c) : reference::gated_ffn(a, c); },
          [&](const MoeFfnArgs& a) { fast_kernels ? fast::moe_ffn(a, c) : reference::moe_ffn(a, c); },
          [&](const LatentAttentionArgs& a) {
            fast_kernels ? fast::latent_attention(a, c) : reference::latent_attention(a, c);
          },
          [&](const MultiHeadAttentionArgs& a) {
            fast_kernels ? fast::multi_head_attention(a, c) : reference::multi_head_attention(a, c);
          },
      },
      node.args);
}

/// Of weights and activations.
int64_t multiplications(std::span<const Node> nodes) {
  int64_t n = 0;
  const auto gated = [&](const GatedFfnWeights& w, int64_t n_rows) {
    if (w.gate) n += 3 * w.gate.dim(w.gate.shape.rank - 1) * w.gate.dim(w.gate.shape.rank - 2) * n_rows;
  };
  for (const Node& node : nodes) {
    std::visit(Overload{[&](const LinearArgs& a) { n += a.x.dim(0) * a.weight.dim(0) * a.weight.dim(1); },
                        [&](const GroupedLinearArgs& a) { n += a.x.dim(0) * a.weight.dim(0) * a.weight.dim(1); },
                        [&](const GatedFfnArgs& a) { gated(a.weights, a.x.dim(0)); },
                        [&](const MoeFfnArgs& a) {
                          gated(a.experts, a.expert_ids.dim(0) * a.expert_ids.dim(1)), gated(a.shared, a.x.dim(0));
                        },
                        [](const auto&) {}},
               node.args);
  }
  return n;
}

/// Below this one thread computes a step: less than a millisecond, in which several would spend as long meeting, and on
/// a busy machine much longer. No result depends on it.
constexpr int64_t kAloneMultiplications = 16'000'000;

class CpuBackend final : public Backend {
 public:
  CpuBackend(int n_threads, const MatmulKernels* kernels, bool reads_ahead)
      : kernels_(kernels),
        elements_(kernels ? element_kernels(kernels->isa) : nullptr),
        reads_ahead_(reads_ahead),
        pool_(n_threads) {}

  std::string_view name() const override { return "cpu"; }
  std::string describe() const override {
    return "cpu " + std::string(kernels_ ? kernels_->isa : "reference") + ", " + std::to_string(pool_.size()) +
           (pool_.size() == 1 ? " thread" : " threads");
  }
  std::shared_ptr<Buffer> allocate(size_t size_bytes, std::string_view what) override {
    return allocate_heap(size_bytes, what);
  }

  void check_supported(const Node& node) const override {
    auto weight = [&](const Tensor& w) {
      if (w && kernels_ != nullptr && !kernels_->supports(w.dtype)) {
        throw Error(ErrorCode::kModel, "cpu backend: operation " + std::string(op_name(node)) + " has no " +
                                           std::string(kernels_->isa) + " kernel for weights of type " +
                                           std::string(dtype_name(w.dtype)) + "; try --isa reference");
      }
    };
    std::visit(
        Overload{[&](const LinearArgs& a) { weight(a.weight); }, [&](const GroupedLinearArgs& a) { weight(a.weight); },
                 [&](GatedFfnArgs a) { a.weights.each(weight); },
                 [&](MoeFfnArgs a) { a.experts.each(weight), a.shared.each(weight); }, [](const auto&) {}},
        node.args);
  }

  void execute(std::span<const Node> nodes) override {
    // A node by itself is part of a step that somebody wants to interrupt: a long one.
    const bool alone = pool_.size() == 1 || (nodes.size() > 1 && multiplications(nodes) < kAloneMultiplications);
    const int n_threads = alone ? 1 : pool_.size();
    Workspace needed;
    for (const Node& node : nodes) {
      const Workspace w = workspace_of(node, kernels_, n_threads);
      needed.shared_bytes = std::max(needed.shared_bytes, w.shared_bytes);
      needed.per_thread_bytes = std::max(needed.per_thread_bytes, w.per_thread_bytes);
    }
    const size_t shared = (needed.shared_bytes + kAlign - 1) / kAlign * kAlign;
    const size_t own = (needed.per_thread_bytes + kAlign - 1) / kAlign * kAlign;
    const size_t total = shared + own * static_cast<size_t>(n_threads);
    if (!workspace_ || workspace_->size_bytes() < total) {
      workspace_.reset();
      workspace_ = allocate_heap(total, "workspace of the CPU kernels");
    }
    const auto run_nodes = [&](Worker& worker) {
      OpContext context{worker,
                        kernels_,
                        elements_,
                        workspace_->data(),
                        workspace_->data() + shared + own * static_cast<size_t>(worker.index()),
                        reads_ahead_};
      for (const Node& node : nodes) {
        run_node(node, context);
        worker.barrier();
      }
    };
    alone ? pool_.run_alone(run_nodes) : pool_.run(run_nodes);
  }

 private:
  const MatmulKernels* kernels_;    ///< null: reference
  const ElementKernels* elements_;  ///< null: reference
  const bool reads_ahead_;
  ThreadPool pool_;
  std::shared_ptr<Buffer> workspace_;
};

std::string choices() {
  std::string s = "auto";
  for (const std::string& name : cpu_isa_names()) s += ", " + name;
  return s;
}

}  // namespace

std::vector<std::string> cpu_isa_names() {
  std::vector<std::string> names = matmul_isa_names();
  names.push_back("reference");
  return names;
}

std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options) {
  const std::string isa = options.isa == "auto" ? cpu_isa_names().front() : options.isa;
  const std::vector<std::string> names = cpu_isa_names();
  if (std::find(names.begin(), names.end(), isa) == names.end()) {
    throw Error(ErrorCode::kUsage, "--isa: this machine has no kernels called that; expected one of " + choices() +
                                       ", got '" + isa + "'; try auto");
  }
  if (options.n_threads < 0)
    throw Error(ErrorCode::kUsage,
                "--threads: out of range; expected 1 or more, got " + std::to_string(options.n_threads));
  const int n_threads = options.n_threads == 0 ? usable_physical_cores() : options.n_threads;
  return std::make_unique<CpuBackend>(n_threads, isa == "reference" ? nullptr : matmul_kernels(isa),
                                      options.reads_experts_ahead);
}

}  // namespace fathom
