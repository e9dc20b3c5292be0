// Experts of a mixture from host memory through two places on the device: while kernels read one part, the next one is
// on its way on a stream of its own.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/node.h"
#include "cuda/matmul.h"
#include "cuda/memory.h"

namespace fathom::cuda {

/// Of a part, if an expert is not larger: 1 to 3 ms of a PCIe link, against which starting kernels takes no time.
constexpr size_t kExpertPartBytes = size_t{64} << 20;

/// Device memory that the experts of such a mixture pass through.
size_t expert_stream_bytes(const MoeFfnArgs& a, size_t part_bytes = kExpertPartBytes);

class ExpertStream final : public ExpertSource {
 public:
  /// Kernels run on `compute`. `allocated` counts the device's memory. Throws Error{kDevice}, Error{kNoMemory}.
  ExpertStream(Stream compute, std::shared_ptr<uint64_t> allocated, size_t part_bytes = kExpertPartBytes);
  ~ExpertStream() override;

  /// Takes the memory for such a mixture. Throws Error{kNoMemory}.
  void reserve(const MoeFfnArgs& a);
  /// From now on parts are of this mixture, whose experts' matrices lie in host memory as a file holds them.
  void begin(const MoeFfnArgs& a);

  int64_t n_parts(Half half) const override;
  Part bring(Half half, int64_t part) override;
  void release() override;

 private:
  struct Place {
    std::shared_ptr<Buffer> memory;
    Event is_free;  ///< kernels have read what was there
  };

  std::byte* bring_matrices(const Tensor& matrices, int64_t first, int64_t n, std::byte* to, Tensor& here);

  const Stream compute_;
  const std::shared_ptr<uint64_t> allocated_;
  const size_t part_bytes_;
  Stream copies_ = nullptr;
  std::unique_ptr<Uploader> uploader_;
  std::shared_ptr<Buffer> staging_;
  std::array<Place, 2> places_;
  size_t place_ = 0;
  Event is_here_;  ///< the last part was brought
  const MoeFfnArgs* mixture_ = nullptr;
};

}  // namespace fathom::cuda
