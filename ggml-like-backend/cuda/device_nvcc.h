// device.h for nvcc. tests/cuda/emulator/device.h says the same in plain C++ and documents every function.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "core/error.h"
#include "cuda/stream.h"

#define FATHOM_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define FATHOM_DEVICE __device__ __forceinline__
#define FATHOM_SHARED(Type, name, count) __shared__ __align__(16) Type name[count]
#define FATHOM_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

namespace fathom::cuda {

// ---- launches ----

namespace detail {

/// Whether kernels on a device of this major capability wait for their predecessors themselves: from 9.0 on, if their
/// code was compiled for it. A newer device runs what was compiled for 8.0, without the waits, and must not overlap.
constexpr bool waits_on(int major) {
  for (const int arch : {__CUDA_ARCH_LIST__}) {
    if (major >= 9 && arch / 100 == major) return true;
  }
  return false;
}

template <typename... Params, typename... Args>
void launch_with(bool overlapped, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
                 Args... args) {
  auto check = [](cudaError_t e) {
    if (e != cudaSuccess)
      throw Error(ErrorCode::kDevice, std::string("cuda: a kernel could not be started: ") + cudaGetErrorString(e));
  };
  static const bool can_overlap = [&] {
    int device = 0, major = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    return waits_on(major);
  }();
  // Beyond 48 KiB a kernel has to be allowed more; its static arrays, of less than 16 KiB where there are dynamic ones,
  // count too.
  if (shared_bytes > 32 * 1024) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)));
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlapped && can_overlap ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}

}  // namespace detail

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream, Args... args) {
  detail::launch_with(false, kernel, grid, block, shared_bytes, stream, args...);
}

template <typename... Params, typename... Args>
void launch_overlapped(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
                       Args... args) {
  detail::launch_with(true, kernel, grid, block, shared_bytes, stream, args...);
}

FATHOM_DEVICE void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

FATHOM_DEVICE void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- conversions ----

FATHOM_DEVICE float half_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
FATHOM_DEVICE uint16_t float_to_half(float x) { return __half_as_ushort(__float2half_rn(x)); }
FATHOM_DEVICE float bf16_to_float(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
FATHOM_DEVICE uint16_t float_to_bf16(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
FATHOM_DEVICE float fp8_to_float(uint8_t bits) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(bits, __NV_E4M3)));
}
FATHOM_DEVICE uint8_t float_to_fp8(float x) { return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3); }
FATHOM_DEVICE uint32_t pack_bf16(float low, float high) {
  return static_cast<uint32_t>(float_to_bf16(low)) | static_cast<uint32_t>(float_to_bf16(high)) << 16;
}
FATHOM_DEVICE uint32_t pack_half(float low, float high) {
  return static_cast<uint32_t>(float_to_half(low)) | static_cast<uint32_t>(float_to_half(high)) << 16;
}

// ---- integers ----

FATHOM_DEVICE uint32_t choose_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(a), "r"(b), "r"(selector));
  return bytes;
}

FATHOM_DEVICE void keep_value(int& x) { asm volatile("" : "+r"(x)); }
FATHOM_DEVICE void keep_value(float& x) { asm volatile("" : "+f"(x)); }

// ---- memory ----

FATHOM_DEVICE int4 load_streaming(const int4* p) {
  int4 v;
  asm volatile("ld.global.L1::no_allocate.v4.s32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

FATHOM_DEVICE void prefetch_run(const void* p, int64_t size_bytes, int thread, int n_threads) {
#if __CUDA_ARCH__ >= 900
  const uintptr_t first = (reinterpret_cast<uintptr_t>(p) + 15) / 16 * 16,
                  end = (reinterpret_cast<uintptr_t>(p) + size_bytes) / 16 * 16;
  if (thread != 0 || end <= first) return;
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(first), "r"(static_cast<uint32_t>(end - first)));
#else
  for (int64_t at = 128 * static_cast<int64_t>(thread); at < size_bytes; at += 128 * n_threads)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(p) + at));
#endif
}

FATHOM_DEVICE void cp_async_16(void* shared, const void* global, bool valid = true) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(global), "r"(valid ? 16 : 0)
      : "memory");
}
FATHOM_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending> FATHOM_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- tensor cores ----

FATHOM_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}
FATHOM_DEVICE void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

FATHOM_DEVICE void mma_bf16_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
FATHOM_DEVICE void mma_half_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
FATHOM_DEVICE void mma_s8_16x8x32(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
FATHOM_DEVICE void mma_s8_16x8x16(int (&c)[4], const uint32_t (&a)[2], uint32_t b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(b));
}

}  // namespace fathom::cuda
