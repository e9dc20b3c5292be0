// The emulator itself: that kernels get CUDA's meaning, and that what CUDA leaves undefined is reported.
#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "cuda/device.h"

using namespace fathom;
using namespace fathom::cuda;

namespace {

FATHOM_KERNEL(256, 1) index_kernel(int* out) {
  const unsigned block = blockIdx.x + gridDim.x * blockIdx.y;
  out[block * blockDim.x * blockDim.y + threadIdx.y * blockDim.x + threadIdx.x] =
      static_cast<int>(1000 * blockIdx.y + 100 * blockIdx.x + 10 * threadIdx.y + threadIdx.x);
}

FATHOM_KERNEL(256, 1) reverse_kernel(const int* in, int* out, bool with_barrier) {
  FATHOM_SHARED(int, values, 64);
  const int i = static_cast<int>(threadIdx.x);
  values[i] = in[i];
  if (with_barrier) __syncthreads();
  out[i] = values[63 - i];
}

FATHOM_KERNEL(256, 1) warp_kernel(int* out) {
  const int i = static_cast<int>(threadIdx.x);
  int sum = i;
  for (int bits = 16; bits > 0; bits >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
  out[4 * i] = sum;
  out[4 * i + 1] = static_cast<int>(__ballot_sync(0xffffffffu, i % 3 == 0));
  out[4 * i + 2] = __shfl_down_sync(0xffffffffu, i, 4, 8);
  const unsigned mine = i % 2 == 0 ? 0x55555555u : 0xaaaaaaaau;
  out[4 * i + 3] = i % 2 == 0 ? __reduce_max_sync(mine, i) : __reduce_add_sync(mine, 1);
}

enum class Offence {
  kDivergentBarrier,
  kEarlyEnd,
  kTwoBarriers,
  kNotInMask,
  kMissingLane,
  kOverrun,
  kDynamicOverrun,
  kLostCopy
};

FATHOM_KERNEL(256, 1) offending_kernel(Offence offence) {
  FATHOM_SHARED(int, values, 32);
  FATHOM_DYNAMIC_SHARED(dynamic);
  const unsigned i = threadIdx.x;
  switch (offence) {
    case Offence::kDivergentBarrier:
      if (i < 32) __syncthreads();
      break;
    case Offence::kEarlyEnd:
      if (i == 3) return;
      __syncthreads();
      break;
    case Offence::kTwoBarriers:
      if (i < 5) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case Offence::kNotInMask: __syncwarp(1u); break;
    case Offence::kMissingLane:
      if (i % 32 != 7) __syncwarp();
      break;
    case Offence::kOverrun: (&values[0])[i == 0 ? 32 : 0] = 1; break;
    case Offence::kDynamicOverrun: dynamic[i == 0 ? 16 : 0] = 1; break;
    case Offence::kLostCopy: cp_async_16(values, &gridDim, false); break;
  }
}

std::string offence_message(Offence offence) {
  try {
    launch(offending_kernel, 1, 64, 16, nullptr, offence);
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kDevice);
    return e.what();
  }
  return "";
}

FATHOM_KERNEL(32, 1) copy_kernel(const float* in, float* out, float* early) {
  FATHOM_SHARED(float, values, 8);
  const int i = static_cast<int>(threadIdx.x);
  if (i < 2) {
    cp_async_16(values + 4 * i, in + 4 * i, i == 0);
    cp_async_commit();
    early[i] = values[4 * i];
    cp_async_wait<0>();
  }
  __syncwarp();
  if (i < 8) out[i] = values[i];
}

/// c[16, 8] = a[16, K] b[K, 8] from row-major memory, fragments loaded as the PTX manual draws them.
FATHOM_KERNEL(32, 1) s8_kernel(const int8_t* a, const int8_t* b, int* c, bool deep) {
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  int sum[4] = {0, 0, 0, 0};
  const int k = deep ? 32 : 16;
  auto word = [&](const int8_t* m, int row, int column, int row_step, int column_step) {
    uint32_t w = 0;
    for (int i = 0; i < 4; ++i)
      w |= static_cast<uint32_t>(static_cast<uint8_t>(m[row * row_step + (column + i) * column_step])) << (8 * i);
    return w;
  };
  if (deep) {
    uint32_t fa[4], fb[2];
    for (int i = 0; i < 4; ++i) fa[i] = word(a, g + 8 * (i % 2), 4 * t + 16 * (i / 2), k, 1);
    for (int i = 0; i < 2; ++i) fb[i] = word(b, g, 4 * t + 16 * i, 1, 8);
    mma_s8_16x8x32(sum, fa, fb);
  } else {
    uint32_t fa[2];
    for (int i = 0; i < 2; ++i) fa[i] = word(a, g + 8 * i, 4 * t, k, 1);
    mma_s8_16x8x16(sum, fa, word(b, g, 4 * t, 1, 8));
  }
  for (int i = 0; i < 4; ++i) c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = sum[i];
}

/// c[16, 8] = a[16, 16] b[16, 8]: a by ldmatrix from row-major memory, b by the transposing one.
FATHOM_KERNEL(32, 1) bf16_kernel(const uint16_t* a, const uint16_t* b, float* c) {
  FATHOM_SHARED(uint16_t, sa, 256);
  FATHOM_SHARED(uint16_t, sb, 256);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) {
    sa[i] = a[i];
    sb[i] = i % 16 < 8 ? b[i / 16 * 8 + i % 16] : 0;
  }
  __syncwarp();
  uint32_t fa[4], fb[4];
  ldmatrix_x4(fa, sa + lane % 16 * 16 + lane / 16 * 8);
  ldmatrix_x4_transposed(fb, sb + lane % 16 * 16 + lane / 16 * 8);
  float sum[4] = {0, 0, 0, 0};
  const uint32_t first[2] = {fb[0], fb[1]};
  mma_bf16_16x8x16(sum, fa, first);
  for (int i = 0; i < 4; ++i) c[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = sum[i];
}

FATHOM_KERNEL(32, 1) overlapped_kernel(bool waits) {
  if (waits) wait_for_previous_kernel();
}

}  // namespace

TEST_CASE("every thread of every block runs once under its own index") {
  for (const emulator::Order order :
       {emulator::Order::kRising, emulator::Order::kFalling, emulator::Order::kShuffled}) {
    emulator::set_order(order);
    std::vector<int> out(6 * 20, -1);
    launch(index_kernel, dim3(2, 3), dim3(5, 4), 0, nullptr, out.data());
    int wrong = 0;
    for (int i = 0; i < 120; ++i)
      wrong += out[static_cast<size_t>(i)] != 1000 * (i / 40) + 100 * (i / 20 % 2) + 10 * (i / 5 % 4) + i % 5;
    CHECK(wrong == 0);
  }
  emulator::set_order(emulator::Order::kRising);
}

TEST_CASE("a barrier makes shared memory visible; without it the order of threads shows") {
  std::vector<int> in(64), out(64);
  for (int i = 0; i < 64; ++i) in[static_cast<size_t>(i)] = i;
  launch(reverse_kernel, 1, 64, 0, nullptr, in.data(), out.data(), true);
  int wrong = 0;
  for (int i = 0; i < 64; ++i) wrong += out[static_cast<size_t>(i)] != 63 - i;
  CHECK(wrong == 0);
  launch(reverse_kernel, 1, 64, 0, nullptr, in.data(), out.data(), false);
  CHECK(out[0] == -1);  // not written yet: the fill of shared memory
}

TEST_CASE("lanes exchange values as CUDA says, under whole and split masks") {
  std::vector<int> out(4 * 64);
  launch(warp_kernel, 1, 64, 0, nullptr, out.data());
  for (int i = 0; i < 64; ++i) {
    CAPTURE(i);
    const int* o = &out[static_cast<size_t>(4 * i)];
    CHECK(o[0] == (i < 32 ? 496 : 496 + 32 * 32));
    unsigned ballot = 0;
    for (int l = 0; l < 32; ++l) ballot |= ((i / 32 * 32 + l) % 3 == 0 ? 1u : 0u) << l;
    CHECK(static_cast<unsigned>(o[1]) == ballot);
    CHECK(o[2] == (i % 8 < 4 ? i + 4 : i));
    CHECK(o[3] == (i % 2 == 0 ? i / 32 * 32 + 30 : 16));
  }
}

TEST_CASE("what hardware leaves undefined ends the launch and says where") {
  CHECK(offence_message(Offence::kDivergentBarrier).find("deadlock: 32 threads wait, 32 at emulator_test.cpp") !=
        std::string::npos);
  CHECK(offence_message(Offence::kEarlyEnd).find("deadlock: 63 threads wait") != std::string::npos);
  CHECK(offence_message(Offence::kTwoBarriers).find("different barriers") != std::string::npos);
  CHECK(offence_message(Offence::kNotInMask).find("not of its mask") != std::string::npos);
  CHECK(offence_message(Offence::kMissingLane).find("deadlock: 62 threads wait") != std::string::npos);
#if !defined(__SANITIZE_ADDRESS__)
  CHECK(offence_message(Offence::kOverrun).find("static shared array of 128 bytes was overrun") != std::string::npos);
  CHECK(offence_message(Offence::kDynamicOverrun).find("dynamic shared memory of 16 bytes was overrun") !=
        std::string::npos);
#endif
  CHECK(offence_message(Offence::kLostCopy).find("before its asynchronous copies") != std::string::npos);
  CHECK_THROWS_WITH_AS(launch(offending_kernel, 1, 1025, 0, nullptr, Offence::kOverrun), doctest::Contains("1 to 1024"),
                       Error);
  std::vector<int> out(4 * 64);
  launch(warp_kernel, 1, 64, 0, nullptr, out.data());  // and the next launch is whole
  CHECK(out[0] == 496);
}

TEST_CASE("an asynchronous copy is there after its wait, not before; an invalid one gives zeros") {
  std::vector<float> in{1, 2, 3, 4, 5, 6, 7, 8}, out(8), early(2);
  launch(copy_kernel, 1, 32, 0, nullptr, in.data(), out.data(), early.data());
  CHECK(out == std::vector<float>{1, 2, 3, 4, 0, 0, 0, 0});
  CHECK(std::isnan(early[0]));
}

TEST_CASE("products of fragments equal the products of the matrices they hold") {
  std::mt19937 rng(5);
  std::vector<int8_t> a(16 * 32), b(32 * 8);
  for (int8_t& v : a) v = static_cast<int8_t>(rng());
  for (int8_t& v : b) v = static_cast<int8_t>(rng());
  for (const bool deep : {true, false}) {
    const int k = deep ? 32 : 16;
    std::vector<int> c(128);
    launch(s8_kernel, 1, 32, 0, nullptr, a.data(), b.data(), c.data(), deep);
    int wrong = 0;
    for (int i = 0; i < 128; ++i) {
      int sum = 0;
      for (int j = 0; j < k; ++j) sum += a[static_cast<size_t>(i / 8 * k + j)] * b[static_cast<size_t>(j * 8 + i % 8)];
      wrong += c[static_cast<size_t>(i)] != sum;
    }
    CHECK(wrong == 0);
  }
  std::vector<uint16_t> fa(256), fb(128);
  for (uint16_t& v : fa) v = f32_to_bf16(static_cast<float>(rng() % 17) - 8);
  for (uint16_t& v : fb) v = f32_to_bf16(static_cast<float>(rng() % 17) - 8);
  std::vector<float> c(128);
  launch(bf16_kernel, 1, 32, 0, nullptr, fa.data(), fb.data(), c.data());
  int wrong = 0;
  for (int i = 0; i < 128; ++i) {
    float sum = 0;
    for (int j = 0; j < 16; ++j)
      sum += bf16_to_f32(fa[static_cast<size_t>(i / 8 * 16 + j)]) * bf16_to_f32(fb[static_cast<size_t>(j * 8 + i % 8)]);
    wrong += c[static_cast<size_t>(i)] != sum;
  }
  CHECK(wrong == 0);
}

TEST_CASE("integer helpers have CUDA's meaning") {
  CHECK(__dp4a(0x01ff7f80, 0x02030405, 10) == 10 + 1 * 2 + -1 * 3 + 127 * 4 + -128 * 5);
  CHECK(__byte_perm(0x33221100u, 0x77665544u, 0x6420u) == 0x66442200u);
  CHECK_THROWS_AS(__byte_perm(1, 2, 0x0008u), Error);
  CHECK(__funnelshift_r(0x44332211u, 0x88776655u, 16) == 0x66554433u);
  CHECK(__ffs(8) == 4);
  CHECK(__clz(1) == 31);
}

TEST_CASE("an overlapped kernel has to wait for the one before it") {
  launch_overlapped(overlapped_kernel, 1, 32, 0, nullptr, true);
  CHECK_THROWS_WITH_AS(launch_overlapped(overlapped_kernel, 1, 32, 0, nullptr, false),
                       doctest::Contains("wait_for_previous_kernel"), Error);
}

TEST_CASE("a captured graph runs when it is launched, as often as it is launched") {
  cudaStream_t stream = nullptr;
  REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  std::vector<int> out(20, -1), copy(20, -1);
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  CHECK(cudaStreamSynchronize(stream) == cudaErrorStreamCaptureUnsupported);
  launch(index_kernel, 1, dim3(5, 4), 0, stream, out.data());
  cudaMemcpyAsync(copy.data(), out.data(), 80, cudaMemcpyDefault, stream);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  REQUIRE(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess);
  CHECK(out[7] == -1);
  for (int i = 0; i < 2; ++i) {
    copy[7] = -1;
    REQUIRE(cudaGraphLaunch(exec, stream) == cudaSuccess);
    CHECK(copy[7] == 12);
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}
