#include "cuda/expert_stream.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "core/error.h"
#include "cuda/backend_parts.h"
#include "cuda/weight_layout.h"

namespace fathom::cuda {
namespace {

size_t rounded(size_t n_bytes) { return (n_bytes + 255) / 256 * 256; }

/// On the device; a multiple of 256.
size_t matrix_bytes(const Tensor& matrices) {
  return rounded(static_cast<size_t>(matrices.dim(1) * weight_row_bytes(matrices.dtype, matrices.dim(2))));
}

size_t expert_bytes(const MoeFfnArgs& a, ExpertSource::Half half) {
  return half == ExpertSource::Half::kDown ? matrix_bytes(a.experts.down)
                                           : matrix_bytes(a.experts.gate) + matrix_bytes(a.experts.up);
}

int64_t experts_a_part(const MoeFfnArgs& a, ExpertSource::Half half, size_t part_bytes) {
  return std::clamp<int64_t>(static_cast<int64_t>(part_bytes / expert_bytes(a, half)), 1, a.experts.gate.dim(0));
}

size_t place_bytes(const MoeFfnArgs& a, size_t part_bytes) {
  size_t most = 0;
  for (const auto half : {ExpertSource::Half::kGateUp, ExpertSource::Half::kDown})
    most = std::max(most, static_cast<size_t>(experts_a_part(a, half, part_bytes)) * expert_bytes(a, half));
  return most;
}

}  // namespace

size_t expert_stream_bytes(const MoeFfnArgs& a, size_t part_bytes) {
  return 2 * place_bytes(a, part_bytes) + kWeightStagingBytes;
}

ExpertStream::ExpertStream(Stream compute, std::shared_ptr<uint64_t> allocated, size_t part_bytes)
    : compute_(compute), allocated_(std::move(allocated)), part_bytes_(part_bytes) {
  check_runtime(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking), "making a stream");
  uploader_ = std::make_unique<Uploader>(copies_);
  staging_ = allocate_device(kWeightStagingBytes, "experts on their way", allocated_);
}

ExpertStream::~ExpertStream() {
  cudaStreamSynchronize(compute_);
  uploader_.reset();
  cudaStreamDestroy(copies_);
}

void ExpertStream::reserve(const MoeFfnArgs& a) {
  const size_t needed = place_bytes(a, part_bytes_);
  for (Place& place : places_) {
    if (place.memory && place.memory->size_bytes() >= needed) continue;
    check_runtime(cudaStreamSynchronize(compute_), "computing a step");
    place.memory.reset();
    place.memory = allocate_device(needed, "experts from the host", allocated_);
  }
}

void ExpertStream::begin(const MoeFfnArgs& a) {
  reserve(a);
  mixture_ = &a;
}

int64_t ExpertStream::n_parts(Half half) const {
  const int64_t n_experts = mixture_->experts.gate.dim(0), n_each = experts_a_part(*mixture_, half, part_bytes_);
  return (n_experts + n_each - 1) / n_each;
}

ExpertSource::Part ExpertStream::bring(Half half, int64_t part) {
  const int64_t n_each = experts_a_part(*mixture_, half, part_bytes_), first = part * n_each,
                n = std::min(n_each, mixture_->experts.gate.dim(0) - first);
  place_ ^= 1;
  places_[place_].is_free.let_wait(copies_);
  Part here{first, n, {}};
  std::byte* at = places_[place_].memory->data();
  if (half == Half::kDown) {
    bring_matrices(mixture_->experts.down, first, n, at, here.weights.down);
  } else {
    at = bring_matrices(mixture_->experts.gate, first, n, at, here.weights.gate);
    bring_matrices(mixture_->experts.up, first, n, at, here.weights.up);
  }
  is_here_.record(copies_);
  is_here_.let_wait(compute_);
  return here;
}

void ExpertStream::release() { places_[place_].is_free.record(compute_); }

/// Returns the end of what was brought.
std::byte* ExpertStream::bring_matrices(const Tensor& matrices, int64_t first, int64_t n, std::byte* to, Tensor& here) {
  const size_t bytes_each = matrix_bytes(matrices);
  here = Tensor(matrices.dtype, {n, matrices.dim(1), matrices.dim(2)}, to);
  here.strides_bytes[0] = static_cast<int64_t>(bytes_each);
  here.strides_bytes[1] = weight_row_bytes(matrices.dtype, matrices.dim(2));
  for (int64_t i = 0; i < n; ++i, to += bytes_each) {
    const Tensor matrix = matrices.slab(first + i);
    send_weights(*uploader_, staging_->data(), to, matrix.data, matrix.dtype, matrix.dim(0), matrix.dim(1));
  }
  return to;
}

}  // namespace fathom::cuda
