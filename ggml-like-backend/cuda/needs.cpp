#include "cuda/needs.h"

#include <sys/mman.h>

#include <algorithm>
#include <string>
#include <variant>

#include "core/error.h"
#include "core/plain_text.h"
#include "cuda/backend_parts.h"
#include "cuda/expert_stream.h"
#include "cuda/matmul.h"
#include "cuda/node_groups.h"
#include "cuda/ops.h"
#include "cuda/weight_layout.h"

namespace fathom::cuda {
namespace {

template <typename... Fns> struct Overload : Fns... { using Fns::operator()...; };

size_t workspace_of(const Node& node) {
  return std::visit(Overload{[](const LinearArgs& a) { return linear_workspace(a); },
                             [](const GatedFfnArgs& a) { return gated_ffn_workspace(a); },
                             [](const MoeFfnArgs& a) { return moe_ffn_workspace(a); },
                             [](const LatentAttentionArgs& a) { return latent_attention_workspace(a); },
                             [](const MultiHeadAttentionArgs& a) { return multi_head_attention_workspace(a); },
                             [](const IndexRowsArgs& a) { return index_rows_workspace(a); },
                             [](const GroupedLinearArgs& a) { return grouped_linear_workspace(a); },
                             [](const CompressedAttentionArgs& a) { return compressed_attention_workspace(a); },
                             [](const auto&) { return size_t{0}; }},
                    node.args);
}

}  // namespace

void check_supported(const Node& node) {
  auto refuse = [&](const std::string& why) {
    throw Error(ErrorCode::kModel, "cuda backend: operation " + std::string(op_name(node)) + " has no kernel for " +
                                       why + "; try --backend cpu");
  };
  auto number = [](int64_t n) { return std::to_string(n); };
  auto check_streams = [&](int64_t m) {
    if (m != 1 && m != 2 && m != kMostMixed) refuse(number(m) + " residual streams; expected 1, 2 or 4");
  };
  std::visit(
      Overload{[](const LinearArgs& a) { check_weights(a); }, [](const GroupedLinearArgs& a) { check_weights(a); },
               [](const GatedFfnArgs& a) { check_weights(a); }, [](const MoeFfnArgs& a) { check_weights(a); },
               [&](const EmbedRowsArgs& a) {
                 if (!supports_weights(a.table.dtype))
                   refuse("weights of type " + std::string(dtype_name(a.table.dtype)));
               },
               [&](const LatentAttentionArgs& a) {
                 if (a.latent_dim() > kMostLatent || a.latent_dim() % 2 != 0)
                   refuse("latents of " + number(a.latent_dim()) + " values; expected an even number up to " +
                          number(kMostLatent));
                 if (attention_shared_bytes(a) > kMostShared)
                   refuse("queries of " + number(a.cache.dim(2)) + " values");
               },
               [&](const MultiHeadAttentionArgs& a) {
                 if (a.q.dim(2) > kMostHead)
                   refuse("heads of " + number(a.q.dim(2)) + " values, at most " + number(kMostHead));
               },
               [&](const CompressedAttentionArgs& a) {
                 if (a.q.dim(2) > kMostLatent || compressed_attention_shared_bytes(a) > kMostShared)
                   refuse("heads of " + number(a.q.dim(2)) + " values, at most " + number(kMostLatent));
                 if (a.compressed && a.compressed.dtype != a.window.dtype) refuse("rows of two types");
               },
               [&](const CompressRowsArgs& a) {
                 if (compress_rows_shared_bytes(a) > kMostShared)
                   refuse("rows of " + number(a.row_dim()) + " values that stand for " + number(a.ratio) + " tokens");
               },
               [&](const CollapseStreamsArgs& a) { check_streams(a.n_streams()); },
               [&](const ExpandStreamsArgs& a) { check_streams(a.n_streams()); },
               [&](const RouteExpertsArgs& a) {
                 if (a.logits.dim(1) > kMostExperts)
                   refuse(number(a.logits.dim(1)) + " experts, at most " + number(kMostExperts));
               },
               [&](const IndexRowsArgs& a) {
                 if (index_rows_shared_bytes(a) > kMostShared)
                   refuse(number(a.q.dim(1)) + " heads of " + number(a.q.dim(2)) + " values");
               },
               [](const auto&) {}},
      node.args);
}

Needs needs_of(std::span<const Node> nodes) {
  Needs needs;
  for (const Node& node : nodes) {
    needs.workspace_bytes = std::max(needs.workspace_bytes, workspace_of(node));
    Tensor rows;
    if (const auto* a = std::get_if<RmsNormArgs>(&node.args)) rows = a->out;
    if (const auto* a = std::get_if<LatentAttentionArgs>(&node.args)) rows = a->out;
    if (const auto* a = std::get_if<CompressedAttentionArgs>(&node.args)) rows = a->out;
    if (!rows) continue;
    if (rows.dim(0) > kMostTokens) {
      throw Error(ErrorCode::kUsage, "--batch: too large for the device; expected at most " +
                                         std::to_string(kMostTokens) + ", got " + std::to_string(rows.dim(0)));
    }
    needs.rows_bytes = std::max(needs.rows_bytes, quantized_rows_bytes(rows.dim(0), rows.dim(1)));
  }
  return needs;
}

namespace {

/// Addresses that nothing may be read from or written to.
class CountedBuffer final : public Buffer {
 public:
  CountedBuffer(size_t size_bytes, std::shared_ptr<uint64_t> counter)
      : Buffer(nullptr, size_bytes), counter_(std::move(counter)) {
    void* p =
        mmap(nullptr, std::max<size_t>(size_bytes, 1), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw Error(ErrorCode::kNoMemory, "fit: no addresses for " + mib(size_bytes));
    data_ = static_cast<std::byte*>(p);
    *counter_ += size_bytes;
  }
  ~CountedBuffer() override {
    munmap(data_, std::max<size_t>(size_bytes_, 1));
    *counter_ -= size_bytes_;
  }
  BufferKind kind() const override { return BufferKind::kDevice; }

 private:
  std::shared_ptr<uint64_t> counter_;
};

/// The same in units; what is taken of them later is nobody's yet.
class CountedUnits final : public SparseRange {
 public:
  CountedUnits(size_t n, size_t unit_bytes) : addresses_(n * unit_bytes, std::make_shared<uint64_t>(0)) {
    data_ = addresses_.data();
    stride_bytes_ = unit_bytes;
  }
  void prepare(size_t) override {}
  void take(size_t) override {}
  void discard(size_t) override {}

 private:
  CountedBuffer addresses_;
};

/// Takes what CudaBackend takes, of nobody.
class CountingBackend final : public Backend {
 public:
  CountingBackend(std::string description, uint64_t memory_bytes)
      : description_(std::move(description)), memory_bytes_(memory_bytes) {}
  std::string_view name() const override { return "cuda"; }
  std::string describe() const override { return description_; }
  bool shares_host_memory() const override { return false; }
  int fused_nodes() const override { return kMostGrouped; }
  uint64_t allocated_bytes() const override {
    return *counter_ + needs_.workspace_bytes + 2 * needs_.rows_bytes + streaming_bytes_;
  }
  /// Without bound for a model that does not fit at all: then all of it is to be counted.
  std::optional<uint64_t> free_bytes() const override {
    const uint64_t taken = allocated_bytes();
    return taken < memory_bytes_ ? memory_bytes_ - taken : UINT64_MAX;
  }
  std::shared_ptr<Buffer> allocate(size_t size_bytes, std::string_view) override {
    return std::make_shared<CountedBuffer>(size_bytes, counter_);
  }
  std::unique_ptr<SparseRange> reserve_units(size_t n, size_t unit_bytes, std::string_view) override {
    return std::make_unique<CountedUnits>(n, unit_bytes);
  }
  size_t weight_row_bytes(DType dtype, int64_t n_columns) const override {
    return static_cast<size_t>(cuda::weight_row_bytes(dtype, n_columns));
  }
  void upload(std::byte*, const std::byte*, size_t) override {}
  void upload_weights(std::byte*, const std::byte*, DType, int64_t, int64_t) override {}
  void check_supported(const Node& node) const override { cuda::check_supported(node); }
  void reserve(std::span<const Node> nodes) override {
    const Needs more = needs_of(nodes);
    needs_ = {std::max(needs_.workspace_bytes, more.workspace_bytes), std::max(needs_.rows_bytes, more.rows_bytes)};
  }
  bool can_stream_experts() const override { return true; }
  void reserve_streaming(const MoeFfnArgs& mixture) override {
    streaming_bytes_ = std::max<uint64_t>(streaming_bytes_, expert_stream_bytes(mixture));
    const Node node{mixture};
    reserve({&node, 1});
  }
  void execute(std::span<const Node>) override { FATHOM_CHECK(false, "a step where memory is only counted"); }

 private:
  const std::string description_;
  const uint64_t memory_bytes_;
  std::shared_ptr<uint64_t> counter_ = std::make_shared<uint64_t>(0);
  Needs needs_;
  uint64_t streaming_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Backend> make_counting_backend(std::string description, uint64_t memory_bytes) {
  return std::make_unique<CountingBackend>(std::move(description), memory_bytes);
}

}  // namespace fathom::cuda
