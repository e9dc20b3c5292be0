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
#include "cuda/expert_stream.h"
#include "cuda/matmul.h"
#include "cuda/memory.h"
#include "cuda/needs.h"
#include "cuda/node_groups.h"
#include "cuda/ops.h"
#include "cuda/weight_layout.h"

namespace fathom::cuda {
namespace {

constexpr size_t kAlign = 256;

size_t align_up(size_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

template <typename... Fns> struct Overload : Fns... { using Fns::operator()...; };

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
    expert_stream_.reset();
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

  std::unique_ptr<SparseRange> reserve_units(size_t n, size_t unit_bytes, std::string_view what) override {
    use_device();
    return make_units(device_, n, unit_bytes, what, stream_, allocated_);
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

  void check_supported(const Node& node) const override { cuda::check_supported(node); }
  void reserve(std::span<const Node> nodes) override;
  void execute(std::span<const Node> nodes) override {
    use_device();
    reserve(nodes);
    run(nodes);
  }
  void replay(uint64_t key, std::span<const Node> nodes) override;
  void forget_replays() override { recordings_.clear(); }

  bool can_stream_experts() const override { return true; }
  void reserve_streaming(const MoeFfnArgs& mixture) override;
  void execute_streaming(const MoeFfnArgs& mixture) override;

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
  std::shared_ptr<Buffer> tables_;               ///< codebooks, grids of the matrix kernels, counters
  std::shared_ptr<Buffer> staging_;              ///< kWeightStagingBytes; while weights are loaded
  std::optional<ExpertStream> expert_stream_;    ///< once it was reserved
  std::shared_ptr<Buffer> workspace_;            ///< of the kernels
  std::array<std::shared_ptr<Buffer>, 2> rows_;  ///< the last norms' or attentions' results in int8, in turn
  Codebooks books_{};
  int32_t* index_counts_ = nullptr;
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
  const size_t grids = room(grid_tables_bytes()), counters = room(kMatmulCounters * sizeof(int32_t)),
               index_counts = room(kIndexCountBytes);
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
  index_counts_ = reinterpret_cast<int32_t*>(tables_->data() + index_counts);
}

void CudaBackend::upload_weights(std::byte* to, const std::byte* from_host, DType dtype, int64_t n_rows,
                                 int64_t n_columns) {
  use_device();
  if (!staging_) staging_ = allocate(kWeightStagingBytes, "weights on their way");
  send_weights(*uploader_, staging_->data(), to, from_host, dtype, n_rows, n_columns);
}

void CudaBackend::reserve_streaming(const MoeFfnArgs& mixture) {
  use_device();
  if (!expert_stream_) expert_stream_.emplace(stream_, allocated_);
  expert_stream_->reserve(mixture);
  const Node node{mixture};
  reserve({&node, 1});
}

void CudaBackend::execute_streaming(const MoeFfnArgs& mixture) {
  reserve_streaming(mixture);
  expert_stream_->begin(mixture);
  MatmulOptions options;
  options.source = &*expert_stream_;
  moe_ffn(mixture, matmul_, options);
}

void CudaBackend::reserve(std::span<const Node> nodes) {
  staging_.reset();
  const Needs needs = needs_of(nodes);
  auto grow = [&](std::shared_ptr<Buffer>& buffer, size_t size_bytes, const char* what) {
    if (buffer && buffer->size_bytes() >= size_bytes) return;
    recordings_.clear();  // their kernels write to the old memory
    finish();
    buffer.reset();
    buffer = allocate(size_bytes, what);
  };
  grow(workspace_, needs.workspace_bytes, "workspace of the CUDA kernels");
  for (std::shared_ptr<Buffer>& buffer : rows_) grow(buffer, needs.rows_bytes, "quantized activations");
  matmul_.workspace = workspace_->data();
}

void CudaBackend::replay(uint64_t key, std::span<const Node> nodes) {
  use_device();
  auto found = recordings_.find(key);
  if (found == recordings_.end()) {
    reserve(nodes);  // first: it may forget recordings
    // The first time it just runs: kernels are loaded when they first start, which a recording does not allow.
    run(nodes);
    found = recordings_.try_emplace(key).first;
    try {
      record(found->second, nodes);
    } catch (...) {
      recordings_.erase(found);
      throw;
    }
    return;
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
  const OpContext c{stream_, workspace_->data(), books_, index_counts_};
  QuantizedRows rows;  // `rows_of` in int8, as long as that holds the same
  Tensor rows_of;
  size_t next_rows = 0;  // where the next such rows go: what is being read may still be read while they are written
  bool has_groups = false;
  for (size_t i = 0; i < nodes.size();) {
    const NodeGroup group = next_group(nodes, i);
    const size_t last = i + group.n_nodes - 1;
    // Of a group the last node alone may have such a result.
    const Tensor wanted = wanted_quantized(nodes, last);
    const QuantizedRows wanted_rows =
        wanted ? quantized_rows_at(rows_[next_rows]->data(), wanted.dim(0), wanted.dim(1)) : QuantizedRows{};
    auto options = [&](const Tensor& x) {
      MatmulOptions o;
      if (rows_of && rows_of.data == x.data && rows_of.shape == x.shape) o.quantized_x = rows;
      o.add = group.add;
      if (group.last == NodeGroup::kNorm) {
        const auto& norm = std::get<RmsNormArgs>(nodes[last].args);
        o.norm = {norm.weight.as<const float>(), norm.out.as<float>(), norm.eps, wanted_rows};
      }
      if (group.last == NodeGroup::kCollapse) {
        const auto& norm = std::get<RmsNormArgs>(nodes[last].args);
        o.collapse = collapse_by_result(std::get<CollapseStreamsArgs>(nodes[last - 1].args));
        o.collapse.norm = {norm.weight.as<const float>(), norm.out.as<float>(), norm.eps, wanted_rows};
      }
      if (group.kind == NodeGroup::kWithExpansion)
        o.expand = expand_result(std::get<ExpandStreamsArgs>(nodes[last].args));
      if (group.last == NodeGroup::kRoute) o.route = route_by_result(std::get<RouteExpertsArgs>(nodes[last].args));
      return o;
    };
    // Results of kWithSum go where the sum was to be.
    auto summed = [&](auto args) {
      if (group.kind == NodeGroup::kWithSum) args.out = group.sum;
      return args;
    };
    auto beside = [&] { side_by_side(nodes.subspan(i, group.n_nodes), c); };
    std::visit(Overload{
                   [&](const RmsNormArgs& a) {
                     group.kind == NodeGroup::kSideBySide ? beside() : rms_norm_quantized(a, wanted_rows, c);
                   },
                   [&](const GroupedLinearArgs& a) { grouped_linear(a, matmul_, options(a.x)); },
                   [&](const CollapseStreamsArgs& a) {
                     NormOfResult norm;
                     if (group.kind == NodeGroup::kCollapseAndNorm) {
                       const auto& n = std::get<RmsNormArgs>(nodes[last].args);
                       norm = {n.weight.as<const float>(), n.out.as<float>(), n.eps, wanted_rows};
                     }
                     collapse_streams(a, norm, c);
                   },
                   [&](const ExpandStreamsArgs& a) { expand_streams(a, c); },
                   [&](const CompressRowsArgs&) { beside(); },
                   [&](const RotateHeadsArgs&) { beside(); },
                   [&](const CompressedAttentionArgs& a) {
                     group.kind == NodeGroup::kAttendAndRotate
                         ? attend_and_rotate(a, std::get<RotateHeadsArgs>(nodes[last].args), wanted_rows, c)
                         : compressed_attention(a, c);
                   },
                   [&](const LinearArgs& a) {
                     if (group.kind == NodeGroup::kProductsOfOne) {
                       std::array<LinearArgs, kMaxProducts> products;
                       for (size_t k = 0; k < group.n_products; ++k)
                         products[k] = std::get<LinearArgs>(nodes[i + k].args);
                       linear_group(products.data(), static_cast<int>(group.n_products), matmul_, options(a.x),
                                    static_cast<int>(group.finished));
                     } else {
                       linear(summed(a), matmul_, options(a.x));
                     }
                   },
                   [&](const GatedFfnArgs& a) { gated_ffn(summed(a), matmul_, options(a.x)); },
                   [&](const MoeFfnArgs& a) {
                     MatmulOptions o = options(a.x);
                     o.has_groups = std::exchange(has_groups, false);
                     moe_ffn(summed(a), matmul_, o);
                   },
                   [&](const StoreLatentArgs& a) {
                     if (group.kind != NodeGroup::kStoreRotateAndAttend) return beside();
                     store_rotate_and_attend(a, std::get<RotateHeadsArgs>(nodes[i + 1].args),
                                             std::get<LatentAttentionArgs>(nodes[last].args), wanted_rows, c);
                   },
                   [&](const RouteExpertsArgs& a) {
                     const auto* next = i + 1 < nodes.size() ? std::get_if<MoeFfnArgs>(&nodes[i + 1].args) : nullptr;
                     has_groups = next != nullptr && next->expert_ids.data == a.ids.data && routes_are_few(*next);
                     has_groups ? route_and_group(a, *next, matmul_) : route_experts(a, c);
                   },
                   [&](const EmbedRowsArgs& a) { embed_rows(a, matmul_); },
                   [&](const TakeRowsArgs& a) { take_rows(a, c); },
                   [&](const ConcatRowsArgs& a) { concat_rows(a, c); },
                   [&](const AddArgs& a) { add(a, c); },
                   [&](const RopeTableArgs& a) { rope_table(a, c); },
                   [&](const LayerNormArgs& a) { group.kind == NodeGroup::kSideBySide ? beside() : layer_norm(a, c); },
                   [&](const StoreRowsArgs& a) { store_rows(a, c); },
                   [&](const IndexRowsArgs& a) { index_rows(a, c); },
                   [&](const StoreKeyValueArgs& a) { store_key_value(a, c); },
                   [&](const LatentAttentionArgs& a) { latent_attention(a, wanted_rows, c); },
                   [&](const MultiHeadAttentionArgs& a) { multi_head_attention(a, c); },
               },
               nodes[i].args);
    for (size_t k = i; k <= last; ++k) {
      if (rows_of && writes_over(nodes[k], rows_of)) rows_of = {};
    }
    if (wanted) rows_of = wanted, rows = wanted_rows, next_rows ^= 1;
    i = last + 1;
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
