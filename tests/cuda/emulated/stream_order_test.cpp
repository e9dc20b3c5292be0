// What no device can be made to show: that results do not depend on when each stream runs what it was given.
#include <doctest/doctest.h>

#include "cuda/streamed_experts.h"
#include "emulator/runtime.h"

using namespace fathom;
using namespace fathom::test;
using emulator::StreamOrder;

namespace {

struct InOrder {
  explicit InOrder(StreamOrder order) { emulator::set_stream_order(order); }
  ~InOrder() { emulator::set_stream_order(StreamOrder::kAtOnce); }
};

constexpr StreamOrder kOrders[] = {StreamOrder::kLate, StreamOrder::kFirstLate, StreamOrder::kOthersLate};

}  // namespace

TEST_CASE("a stream sees what another one did only if it waits for it") {
  for (const StreamOrder order : kOrders) {
    const InOrder in_order(order);
    const TestStream first, second;
    const DeviceArray<int32_t> value(std::vector<int32_t>{0});
    const auto add = [&](cuda::Stream stream, int32_t n) {
      emulator::submit(stream, [&value, n] { *value.data() = 10 * *value.data() + n; });
    };
    cuda::Event done;
    add(first, 1);
    done.record(first);
    add(second, 2);
    done.let_wait(second);
    add(second, 3);
    cuda_ok(cudaStreamSynchronize(second));
    // 2 may come before or after 1, 3 comes last.
    CHECK(value.download()[0] == (order == StreamOrder::kOthersLate ? 123 : 213));
  }
}

TEST_CASE("experts pass through the device safely however late copies or kernels run") {
  for (const StreamOrder order : kOrders) {
    CAPTURE(static_cast<int>(order));
    StreamedExperts mixture(DType::kQ4_K, 40, 11);
    const std::vector<float> want = mixture.on_device();
    const InOrder in_order(order);
    const TestStream stream;
    CHECK(mixture.streamed(mixture.expert_bytes(), stream) == want);
  }
}
