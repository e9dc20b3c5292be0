// Which neighbours run together: never across memory that the group still reads.
#include "cuda/node_groups.h"

#include <doctest/doctest.h>

#include <tuple>
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

TEST_CASE("cuda: the norm of one token's result joins what makes the result, of more tokens it stays apart") {
  for (const int64_t rows : {1, 2}) {
    CAPTURE(rows);
    const auto kind = rows == 1 ? NodeGroup::kNorm : NodeGroup::kNothing;
    const Tensor x = at(0x1000, 64, rows), weight = at(0x8000, 64);
    const LinearArgs product{x, matrix(DType::kQ8_0, 64, 64), at(0x2000, 64, rows)},
        other{x, matrix(DType::kQ8_0, 32, 64), at(0x3000, 32, rows)};
    const AddArgs sum{at(0x4000, 64, rows), product.out, at(0x5000, 64, rows)};
    const std::vector<Node> summed = {{product}, {sum}, {RmsNormArgs{sum.out, weight, at(0x6000, 64, rows), 1e-6F}}};
    CHECK(cuda::next_group(summed, 0).last == kind);
    CHECK(cuda::next_group(summed, 0).n_nodes == (rows == 1 ? 3 : 2));
    const std::vector<Node> grouped = {
        {other}, {product}, {RmsNormArgs{product.out, weight, at(0x6000, 64, rows), 1e-6F}}};
    const NodeGroup group = cuda::next_group(grouped, 0);
    CHECK(group.last == kind);
    CHECK(group.n_products == 2);
    if (rows == 1) CHECK(group.finished == 1);
  }
  // Over the group's x, which the other product may still read; over what is normed.
  const Tensor x = at(0x1000, 64);
  const LinearArgs product{x, matrix(DType::kQ8_0, 64, 64), at(0x2000, 64)};
  for (const Tensor& out : {x, product.out}) {
    const std::vector<Node> nodes = {{product}, {RmsNormArgs{product.out, at(0x8000, 64), out, 1e-6F}}};
    CHECK(cuda::next_group(nodes, 0).last == NodeGroup::kNothing);
  }
}

TEST_CASE("cuda: the choice of one token's experts joins a router of plain weights") {
  for (const auto& [type, rows, kind] : {std::tuple{DType::kF32, int64_t{1}, NodeGroup::kRoute},
                                         {DType::kQ8_0, int64_t{1}, NodeGroup::kNothing},
                                         {DType::kF32, int64_t{2}, NodeGroup::kNothing}}) {
    CAPTURE(dtype_name(type));
    CAPTURE(rows);
    const LinearArgs router{at(0x1000, 64, rows), matrix(type, 8, 64), at(0x2000, 8, rows)};
    RouteExpertsArgs route{router.out, {}, at(0x3000, 2, rows), at(0x4000, 2, rows), {2}};
    const std::vector<Node> nodes = {{router}, {route}};
    CHECK(cuda::next_group(nodes, 0).last == kind);
    route.table = at(0x5000, 2);
    const std::vector<Node> by_id = {{router}, {route}};
    CHECK(cuda::next_group(by_id, 0).last == NodeGroup::kNothing);
  }
}

TEST_CASE("cuda: cache row, rotation and attention run together if attention reads what is rotated") {
  const int64_t heads = 2, nope = 32, rope = 64, latent = 64;
  auto tensor = [](uintptr_t address, Shape shape) {
    return Tensor(DType::kF32, shape, reinterpret_cast<void*>(address));
  };
  const Tensor table = tensor(0x9000, {1, rope / 2, 2}), cache = tensor(0x100000, {1, 64, latent + rope});
  const StoreLatentArgs store{at(0x1000, latent + rope), tensor(0x2000, {latent}), table, {}, cache};
  RotateHeadsArgs rotate{tensor(0x3000, {1, heads, nope + rope}), table, tensor(0x5000, {1, heads, nope + rope})};
  rotate.first_dim = nope;
  LatentAttentionArgs attend;
  attend.q = rotate.out, attend.cache = cache, attend.out = tensor(0x7000, {1, heads * 32});
  attend.kv_b = matrix(DType::kF32, heads * (nope + 32), latent);
  const std::vector<Node> nodes = {{store}, {rotate}, {attend}};
  CHECK(cuda::next_group(nodes, 0).kind == NodeGroup::kStoreRotateAndAttend);
  LatentAttentionArgs others = attend;
  others.q = rotate.x;
  const std::vector<Node> not_rotated = {{store}, {rotate}, {others}};
  CHECK(cuda::next_group(not_rotated, 0).kind == NodeGroup::kSideBySide);
  rotate.first_dim = 0;
  const std::vector<Node> all_rotated = {{store}, {rotate}, {attend}};
  CHECK(cuda::next_group(all_rotated, 0).kind == NodeGroup::kSideBySide);
}

TEST_CASE("cuda: rows and heads stand side by side up to the first that needs what another makes") {
  auto tensor = [](uintptr_t address, Shape shape) {
    return Tensor(DType::kF32, shape, reinterpret_cast<void*>(address));
  };
  const Tensor table = tensor(0x9000, {2, 16, 2});
  const LayerNormArgs norm{tensor(0x1000, {2, 64}), tensor(0x2000, {64}), tensor(0x2400, {64}),
                           tensor(0x3000, {2, 64})};
  const RotateHeadsArgs of_key{tensor(0x3000, {2, 1, 64}), table, tensor(0x4000, {2, 1, 64})};
  StoreRowsArgs store{tensor(0x4000, {2, 64}), {}, tensor(0x100000, {1, 64, 64})};
  const std::vector<Node> key = {{norm}, {of_key}, {store}}, cut = {{norm}, {of_key}};
  CHECK(cuda::next_group(key, 0).kind == NodeGroup::kSideBySide);
  CHECK(cuda::next_group(key, 0).n_nodes == 3);
  CHECK(cuda::next_group(cut, 0).kind == NodeGroup::kSingle);
  StoreRowsArgs unrotated = store;
  unrotated.x = norm.out;
  const std::vector<Node> other = {{norm}, {of_key}, {unrotated}};
  CHECK(cuda::next_group(other, 0).kind == NodeGroup::kSingle);

  // V3.2's: key, latent, query, the indexer's query; then the choice, which is not of them.
  const StoreLatentArgs latent{tensor(0x5000, {2, 64}), tensor(0x2800, {64}), table, {}, tensor(0x200000, {1, 64, 64})};
  const RotateHeadsArgs query{tensor(0x6000, {2, 4, 32}), table, tensor(0x7000, {2, 4, 32})},
      index_query{tensor(0xa000, {2, 4, 32}), table, tensor(0xb000, {2, 4, 32})};
  IndexRowsArgs index;
  index.q = index_query.out, index.chosen = tensor(0x8000, {2, 8});
  std::vector<Node> all = {{norm}, {of_key}, {store}, {latent}, {query}, {index_query}, {index}};
  CHECK(cuda::next_group(all, 0).n_nodes == 6);
  CHECK(cuda::next_group(all, 6).kind == NodeGroup::kSingle);
  RotateHeadsArgs third = query;
  third.out = tensor(0xc000, {2, 4, 32});
  all[6] = {third};  // no room for a third of a kind
  CHECK(cuda::next_group(all, 0).n_nodes == 6);
  RotateHeadsArgs over = index_query;
  over.out = query.x;  // still to be read
  all[5] = {over};
  CHECK(cuda::next_group(all, 0).n_nodes == 5);
  over.out = query.out;
  all[5] = {over};
  CHECK(cuda::next_group(all, 0).n_nodes == 5);
  over = index_query, over.x = query.out;
  all[5] = {over};
  CHECK(cuda::next_group(all, 0).n_nodes == 5);

  // V4's: row, compressed rows, heads normed and rotated.
  CompressRowsArgs compress;
  compress.kv = tensor(0xd000, {2, 64});
  const RmsNormArgs of_heads{tensor(0x10000, {8, 32}), {}, tensor(0x20000, {8, 32}), 1e-6F};
  RotateHeadsArgs rotate{tensor(0x20000, {2, 4, 32}), table, tensor(0x30000, {2, 4, 32})};
  std::vector<Node> v4 = {{latent}, {compress}, {compress}, {of_heads}, {rotate}, {index_query}};
  CHECK(cuda::next_group(v4, 0).n_nodes == 6);
  CHECK(cuda::next_group(v4, 3).n_nodes == 3);
  rotate.out = of_heads.x.reshaped({2, 4, 32});  // heads that others still read
  v4[4] = {rotate};
  CHECK(cuda::next_group(v4, 0).n_nodes == 3);
  const RmsNormArgs weighted{of_heads.x, tensor(0x2c00, {32}), of_heads.out, 1e-6F};
  v4[3] = {weighted};
  CHECK(cuda::next_group(v4, 0).n_nodes == 3);
}

TEST_CASE("cuda: V4's products of one x are one group with the norm of the last") {
  const Tensor x = at(0x1000, 64);
  std::vector<Node> nodes;
  for (uintptr_t i = 0; i < 7; ++i)
    nodes.push_back({LinearArgs{x, matrix(DType::kQ8_0, 32, 64), at(0x2000 + 0x100 * i, 32)}});
  nodes.push_back({RmsNormArgs{at(0x2600, 32), at(0x8000, 32), at(0x9000, 32), 1e-6F}});
  const NodeGroup group = cuda::next_group(nodes, 0);
  CHECK(group.n_products == 7);
  CHECK(group.n_nodes == 8);
  CHECK(group.finished == 6);
  CHECK(group.n_nodes - 1 <= cuda::kMostGrouped);
}

TEST_CASE("cuda: streams are collapsed with their norm, attention is rotated") {
  auto tensor = [](uintptr_t address, Shape shape) {
    return Tensor(DType::kF32, shape, reinterpret_cast<void*>(address));
  };
  CollapseStreamsArgs collapse;
  collapse.streams = tensor(0x10000, {2, 4 * 64}), collapse.products = tensor(0x20000, {2, 24});
  collapse.out = tensor(0x30000, {2, 64}), collapse.mixing = tensor(0x40000, {2, 20});
  RmsNormArgs norm{collapse.out, tensor(0x50000, {64}), tensor(0x60000, {2, 64}), 1e-6F};
  const std::vector<Node> collapsed = {{collapse}, {norm}};
  CHECK(cuda::next_group(collapsed, 0).kind == NodeGroup::kCollapseAndNorm);
  norm.out = tensor(0x10100, {2, 64});  // over streams that another token still reads
  const std::vector<Node> unsafe = {{collapse}, {norm}};
  CHECK(cuda::next_group(unsafe, 0).kind == NodeGroup::kSingle);

  const Tensor table = tensor(0x9000, {2, 8, 2});
  RotateHeadsArgs rotate{tensor(0x20000, {2, 4, 32}), table, tensor(0x30000, {2, 4, 32})};
  CompressedAttentionArgs attend;
  attend.q = tensor(0x10000, {2, 4, 32}), attend.out = tensor(0x20000, {2, 4 * 32});
  const GroupedLinearArgs grouped{tensor(0x30000, {2, 4 * 32}), matrix(DType::kQ8_0, 16, 64), tensor(0x70000, {2, 16})};
  const std::vector<Node> attended = {{attend}, {rotate}, {grouped}};
  CHECK(cuda::next_group(attended, 0).kind == NodeGroup::kAttendAndRotate);
  CHECK(cuda::wanted_quantized(attended, 1).data == grouped.x.data);
  CHECK(cuda::wanted_quantized(attended, 1).shape == grouped.x.shape);
  // A rotation that runs alone makes nothing in int8.
  rotate.x = tensor(0x50000, {2, 4, 32});
  const std::vector<Node> apart = {{attend}, {rotate}, {grouped}};
  CHECK(!cuda::wanted_quantized(apart, 1));
}
