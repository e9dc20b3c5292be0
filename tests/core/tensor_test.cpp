#include "core/tensor.h"

#include <doctest/doctest.h>
#include <cstdint>
#include <vector>

#include "core/buffer.h"
#include "core/error.h"

namespace fathom {
namespace {

TEST_CASE("a contiguous tensor steps by whole rows, in bytes of its type") {
  std::vector<std::byte> bytes(4096);
  const Tensor t(DType::kQ8_0, {3, 4, 64}, bytes.data());
  CHECK(t.strides_bytes[1] == 68);
  CHECK(t.strides_bytes[0] == 4 * 68);
  CHECK(t.size_bytes() == 3 * 4 * 68);
  CHECK(t.n_rows() == 12);
  CHECK(t.is_contiguous());
  CHECK(t.describe() == "q8_0 [3, 4, 64]");
  CHECK(t.row(2) == bytes.data() + 2 * 4 * 68);
}

TEST_CASE("slabs and slices view the same bytes") {
  std::vector<float> v(24);
  for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(i);
  const Tensor t(DType::kF32, {2, 3, 4}, v.data());
  const Tensor slab = t.slab(1);
  CHECK(slab.shape == Shape{3, 4});
  CHECK(slab.row_as<float>(2)[1] == 12 + 9);
  const Tensor rows = slab.slice(1, 2);
  CHECK(rows.shape == Shape{2, 4});
  CHECK(rows.row_as<float>(0)[0] == 16);
  CHECK_THROWS_AS(t.slab(2), BugError);
  CHECK_THROWS_AS(slab.slice(2, 2), BugError);
  CHECK(slab.slice(3, 0).size_bytes() == 0);
}

TEST_CASE("only contiguous tensors take another shape of equal size") {
  std::vector<float> v(24);
  const Tensor t(DType::kF32, {4, 6}, v.data());
  CHECK(t.reshaped({2, 12}).strides_bytes[0] == 48);
  CHECK_THROWS_AS(t.reshaped({5, 5}), BugError);
  Tensor strided = t;
  strided.shape = Shape{4, 3};
  CHECK(!strided.is_contiguous());
  CHECK_THROWS_AS(strided.reshaped({12}), BugError);
}

TEST_CASE("an empty tensor is false, a tensor without rows has no bytes") {
  CHECK(!Tensor());
  std::byte b{};
  const Tensor none(DType::kF32, {0, 5}, &b);
  CHECK(static_cast<bool>(none));
  CHECK(none.size_bytes() == 0);
  CHECK(none.n_rows() == 0);
}

TEST_CASE("heap buffers are zeroed, aligned, and may be empty") {
  const auto buffer = allocate_heap(5 << 20, "the test");
  CHECK(reinterpret_cast<uintptr_t>(buffer->data()) % 64 == 0);
  CHECK(buffer->size_bytes() == 5u << 20);
  for (size_t i = 0; i < buffer->size_bytes(); i += 4096) CHECK(buffer->data()[i] == std::byte{0});
  CHECK(allocate_heap(0, "nothing")->size_bytes() == 0);
  CHECK_THROWS_AS(allocate_heap(size_t{1} << 62, "too much"), Error);
}

}  // namespace
}  // namespace fathom
