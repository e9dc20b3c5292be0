// A mixture whose experts lie on the device, or pass through it from host memory.
#pragma once

#include <memory>
#include <vector>

#include "cuda/expert_stream.h"
#include "cuda/matmul_fixture.h"

namespace fathom::test {

struct StreamedExperts {
  static constexpr int64_t kExperts = 7, kUsed = 3, kHidden = 256, kWidth = 256;

  StreamedExperts(DType type, int64_t n_tokens, uint32_t seed)
      : rng(seed),
        shape{n_tokens, kHidden},
        routes{n_tokens, kUsed},
        gate(type, kExperts, kWidth, kHidden, rng),
        up(type, kExperts, kWidth, kHidden, rng),
        down(type, kExperts, kHidden, kWidth, rng),
        shared_gate(type, 1, kWidth, kHidden, rng),
        shared_up(type, 1, kWidth, kHidden, rng),
        shared_down(type, 1, kHidden, kWidth, rng),
        x(random_floats(static_cast<size_t>(n_tokens * kHidden), rng)),
        weights(random_floats(static_cast<size_t>(n_tokens * kUsed), rng)),
        ids(random_ids(static_cast<size_t>(n_tokens * kUsed))),
        out(static_cast<size_t>(n_tokens * kHidden)) {}

  /// Bytes of an expert's gate and up in a part.
  size_t expert_bytes() const { return 2 * static_cast<size_t>(kWidth * cuda::weight_row_bytes(gate.type, kHidden)); }
  std::vector<float> on_device() {
    MoeFfnArgs args = arguments();
    args.experts = {gate.tensor(), up.tensor(), down.tensor()};
    const TestContext context(cuda::moe_ffn_workspace(args));
    cuda::moe_ffn(args, context.context());
    return out.download();
  }
  /// Twice in a row, so that places are used again by another mixture.
  std::vector<float> streamed(size_t part_bytes, cuda::Stream stream) {
    MoeFfnArgs args = arguments();
    args.experts = {in_file(gate), in_file(up), in_file(down)};
    const TestContext context(cuda::moe_ffn_workspace(args));
    cuda_ok(cudaDeviceSynchronize());  // the stream does not wait for the default one, which fills arrays
    {
      cuda::ExpertStream source(stream, allocated, part_bytes);
      source.reserve(args);
      CHECK(*allocated == cuda::expert_stream_bytes(args, part_bytes));
      cuda::MatmulOptions options;
      options.source = &source;
      for (int i = 0; i < 2; ++i) {
        source.begin(args);
        cuda::moe_ffn(args, context.context(stream), options);
      }
    }
    CHECK(*allocated == 0);
    context.check();
    return out.download();
  }

 private:
  static Tensor in_file(const TestWeights& w) {
    return Tensor(w.type, {w.n_matrices, w.rows, w.k}, const_cast<std::byte*>(w.file.data()));
  }
  std::vector<int32_t> random_ids(size_t n) {
    std::vector<int32_t> chosen(n);
    for (int32_t& id : chosen) {  // expert 1 gets no token
      id = static_cast<int32_t>(rng() % static_cast<unsigned>(kExperts));
      if (id == 1) id = 0;
    }
    return chosen;
  }
  MoeFfnArgs arguments() const {
    return {x.tensor(DType::kF32, shape),
            ids.tensor(DType::kI32, routes),
            weights.tensor(DType::kF32, routes),
            {},
            {shared_gate.tensor(), shared_up.tensor(), shared_down.tensor()},
            out.tensor(DType::kF32, shape)};
  }

  std::mt19937 rng;
  const Shape shape, routes;
  const TestWeights gate, up, down, shared_gate, shared_up, shared_down;
  const DeviceArray<float> x, weights;
  const DeviceArray<int32_t> ids;
  const DeviceArray<float> out;
  const std::shared_ptr<uint64_t> allocated = std::make_shared<uint64_t>(0);
};

/// A stream like the backend's.
class TestStream {
 public:
  TestStream() { cuda_ok(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~TestStream() { cudaStreamDestroy(stream_); }
  TestStream(const TestStream&) = delete;
  TestStream& operator=(const TestStream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace fathom::test
