// cuda/device.h in plain C++: what a kernel may use, and what each of it means. The names of CUDA stand outside any
// namespace, as nvcc has them.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/error.h"
#include "core/float_convert.h"
#include "core/quant/fp8.h"
#include "cuda/stream.h"
#include "emulator/block.h"
#include "emulator/runtime.h"

#define FATHOM_KERNEL(threads, blocks) inline void
#define FATHOM_DEVICE inline
#define FATHOM_SHARED(Type, name, count) \
  static char name##_tag;                \
  auto& name = *static_cast<Type(*)[count]>(::fathom::emulator::static_shared(&name##_tag, sizeof(Type[count])))
#define FATHOM_DYNAMIC_SHARED(name) auto* name = static_cast<unsigned char*>(::fathom::emulator::dynamic_shared())

struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using std::max;
using std::min;

// ---- barriers and warps ----

using EmulatorSite = std::source_location;
#define FATHOM_SITE EmulatorSite site = EmulatorSite::current()

inline void __syncthreads(FATHOM_SITE) { fathom::emulator::block_barrier(site); }
inline int __syncthreads_count(int value, FATHOM_SITE) { return fathom::emulator::block_count(value != 0, site); }
inline int __syncthreads_or(int value, FATHOM_SITE) { return fathom::emulator::block_count(value != 0, site) > 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu, FATHOM_SITE) {
  const char none = 0;
  fathom::emulator::exchange(mask, &none, 1, "__syncwarp", site);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace fathom::emulator {

/// The value of lane `from`. Hardware gives an undefined value if that lane is not of the mask; here it ends the
/// launch.
template <typename T> T take(const Exchange& e, int from) {
  if ((e.mask >> from & 1u) == 0)
    fail(std::string(e.what) + " reads lane " + std::to_string(from) + ", which is not of its mask");
  T value;
  std::memcpy(&value, e.values[from], sizeof(T));
  return value;
}
template <typename T, typename Fold> T fold(const Exchange& e, Fold&& f) {
  T result{};
  bool first = true;
  for (int l = 0; l < 32; ++l) {
    if ((e.mask >> l & 1u) == 0) continue;
    result = first ? take<T>(e, l) : f(result, take<T>(e, l));
    first = false;
  }
  return result;
}

}  // namespace fathom::emulator

template <typename T> T __shfl_sync(unsigned mask, T value, int from, int width = 32, FATHOM_SITE) {
  const auto& e = fathom::emulator::exchange(mask, &value, sizeof(T), "__shfl_sync", site);
  const int lane = fathom::emulator::lane_index();
  return fathom::emulator::take<T>(e, lane / width * width + (from & (width - 1)));
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, FATHOM_SITE) {
  const auto& e = fathom::emulator::exchange(mask, &value, sizeof(T), "__shfl_xor_sync", site);
  const int lane = fathom::emulator::lane_index(), from = lane ^ bits;
  return fathom::emulator::take<T>(e, from >= (lane / width + 1) * width ? lane : from);
}
template <typename T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, FATHOM_SITE) {
  const auto& e = fathom::emulator::exchange(mask, &value, sizeof(T), "__shfl_down_sync", site);
  const int lane = fathom::emulator::lane_index(), from = lane + static_cast<int>(by);
  return fathom::emulator::take<T>(e, from >= (lane / width + 1) * width ? lane : from);
}
template <typename T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, FATHOM_SITE) {
  const auto& e = fathom::emulator::exchange(mask, &value, sizeof(T), "__shfl_up_sync", site);
  const int lane = fathom::emulator::lane_index(), from = lane - static_cast<int>(by);
  return fathom::emulator::take<T>(e, from < lane / width * width ? lane : from);
}
inline unsigned __ballot_sync(unsigned mask, int value, FATHOM_SITE) {
  const auto& e = fathom::emulator::exchange(mask, &value, sizeof(int), "__ballot_sync", site);
  unsigned bits = 0;
  for (int l = 0; l < 32; ++l) {
    if (mask >> l & 1u) bits |= (fathom::emulator::take<int>(e, l) != 0 ? 1u : 0u) << l;
  }
  return bits;
}
inline int __any_sync(unsigned mask, int value, FATHOM_SITE) { return __ballot_sync(mask, value, site) != 0; }
inline int __all_sync(unsigned mask, int value, FATHOM_SITE) { return __ballot_sync(mask, value, site) == mask; }
template <typename T> unsigned __match_any_sync(unsigned mask, T value, FATHOM_SITE) {
  const auto& e = fathom::emulator::exchange(mask, &value, sizeof(T), "__match_any_sync", site);
  unsigned bits = 0;
  for (int l = 0; l < 32; ++l) {
    if (mask >> l & 1u) bits |= (fathom::emulator::take<T>(e, l) == value ? 1u : 0u) << l;
  }
  return bits;
}
template <typename T> T __reduce_add_sync(unsigned mask, T value, FATHOM_SITE) {
  return fathom::emulator::fold<T>(fathom::emulator::exchange(mask, &value, sizeof(T), "__reduce_add_sync", site),
                                   [](T a, T b) { return a + b; });
}
template <typename T> T __reduce_max_sync(unsigned mask, T value, FATHOM_SITE) {
  return fathom::emulator::fold<T>(fathom::emulator::exchange(mask, &value, sizeof(T), "__reduce_max_sync", site),
                                   [](T a, T b) { return std::max(a, b); });
}
template <typename T> T __reduce_min_sync(unsigned mask, T value, FATHOM_SITE) {
  return fathom::emulator::fold<T>(fathom::emulator::exchange(mask, &value, sizeof(T), "__reduce_min_sync", site),
                                   [](T a, T b) { return std::min(a, b); });
}

// ---- atomics: no two fibers run at a time ----

template <typename T> T atomicAdd(T* p, T value) {
  const T old = *p;
  *p = old + value;
  return old;
}
template <typename T> T atomicMax(T* p, T value) {
  const T old = *p;
  *p = std::max(old, value);
  return old;
}
template <typename T> T atomicMin(T* p, T value) {
  const T old = *p;
  *p = std::min(old, value);
  return old;
}
template <typename T> T atomicExch(T* p, T value) {
  const T old = *p;
  *p = value;
  return old;
}
template <typename T> T atomicCAS(T* p, T expected, T value) {
  const T old = *p;
  if (old == expected) *p = value;
  return old;
}
/// Counts 0 .. limit and around.
inline unsigned atomicInc(unsigned* p, unsigned limit) {
  const unsigned old = *p;
  *p = old >= limit ? 0 : old + 1;
  return old;
}

// ---- arithmetic ----

/// c + sum of the products of four signed bytes.
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
  return c;
}
/// Byte i of the result is the byte of b:a that nibble i of the selector says, 0 to 7. CUDA's manual and PTX differ on
/// larger ones.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  if (selector & 0x8888u) fathom::emulator::fail("__byte_perm with a selector beyond 7");
  const uint64_t both = a | static_cast<uint64_t>(b) << 32;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i)
    result |= (static_cast<unsigned>(both >> (8 * (selector >> (4 * i) & 7u))) & 255u) << (8 * i);
  return result;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
  return static_cast<unsigned>((low | static_cast<uint64_t>(high) << 32) >> (by & 31u));
}
inline int __popc(unsigned v) { return std::popcount(v); }
inline int __clz(int v) { return std::countl_zero(static_cast<unsigned>(v)); }
inline int __ffs(int v) { return v == 0 ? 0 : std::countr_zero(static_cast<unsigned>(v)) + 1; }
inline unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (v >> i & 1u) << (31 - i);
  return r;
}
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }
inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline int __float2int_rn(float v) { return static_cast<int>(std::nearbyint(v)); }
inline float rsqrtf(float v) { return 1.0F / std::sqrt(v); }
inline float __expf(float v) { return std::exp(v); }
inline float __frcp_rn(float v) { return 1.0F / v; }
inline float __fdividef(float a, float b) { return a / b; }
/// Memory that no kernel writes while this one runs.
template <typename T> T __ldg(const T* p) { return *p; }
/// Memory that other blocks of this launch have written.
template <typename T> T __ldcg(const T* p) { return *p; }

namespace fathom::cuda {

// ---- launches ----

/// kernel(args...) on every thread of the grid, on `stream` (a capturing one remembers it).
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream, Args... args) {
  emulator::submit(stream, [=] {
    emulator::run_grid(grid, block, shared_bytes, false, [&] { kernel(static_cast<Params>(args)...); });
  });
}
/// The same for kernels that may start before the kernel launched before them has ended.
template <typename... Params, typename... Args>
void launch_overlapped(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
                       Args... args) {
  emulator::submit(stream, [=] {
    emulator::run_grid(grid, block, shared_bytes, true, [&] { kernel(static_cast<Params>(args)...); });
  });
}
/// Every thread of an overlapped kernel calls it before it reads or writes what earlier kernels wrote or read; before
/// it, only weights may be read, and what merely decides which of them are asked for early.
inline void wait_for_previous_kernel() { emulator::note_wait(); }
/// From here on the next overlapped kernel may be started; what it may not see yet is up to its wait.
inline void let_next_kernel_start() {}

// ---- conversions, to nearest even ----

inline float half_to_float(uint16_t bits) { return f16_to_f32(bits); }
inline uint16_t float_to_half(float x) { return f32_to_f16(x); }
inline float bf16_to_float(uint16_t bits) { return bf16_to_f32(bits); }
inline uint16_t float_to_bf16(float x) { return f32_to_bf16(x); }
inline float fp8_to_float(uint8_t bits) { return f8_e4m3_to_f32(bits); }
inline uint8_t float_to_fp8(float x) { return f32_to_f8_e4m3(x); }  ///< beyond 448 gives 448
inline uint32_t pack_bf16(float low, float high) {
  return float_to_bf16(low) | static_cast<uint32_t>(float_to_bf16(high)) << 16;
}
inline uint32_t pack_half(float low, float high) {
  return float_to_half(low) | static_cast<uint32_t>(float_to_half(high)) << 16;
}

// ---- integers ----

/// __byte_perm without the instruction that makes the selector's digits smaller than 8: they have to be.
inline uint32_t choose_bytes(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }

/// The compiler computes x here and nowhere again.
inline void keep_value(int&) {}
inline void keep_value(float&) {}

// ---- memory ----

/// 16 bytes that this SM reads once: they displace nothing in its cache.
inline int4 load_streaming(const int4* p) { return *p; }

/// Thread `thread` of the n_threads that together ask for a run of bytes, at least one, to be brought into the
/// second-level cache; a device may leave out what fills no 16 bytes at either end. The emulator reads bytes of it:
/// they have to exist.
inline void prefetch_run(const void* p, int64_t size_bytes, int thread, int n_threads) {
  auto read = [&](int64_t at) { static_cast<void>(*(static_cast<const volatile char*>(p) + at)); };
  for (int64_t at = 128 * static_cast<int64_t>(thread); at < size_bytes; at += 128 * n_threads) read(at);
  if (thread == 0) read(size_bytes - 1);
}

/// 16 bytes from global to shared memory, both 16-byte aligned, zeros if not valid; there after cp_async_wait and a
/// barrier. The emulator copies as late as allowed.
inline void cp_async_16(void* shared, const void* global, bool valid = true) {
  emulator::copy_later(shared, global, 16, valid);
}
inline void cp_async_commit() { emulator::commit_copies(); }
/// Returns when at most kPending groups of this thread are under way.
template <int kPending> void cp_async_wait() { emulator::wait_copies(kPending); }

// ---- tensor cores; lanes: g = lane / 4, t = lane % 4. Source: PTX ISA, "Warp-level Matrix Instructions" ----

/// Four 8x8 matrices of 16-bit elements; lane 8 i + j brings the 16-byte aligned address of row j of matrix i; a lane
/// gets from each the elements 2 t, 2 t + 1 of row g.
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, FATHOM_SITE) {
  const auto& e = emulator::exchange(0xffffffffu, &row, sizeof(row), "ldmatrix", site);
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulator::fail("ldmatrix: a row is not 16-byte aligned");
  const int lane = emulator::lane_index();
  for (int i = 0; i < 4; ++i) std::memcpy(&r[i], emulator::take<const char*>(e, 8 * i + lane / 4) + 4 * (lane % 4), 4);
}
/// The same of the transposed matrices: elements g of rows 2 t, 2 t + 1.
inline void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row, FATHOM_SITE) {
  const auto& e = emulator::exchange(0xffffffffu, &row, sizeof(row), "ldmatrix", site);
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulator::fail("ldmatrix: a row is not 16-byte aligned");
  const int lane = emulator::lane_index();
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 2; ++j)
      std::memcpy(reinterpret_cast<char*>(&r[i]) + 2 * j,
                  emulator::take<const char*>(e, 8 * i + 2 * (lane % 4) + j) + 2 * (lane / 4), 2);
  }
}

}  // namespace fathom::cuda

namespace fathom::emulator {

/// c[16, 8] += a[16, kDepth] b[kDepth, 8]. A register holds kPerWord elements of successive k. Registers of a: rows g
/// and g + 8 at k = kPerWord t, then both again kDepth / 2 further (if kWordsA is 4); of b: column g likewise; c: (g,
/// 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
template <int kDepth, int kPerWord, int kWordsA, typename Sum, typename Element>
void multiply_fragments(Sum (&c)[4], const uint32_t (&a)[kWordsA], const uint32_t* b, Element&& element,
                        const char* what, Site site) {
  struct Lane {
    uint32_t a[kWordsA], b[kWordsA / 2];
  } own;
  std::memcpy(own.a, a, sizeof(own.a));
  std::memcpy(own.b, b, sizeof(own.b));
  const Exchange& e = exchange(0xffffffffu, &own, sizeof(own), what, site);
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = i / 2, column = 2 * t + i % 2;
    for (int k = 0; k < kDepth; k += kPerWord) {
      const int upper = k / (4 * kPerWord), word_lane = k / kPerWord % 4;
      const uint32_t word_a = take<Lane>(e, g * 4 + word_lane).a[2 * upper + row],
                     word_b = take<Lane>(e, column * 4 + word_lane).b[upper];
      for (int part = 0; part < kPerWord; ++part)
        c[i] += static_cast<Sum>(element(word_a, part)) * static_cast<Sum>(element(word_b, part));
    }
  }
}

inline int signed_byte(uint32_t word, int i) { return static_cast<int8_t>(word >> (8 * i)); }

}  // namespace fathom::emulator

namespace fathom::cuda {

/// c += a b with a [16, 16] and b [16, 8] of bf16, sums in f32. Two elements of successive k in a register, the lower
/// first.
inline void mma_bf16_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], FATHOM_SITE) {
  emulator::multiply_fragments<16, 2>(
      c, a, b, [](uint32_t w, int i) { return bf16_to_f32(static_cast<uint16_t>(w >> (16 * i))); }, "mma bf16", site);
}
/// The same of halves.
inline void mma_half_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], FATHOM_SITE) {
  emulator::multiply_fragments<16, 2>(
      c, a, b, [](uint32_t w, int i) { return f16_to_f32(static_cast<uint16_t>(w >> (16 * i))); }, "mma half", site);
}
/// c += a b with a [16, 32] and b [32, 8] of signed bytes, exact.
inline void mma_s8_16x8x32(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], FATHOM_SITE) {
  emulator::multiply_fragments<32, 4>(c, a, b, emulator::signed_byte, "mma s8 k32", site);
}
/// c += a b with a [16, 16] and b [16, 8] of signed bytes, exact.
inline void mma_s8_16x8x16(int (&c)[4], const uint32_t (&a)[2], uint32_t b, FATHOM_SITE) {
  emulator::multiply_fragments<16, 4>(c, a, &b, emulator::signed_byte, "mma s8 k16", site);
}

}  // namespace fathom::cuda
