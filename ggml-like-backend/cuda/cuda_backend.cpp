// The graph's nodes on a device: one stream, one workspace, steps recorded as CUDA graphs and played back.
#include "cuda/cuda_backend.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/quant/codebooks.h"
#include "cuda/backend_parts.h"
#include "cuda/matmul.h"
#include "cuda/memory.h"
#include "cuda/node_groups.h"
#include "cuda/ops.h"
#include "cuda/weight_layout.h"

namespace fathom::cuda {
namespace {

constexpr size_t kAlign = 256;
constexpr size_t kStagingBytes = size_t{8} << 20;  // rows on their way into planes

size_t align_up(size_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

template <typename... Fns> struct Overload : Fns... { using Fns::operator()...; };

size_t workspace_of(const Node& node) {
  return std::visit(Overload{[](const LinearArgs& a) { return linear_workspace(a); },
                             [](const GatedFfnArgs& a) { return gated_ffn_workspace(a); },
                             [](const MoeFfnArgs& a) { return moe_ffn_workspace(a); },
                             [](const LatentAttentionArgs& a) { return latent_attention_workspace(a); },
                             [](const MultiHeadAttentionArgs& a) { return multi_head_attention_workspace(a); },
                             [](const auto&) { return size_t{0}; }},
                    node.args);
}

/// A step recorded once.
struct Recording {
  cudaGraphExec_t exec = nullptr;
  Recording() = default;
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  ~Recording() {
    if (exec != nullptr) cudaGraphExecDestroy(exec);
  }
};

class CudaBackend final : public Backend {
 public:
  CudaBackend(int device, std::string description) : device_(device), description_(std::move(description)) {
    use_device();
    check_runtime(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
    uploader_.emplace(stream_);
    upload_tables();
  }
  ~CudaBackend() override {
    cudaSetDevice(device_);
    cudaStreamSynchronize(stream_);
    recordings_.clear();
    uploader_.reset();
    cudaStreamDestroy(stream_);
  }

  std::string_view name() const override { return "cuda"; }
  std::string describe() const override { return description_ + ", device " + std::to_string(device_); }
  bool shares_host_memory() const override { return false; }
  int fused_nodes() const override { return kMostGrouped; }
  size_t nodes_at_once() const override { return 32; }
  uint64_t allocated_bytes() const override { return *allocated_; }
  std::optional<uint64_t> free_bytes() const override {
    use_device();
    size_t free_bytes = 0, total_bytes = 0;
    check_runtime(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for free memory");
    return free_bytes;
  }

  std::shared_ptr<Buffer> allocate(size_t size_bytes, std::string_view what) override {
    use_device();
    return allocate_device(size_bytes, what, allocated_);
  }
  std::shared_ptr<Buffer> allocate_staging(size_t size_bytes, std::string_view what) override {
    use_device();
    return allocate_pinned(size_bytes, what);
  }

  void upload(std::byte* to, const std::byte* from_host, size_t size_bytes) override {
    use_device();
    uploader_->send(to, from_host, size_bytes);
  }
  void download(std::byte* to_host, const std::byte* from, size_t size_bytes) override {
    use_device();
    check_runtime(cudaMemcpyAsync(to_host, from, size_bytes, cudaMemcpyDeviceToHost, stream_),
                  "copying from the device");
    finish();
  }
  void copy(std::byte* to, const std::byte* from, size_t size_bytes) override {
    use_device();
    check_runtime(cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyDeviceToDevice, stream_), "copying on the device");
  }
  void finish() override {
    use_device();
    check_runtime(cudaStreamSynchronize(stream_), "computing a step");
  }

  size_t weight_row_bytes(DType dtype, int64_t n_columns) const override {
    return static_cast<size_t>(cuda::weight_row_bytes(dtype, n_columns));
  }
  void upload_weights(std::byte* to, const std::byte* from_host, DType dtype, int64_t n_rows,
                      int64_t n_columns) override;

  void check_supported(const Node& node) const override;
  void reserve(std::span<const Node> nodes) override;
  void execute(std::span<const Node> nodes) override {
    use_device();
    reserve(nodes);
    run(nodes);
  }
  void replay(uint64_t key, std::span<const Node> nodes) override;
  void forget_replays() override { recordings_.clear(); }

 private:
  /// The runtime's current device is a thread's own, and any thread may call.
  void use_device() const { check_runtime(cudaSetDevice(device_), "choosing the device"); }
  void upload_tables();
  void record(Recording& recording, std::span<const Node> nodes);
  void run(std::span<const Node> nodes);

  const int device_;
  const std::string description_;
  cudaStream_t stream_ = nullptr;
  std::shared_ptr<uint64_t> allocated_ = std::make_shared<uint64_t>(0);
  std::optional<Uploader> uploader_;
  std::shared_ptr<Buffer> tables_;     ///< codebooks, grids of the matrix kernels, counters
  std::shared_ptr<Buffer> staging_;    ///< kStagingBytes; while weights are loaded
  std::shared_ptr<Buffer> workspace_;  ///< of the kernels
  std::shared_ptr<Buffer> rows_;       ///< the last norm's or attention's result in int8
  Codebooks books_{};
  MatmulContext matmul_{};
  std::map<uint64_t, Recording> recordings_;
};

void CudaBackend::upload_tables() {
  size_t total = 0;
  auto room = [&](size_t size_bytes) { return std::exchange(total, total + align_up(size_bytes)); };
  const struct {
    const void* from;
    size_t size_bytes;
    const void** to;
  } books[] = {{kIQ2XXSGrid, sizeof(kIQ2XXSGrid), reinterpret_cast<const void**>(&books_.iq2_xxs)},
               {kIQ2XSGrid, sizeof(kIQ2XSGrid), reinterpret_cast<const void**>(&books_.iq2_xs)},
               {kIQ2SGrid, sizeof(kIQ2SGrid), reinterpret_cast<const void**>(&books_.iq2_s)},
               {kIQ3XXSGrid, sizeof(kIQ3XXSGrid), reinterpret_cast<const void**>(&books_.iq3_xxs)},
               {kIQ3SGrid, sizeof(kIQ3SGrid), reinterpret_cast<const void**>(&books_.iq3_s)},
               {kIQ1SGrid, sizeof(kIQ1SGrid), reinterpret_cast<const void**>(&books_.iq1)}};
  std::vector<size_t> offsets;
  for (const auto& book : books) offsets.push_back(room(book.size_bytes));
  const size_t grids = room(grid_tables_bytes()), counters = room(kMatmulCounters * sizeof(int32_t));
  tables_ = allocate(total, "tables");
  std::vector<std::byte> host(total, std::byte{0});
  for (size_t i = 0; i < std::size(books); ++i) {
    std::memcpy(host.data() + offsets[i], books[i].from, books[i].size_bytes);
    *books[i].to = tables_->data() + offsets[i];
  }
  write_grid_tables(host.data() + grids);
  upload(tables_->data(), host.data(), total);
  matmul_.stream = stream_;
  matmul_.grids = tables_->data() + grids;
  matmul_.counters = reinterpret_cast<int32_t*>(tables_->data() + counters);
}

void CudaBackend::upload_weights(std::byte* to, const std::byte* from_host, DType dtype, int64_t n_rows,
                                 int64_t n_columns) {
  if (!staging_) staging_ = allocate(kStagingBytes, "weights on their way");
  const size_t file_row = row_bytes(dtype, n_columns), device_row = weight_row_bytes(dtype, n_columns);
  FATHOM_CHECK(file_row > 0 && file_row <= kStagingBytes, "a weight row of more than 8 MiB");
  const auto rows_each = static_cast<int64_t>(kStagingBytes / file_row);
  for (int64_t row = 0; row < n_rows; row += rows_each) {
    const int64_t n = std::min(rows_each, n_rows - row);
    upload(staging_->data(), from_host + static_cast<size_t>(row) * file_row, static_cast<size_t>(n) * file_row);
    arrange_weights(dtype, staging_->data(), n, n_columns, to + static_cast<size_t>(row) * device_row, stream_);
  }
}

void CudaBackend::check_supported(const Node& node) const {
  auto refuse = [&](const std::string& why) {
    throw Error(ErrorCode::kModel, "cuda backend: operation " + std::string(op_name(node)) + " has no kernel for " +
                                       why + "; try --backend cpu");
  };
  std::visit(
      Overload{[](const LinearArgs& a) { check_weights(a); },
               [&](const GatedFfnArgs& a) {
                 check_weights(a);
                 if (a.clamp != kNoClamp) refuse("limited hidden values");
               },
               [&](const MoeFfnArgs& a) {
                 check_weights(a);
                 if (a.clamp != kNoClamp || a.shared_clamp != kNoClamp) refuse("limited hidden values");
               },
               [&](const EmbedRowsArgs& a) {
                 if (!supports_weights(a.table.dtype))
                   refuse("weights of type " + std::string(dtype_name(a.table.dtype)));
                 if (a.copies != 1) refuse("several residual streams");
               },
               [&](const LatentAttentionArgs& a) {
                 if (a.chosen) refuse("chosen rows");
                 if (a.latent_dim() > kMostLatent)
                   refuse("latents of " + std::to_string(a.latent_dim()) + " values, at most " +
                          std::to_string(kMostLatent));
                 if (attention_shared_bytes(a) > kMostShared)
                   refuse("queries of " + std::to_string(a.cache.dim(2)) + " values");
               },
               [&](const MultiHeadAttentionArgs& a) {
                 if (a.q.dim(2) > kMostHead)
                   refuse("heads of " + std::to_string(a.q.dim(2)) + " values, at most " + std::to_string(kMostHead));
               },
               [&](const RmsNormArgs& a) {
                 if (!a.weight) refuse("a norm without weights");
               },
               [&](const RotateHeadsArgs& a) {
                 if (a.inverse) refuse("the inverse rotation");
               },
               [&](const StoreLatentArgs& a) {
                 if (a.norm_weight.dim(0) == a.kv_a.dim(1)) refuse("rows that are key and value at once");
               },
               [&](const GroupedLinearArgs&) { refuse("groups"); },
               [&](const CollapseStreamsArgs&) { refuse("several residual streams"); },
               [&](const ExpandStreamsArgs&) { refuse("several residual streams"); },
               [&](const CompressRowsArgs&) { refuse("compressed rows"); },
               [&](const CompressedAttentionArgs&) { refuse("compressed rows"); },
               [&](const RouteExpertsArgs& a) {
                 if (a.table) refuse("experts that the token's id chooses");
                 if (a.logits.dim(1) > kMostExperts)
                   refuse(std::to_string(a.logits.dim(1)) + " experts, at most " + std::to_string(kMostExperts));
               },
               [&](const LayerNormArgs&) { refuse("the indexer of sparse attention"); },
               [&](const StoreRowsArgs&) { refuse("the indexer of sparse attention"); },
               [&](const IndexRowsArgs&) { refuse("the indexer of sparse attention"); }, [](const auto&) {}},
      node.args);
}

void CudaBackend::reserve(std::span<const Node> nodes) {
  staging_.reset();
  size_t needed = 0, rows = 0;
  for (const Node& node : nodes) {
    needed = std::max(needed, workspace_of(node));
    if (const auto* a = std::get_if<RmsNormArgs>(&node.args))
      rows = std::max(rows, quantized_rows_bytes(a->out.dim(0), a->out.dim(1)));
    if (const auto* a = std::get_if<LatentAttentionArgs>(&node.args))
      rows = std::max(rows, quantized_rows_bytes(a->out.dim(0), a->out.dim(1)));
  }
  auto grow = [&](std::shared_ptr<Buffer>& buffer, size_t size_bytes, const char* what) {
    if (buffer && buffer->size_bytes() >= size_bytes) return;
    recordings_.clear();  // their kernels write to the old memory
    finish();
    buffer.reset();
    buffer = allocate(size_bytes, what);
  };
  grow(workspace_, needed, "workspace of the CUDA kernels");
  grow(rows_, rows, "quantized activations");
  matmul_.workspace = workspace_->data();
}

void CudaBackend::replay(uint64_t key, std::span<const Node> nodes) {
  use_device();
  auto found = recordings_.find(key);
  if (found == recordings_.end()) {
    reserve(nodes);  // first: it may forget recordings
    found = recordings_.try_emplace(key).first;
    try {
      record(found->second, nodes);
    } catch (...) {
      recordings_.erase(found);
      throw;
    }
  }
  check_runtime(cudaGraphLaunch(found->second.exec, stream_), "starting a step");
}

void CudaBackend::record(Recording& recording, std::span<const Node> nodes) {
  check_runtime(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "recording a step");
  cudaGraph_t graph = nullptr;
  try {
    run(nodes);
  } catch (...) {
    cudaStreamEndCapture(stream_, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  check_runtime(cudaStreamEndCapture(stream_, &graph), "recording a step");
  const cudaError_t error = cudaGraphInstantiate(&recording.exec, graph, 0);
  cudaGraphDestroy(graph);
  check_runtime(error, "recording a step");
}

void CudaBackend::run(std::span<const Node> nodes) {
  const OpContext c{stream_, workspace_->data(), books_};
  QuantizedRows rows;  // in rows_: `rows_of` in int8, as long as that holds the same
  Tensor rows_of;
  auto options = [&](const Tensor& x, const Tensor& add) {
    MatmulOptions o;
    if (rows_of && rows_of.data == x.data && rows_of.shape == x.shape) o.quantized_x = rows;
    o.add = add;
    return o;
  };
  for (size_t i = 0; i < nodes.size();) {
    const NodeGroup group = next_group(nodes, i);
    const Tensor wanted = wanted_quantized(nodes, i);
    const QuantizedRows wanted_rows =
        wanted ? quantized_rows_at(rows_->data(), wanted.dim(0), wanted.dim(1)) : QuantizedRows{};
    std::visit(Overload{
                   [&](const RmsNormArgs& a) { wanted ? rms_norm_quantized(a, wanted_rows, c) : rms_norm(a, c); },
                   [&](const LinearArgs& a) {
                     if (group.kind == NodeGroup::kProductsOfOne) {
                       std::array<LinearArgs, kMaxProducts> products;
                       for (size_t k = 0; k < group.n_nodes; ++k) products[k] = std::get<LinearArgs>(nodes[i + k].args);
                       linear_group(products.data(), static_cast<int>(group.n_nodes), matmul_,
                                    options(a.x, {}).quantized_x);
                     } else {
                       LinearArgs with_sum = a;
                       if (group.kind == NodeGroup::kWithSum) with_sum.out = group.sum;
                       linear(with_sum, matmul_, options(a.x, group.add));
                     }
                   },
                   [&](const GatedFfnArgs& a) {
                     GatedFfnArgs with_sum = a;
                     if (group.kind == NodeGroup::kWithSum) with_sum.out = group.sum;
                     gated_ffn(with_sum, matmul_, options(a.x, group.add));
                   },
                   [&](const MoeFfnArgs& a) {
                     MoeFfnArgs with_sum = a;
                     if (group.kind == NodeGroup::kWithSum) with_sum.out = group.sum;
                     moe_ffn(with_sum, matmul_, options(a.x, group.add));
                   },
                   [&](const StoreLatentArgs& a) {
                     if (group.kind == NodeGroup::kStoreAndRotate) {
                       store_and_rotate(a, std::get<RotateHeadsArgs>(nodes[i + 1].args), c);
                     } else {
                       store_latent(a, c);
                     }
                   },
                   [&](const EmbedRowsArgs& a) { embed_rows(a, matmul_); },
                   [&](const TakeRowsArgs& a) { take_rows(a, c); },
                   [&](const ConcatRowsArgs& a) { concat_rows(a, c); },
                   [&](const AddArgs& a) { add(a, c); },
                   [&](const RopeTableArgs& a) { rope_table(a, c); },
                   [&](const RotateHeadsArgs& a) { rotate_heads(a, c); },
                   [&](const StoreKeyValueArgs& a) { store_key_value(a, c); },
                   [&](const RouteExpertsArgs& a) { route_experts(a, c); },
                   [&](const LatentAttentionArgs& a) { latent_attention(a, wanted_rows, c); },
                   [&](const MultiHeadAttentionArgs& a) { multi_head_attention(a, c); },
                   [](const auto&) { FATHOM_CHECK(false, "an operation that check_supported() refuses"); },
               },
               nodes[i].args);
    for (size_t k = i; k < i + group.n_nodes; ++k) {
      if (rows_of && writes_over(nodes[k], rows_of)) rows_of = {};
    }
    if (wanted) rows_of = wanted, rows = wanted_rows;
    i += group.n_nodes;
  }
}

}  // namespace

void check_runtime(int error, const char* doing) {
  if (error == cudaSuccess) return;
  throw Error(ErrorCode::kDevice, std::string("cuda: ") + doing + " failed: " +
                                      cudaGetErrorString(static_cast<cudaError_t>(error)) + "; try fathom doctor");
}

std::unique_ptr<Backend> make_backend(int device, std::string description) {
  return std::make_unique<CudaBackend>(device, std::move(description));
}

}  // namespace fathom::cuda
