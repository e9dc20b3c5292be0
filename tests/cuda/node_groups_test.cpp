// Which neighbours run together: never across memory that the group still reads.
#include "cuda/node_groups.h"

#include <doctest/doctest.h>

#include <vector>

using namespace fathom;
using cuda::NodeGroup;

namespace {

/// A row of floats at a made-up address.
Tensor at(uintptr_t address, int64_t n, int64_t rows = 1) {
  return Tensor(DType::kF32, {rows, n}, reinterpret_cast<void*>(address));
}
Tensor matrix(DType type, int64_t rows, int64_t columns) {
  return Tensor(type, {rows, columns}, reinterpret_cast<void*>(uintptr_t{1} << 30));
}

}  // namespace

TEST_CASE("cuda: products of one x run together, others do not") {
  const Tensor x = at(0x1000, 64), other = at(0x9000, 64);
  const LinearArgs first{x, matrix(DType::kQ8_0, 32, 64), at(0x2000, 32)},
      second{x, matrix(DType::kQ4_0, 96, 64), at(0x3000, 96)},
      third{other, matrix(DType::kQ8_0, 32, 64), at(0x4000, 32)};
  const std::vector<Node> nodes = {{first}, {second}, {third}};
  const NodeGroup group = cuda::next_group(nodes, 0);
  CHECK(group.kind == NodeGroup::kProductsOfOne);
  CHECK(group.n_nodes == 2);
  CHECK(cuda::next_group(nodes, 2).kind == NodeGroup::kSingle);

  LinearArgs over_x = second;
  over_x.out = at(0x1080, 96);  // would overwrite what the first still reads
  const std::vector<Node> unsafe = {{first}, {over_x}};
  CHECK(cuda::next_group(unsafe, 0).n_nodes == 1);
}

TEST_CASE("cuda: a sum joins the product before it unless it lies over the product's input") {
  const LinearArgs product{at(0x1000, 64), matrix(DType::kQ8_0, 64, 64), at(0x2000, 64)};
  const Tensor residual = at(0x3000, 64);
  for (const bool swapped : {false, true}) {
    const std::vector<Node> nodes = {
        {product}, {AddArgs{swapped ? product.out : residual, swapped ? residual : product.out, at(0x4000, 64)}}};
    const NodeGroup group = cuda::next_group(nodes, 0);
    CHECK(group.kind == NodeGroup::kWithSum);
    CHECK(group.add.data == residual.data);
    CHECK(group.sum.data == at(0x4000, 64).data);
  }
  const std::vector<Node> in_place = {{product}, {AddArgs{residual, product.out, residual}}};
  CHECK(cuda::next_group(in_place, 0).kind == NodeGroup::kWithSum);
  const std::vector<Node> over_input = {{product}, {AddArgs{residual, product.out, at(0x1080, 64)}}};
  CHECK(cuda::next_group(over_input, 0).kind == NodeGroup::kSingle);
  const std::vector<Node> doubled = {{product}, {AddArgs{product.out, product.out, at(0x4000, 64)}}};
  CHECK(cuda::next_group(doubled, 0).kind == NodeGroup::kSingle);
}

TEST_CASE("cuda: a norm is made in int8 where a product wants it before it is overwritten") {
  const RmsNormArgs norm{at(0x1000, 64), at(0x2000, 64), at(0x3000, 64), 1e-6F};
  const LinearArgs quantized{norm.out, matrix(DType::kQ8_0, 32, 64), at(0x4000, 32)},
      plain{norm.out, matrix(DType::kF32, 32, 64), at(0x4000, 32)};
  const AddArgs overwrites{at(0x1000, 64), at(0x1000, 64), at(0x3040, 64)};
  const std::vector<Node> wanted = {{norm}, {plain}, {quantized}}, unwanted = {{norm}, {plain}},
                          lost = {{norm}, {overwrites}, {quantized}};
  CHECK(cuda::wanted_quantized(wanted, 0).data == norm.out.data);
  CHECK(!cuda::wanted_quantized(unwanted, 0));
  CHECK(!cuda::wanted_quantized(lost, 0));
  CHECK(!cuda::wanted_quantized(wanted, 1));
}
