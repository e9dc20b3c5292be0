// V4's attention: rows that stand for several tokens, and one softmax over them, a window and a sink.
#include <tuple>

#include "core/quant/dequantize.h"
#include "paged.h"

using namespace fathom;
using namespace fathom::testing;

namespace {

const DType kCacheTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kF8_E4M3};

/// The tokens of `parts` in shuffled pages, their slots too.
void fill_slots(Paged& p) {
  p.step.slots = p.h.ints({p.n_tokens()}, [&](int64_t t) {
    const int32_t position = p.step.positions.as<int32_t>()[t];
    const int32_t page = p.step.page_table.row_as<int32_t>(p.step.sequence_of.as<int32_t>()[t])[position / 64];
    return page * 64 + position % 64;
  });
}

struct CompressCase {
  int64_t n;
  bool overlaps;
  int64_t ratio, n_pairs;
  std::vector<Part> parts;
};

CompressRowsArgs compress_problem(Paged& p, const CompressCase& k, DType type) {
  const int64_t channels = k.n * (k.overlaps ? 2 : 1), t = p.n_tokens(), n_pages = p.cache.dim(0);
  fill_slots(p);
  CompressRowsArgs a;
  a.kv = p.h.floats({t, channels}), a.gate = p.h.floats({t, channels}, 2);
  a.positional = p.h.floats({k.ratio, channels});
  a.norm_weight = p.h.floats({k.n});
  a.frequencies = p.h.make(DType::kF32, {k.n_pairs});
  for (int64_t i = 0; i < k.n_pairs; ++i)
    a.frequencies.as<float>()[i] = static_cast<float>(std::pow(160000.0, -static_cast<double>(i) / k.n_pairs));
  a.pending = p.h.floats({n_pages, 64, 2 * channels});
  a.cache = p.h.bytes(type, {n_pages, std::max<int64_t>(1, 64 / k.ratio), k.n});
  a.step = p.step;
  a.ratio = k.ratio;
  a.eps = 1e-6F;
  return a;
}

}  // namespace

TEST_CASE("cuda: rows of several tokens are made as by the reference when their last token comes, and no others") {
  const CompressCase cases[] = {
      {512, true, 4, 32, {{0, 1}, {3, 1}, {7, 1}, {62, 6}, {61, 1}}},  // V4's; page borders
      {128, true, 4, 32, {{0, 17}}},                                   // a prompt: all from the step itself
      {512, false, 128, 32, {{127, 1}, {100, 60}, {255, 1}, {254, 1}}},
      {40, false, 2, 5, {{2, 3}}},
      {33, true, 1, 4, {{5, 3}}},
  };
  for (const CompressCase& k : cases) {
    for (const DType type : kCacheTypes) {
      if (type == DType::kQ8_0 && k.n % 32 != 0) continue;
      CAPTURE(k.n);
      CAPTURE(k.ratio);
      CAPTURE(dtype_name(type));
      Paged p(k.parts, 1, DType::kF32, 8);
      const CompressRowsArgs host = compress_problem(p, k, type);
      OnDevice device;
      const CompressRowsArgs a = device.node(host);
      const std::vector<std::byte> before(host.cache.data, host.cache.data + host.cache.size_bytes());
      run_side_by_side(device, a);
      run_reference(host);
      const std::vector<float> pending = device.fetch<float>(a.pending);
      CHECK(std::equal(pending.begin(), pending.end(), host.pending.as<float>()));
      const std::vector<std::byte> got = device.fetch<std::byte>(a.cache);
      const size_t bytes = row_bytes(type, k.n);
      std::vector<float> mine(static_cast<size_t>(k.n)), theirs(static_cast<size_t>(k.n));
      int n_made = 0;
      for (int64_t i = 0; i < host.cache.n_rows(); ++i) {
        const std::byte* row = host.cache.data + static_cast<size_t>(i) * bytes;
        if (std::memcmp(row, before.data() + static_cast<size_t>(i) * bytes, bytes) == 0) {
          REQUIRE(std::memcmp(row, got.data() + static_cast<size_t>(i) * bytes, bytes) == 0);
          continue;
        }
        ++n_made;
        dequantize_row(type, row, theirs.data(), k.n);
        dequantize_row(type, got.data() + static_cast<size_t>(i) * bytes, mine.data(), k.n);
        // A value between two steps may fall to either side.
        const double step = type == DType::kF32    ? 5e-6
                            : type == DType::kF16  ? 1e-3
                            : type == DType::kBF16 ? 8e-3
                                                   : 7e-2;
        REQUIRE(worst_difference(mine, theirs.data()) < step);
      }
      CHECK(n_made > 0);
    }
  }
}

TEST_CASE("cuda: a row is the same bits whether its tokens come in one step or one by one") {
  const CompressCase k{64, true, 4, 8, {{5, 20}}};
  Paged p(k.parts, 1, DType::kF32, 1);
  const CompressRowsArgs host = compress_problem(p, k, DType::kBF16);
  OnDevice together, apart;
  const CompressRowsArgs all = together.node(host), one = apart.node(host);
  run_side_by_side(together, all);
  for (int64_t t = 0; t < p.n_tokens(); ++t) {
    CompressRowsArgs a = one;
    for (Tensor* x : {&a.kv, &a.gate, &a.step.positions, &a.step.slots, &a.step.sequence_of}) {
      const auto row = static_cast<int64_t>(row_bytes(x->dtype, x->shape.rank == 2 ? x->dim(1) : 1));
      x->data += t * row;
      x->shape.dims[0] = 1;
    }
    run_side_by_side(apart, a);
  }
  CHECK(together.fetch<std::byte>(all.cache) == apart.fetch<std::byte>(one.cache));
}

TEST_CASE("cuda: rows and heads that stand side by side are the bits that they are apart") {
  const CompressCase wide{512, true, 4, 32, {{3, 1}, {62, 6}}}, narrow{128, true, 4, 32, {{3, 1}, {62, 6}}};
  Paged p(wide.parts, 1, DType::kF32, 4);
  const int64_t t = p.n_tokens(), heads = 3, n = 512;
  const CompressRowsArgs rows = compress_problem(p, wide, DType::kBF16),
                         index = compress_problem(p, narrow, DType::kF16);
  const Tensor table = p.h.floats({t, 32, 2});
  const StoreLatentArgs latent{p.h.floats({t, n}),
                               p.h.floats({n}),
                               table,
                               index.step.slots,
                               p.h.bytes(DType::kBF16, {p.cache.dim(0), 64, n}),
                               1e-6F};
  const RmsNormArgs norm{p.h.floats({t * heads, n}), {}, p.h.make(DType::kF32, {t * heads, n}), 1e-6F};
  const RotateHeadsArgs rotate{norm.out.reshaped({t, heads, n}), table, p.h.make(DType::kF32, {t, heads, n}), 448};
  const RotateHeadsArgs query{p.h.floats({t, 5, 128}), table, p.h.make(DType::kF32, {t, 5, 128}), 64};
  const LayerNormArgs key_norm{p.h.floats({t, 128}), p.h.floats({128}), p.h.floats({128}),
                               p.h.make(DType::kF32, {t, 128}), 1e-6F};
  const RotateHeadsArgs key_rotate{key_norm.out.reshaped({t, 1, 128}), table, p.h.make(DType::kF32, {t, 1, 128}), 0,
                                   RopePairing::kHalves};
  const StoreRowsArgs key{key_rotate.out.reshaped({t, 128}), index.step.slots,
                          p.h.bytes(DType::kBF16, {p.cache.dim(0), 64, 128})};
  const auto run = [&](bool together) {
    OnDevice device;
    const CompressRowsArgs a = device.node(rows), b = device.node(index);
    const StoreLatentArgs c = device.node(latent);
    const RmsNormArgs d = device.node(norm);
    RotateHeadsArgs e = device.node(rotate), g = device.node(key_rotate);
    e.x = d.out.reshaped(e.x.shape);
    const RotateHeadsArgs f = device.node(query);
    const LayerNormArgs i = device.node(key_norm);
    g.x = i.out.reshaped(g.x.shape);
    StoreRowsArgs k = device.node(key);
    k.x = g.out.reshaped(k.x.shape);
    if (together) {
      run_side_by_side(device, i, g, k, c, a, b, d, e, f);
    } else {
      run_side_by_side(device, a);
      run_side_by_side(device, b);
      run_side_by_side(device, c);
      run_side_by_side(device, d, e);
      run_side_by_side(device, f);
      run_side_by_side(device, i, g, k);
    }
    std::vector<std::byte> all;
    for (const Tensor& x : {a.pending, a.cache, b.pending, b.cache, c.cache, e.out, f.out, k.cache}) {
      const std::vector<std::byte> bytes = device.fetch<std::byte>(x);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  };
  CHECK(run(true) == run(false));
}

namespace {

struct AttendCase {
  int64_t n_heads, n;
  int64_t window, ratio, top_k;  ///< ratio 0: the window alone; top_k 0: no choice
  DType type;
  std::vector<Part> parts;
};

CompressedAttentionArgs attend_problem(Paged& p, const AttendCase& k) {
  const int64_t t = p.n_tokens();
  CompressedAttentionArgs a;
  a.q = p.h.floats({t, k.n_heads, k.n});
  a.window = p.cache;
  if (k.ratio > 0) a.compressed = rows_of_tokens(p, k.parts, k.n, k.type, k.ratio, [&] { return p.h.floats({k.n}); });
  a.sinks = p.h.floats({k.n_heads}, 2);
  a.step = p.step;
  a.out = p.h.make(DType::kF32, {t, k.n_heads * k.n});
  a.scale = 1.0F / std::sqrt(static_cast<float>(k.n));
  a.window_tokens = k.window;
  a.ratio = k.ratio;
  if (k.top_k == 0) return a;
  a.chosen = p.h.ints({t, k.top_k}, [](int64_t) { return -1; });
  for (int64_t i = 0; i < t; ++i) {
    const int64_t n = (a.step.positions.as<int32_t>()[i] + 1) / k.ratio;
    int64_t left = std::min(n, k.top_k);
    for (int64_t w = 0, at = 0; w < n && left > 0; ++w) {
      if (w % 3 != 1 && n - w > left) continue;
      a.chosen.row_as<int32_t>(i)[at++] = static_cast<int32_t>(w);
      --left;
    }
  }
  return a;
}

std::vector<float> run_attention(const CompressedAttentionArgs& host) {
  OnDevice device;
  const CompressedAttentionArgs a = device.node(host);
  device.workspace(cuda::compressed_attention_workspace(a));
  cuda::compressed_attention(a, device.c);
  return device.fetch<float>(a.out);
}

}  // namespace

TEST_CASE("cuda: attention to a window and compressed rows agrees with the reference") {
  const AttendCase cases[] = {
      {64, 512, 128, 0, 0, DType::kBF16, {{0, 1}, {200, 1}}},  // V4-Flash: the window alone
      {64, 512, 128, 4, 40, DType::kBF16, {{300, 1}, {62, 2}}},
      {64, 512, 128, 128, 0, DType::kBF16, {{383, 1}, {126, 2}}},
      {20, 512, 128, 4, 16, DType::kF16, {{130, 18}}},  // heads that do not fill the last group; folded by one block
      {16, 512, 128, 4, 0, DType::kQ8_0, {{150, 1}}},
      {16, 512, 40, 4, 9, DType::kF8_E4M3, {{150, 1}}},
      {4, 64, 32, 4, 8, DType::kF32, {{63, 2}, {3, 1}, {100, 1}}},
      {3, 33, 7, 2, 0, DType::kF32, {{64, 20}}},
      {2, 512, 128, 4, 12, DType::kF32, {{140, 1}}},
  };
  for (const AttendCase& k : cases) {
    CAPTURE(k.n_heads);
    CAPTURE(k.ratio);
    CAPTURE(dtype_name(k.type));
    Paged p(k.parts, k.n, k.type, 8);
    const CompressedAttentionArgs a = attend_problem(p, k);
    run_reference(a);
    const bool is_rounded = k.type != DType::kF32;
    CHECK(worst_difference(run_attention(a), a.out.as<float>()) < (is_rounded ? 1.5e-2 : 1e-5));
  }
}

TEST_CASE("cuda: a token's compressed attention is the same bits in any company, and with a choice of all its rows") {
  for (const DType type : {DType::kBF16, DType::kF32}) {
    CAPTURE(dtype_name(type));
    const int64_t n = type == DType::kBF16 ? 512 : 64;
    const AttendCase k{3, n, 50, 4, 0, type, {{180, 20}}};
    Paged p(k.parts, n, type, 4);
    CompressedAttentionArgs all = attend_problem(p, k);
    const std::vector<float> together = run_attention(all);  // folded by one block
    for (const int64_t t : {int64_t{0}, int64_t{19}}) {
      CompressedAttentionArgs one = all;
      one.q = all.q.slice(t, 1), one.out = all.out.slice(t, 1);
      one.step.positions = Tensor(DType::kI32, {1}, all.step.positions.as<int32_t>() + t);
      one.step.sequence_of = Tensor(DType::kI32, {1}, all.step.sequence_of.as<int32_t>() + t);
      const std::vector<float> alone = run_attention(one);  // a block for each piece
      CHECK(std::equal(alone.begin(), alone.end(), together.begin() + t * 3 * n));
    }
    all.chosen = p.h.ints({20, 60}, [&](int64_t i) {
      return i % 60 < (all.step.positions.as<int32_t>()[i / 60] + 1) / 4 ? static_cast<int32_t>(i % 60) : -1;
    });
    CHECK(run_attention(all) == together);
  }
}

TEST_CASE("cuda: the result is rotated on the way as rotate_heads does it, and written in int8 as well") {
  for (const auto& [n_heads, n, type] :
       {std::tuple{int64_t{16}, int64_t{512}, DType::kBF16}, {3, 64, DType::kF32}, {3, 33, DType::kF32}}) {
    const AttendCase k{n_heads, n, 30, 4, 0, type, {{70, 2}}};
    Paged p(k.parts, n, type, 2);
    const CompressedAttentionArgs host = attend_problem(p, k);
    const Tensor heads = host.out.reshaped({2, n_heads, n});
    const RotateHeadsArgs rotate{heads,
                                 p.h.floats({2, 8, 2}),
                                 p.h.make(DType::kF32, heads.shape),
                                 static_cast<int>(n - 16),
                                 RopePairing::kAdjacent,
                                 true};
    OnDevice device;
    const CompressedAttentionArgs a = device.node(host);
    device.workspace(cuda::compressed_attention_workspace(a));
    RotateHeadsArgs on = device.node(rotate);
    on.x = a.out.reshaped(heads.shape);
    cuda::compressed_attention(a, device.c);
    run_side_by_side(device, on);
    const std::vector<float> apart = device.fetch<float>(on.out);
    on.out = device.poisoned(rotate.out);
    const Tensor q = device.poisoned(p.h.make(DType::kI8, {2, n_heads * n})),
                 scales = device.poisoned(p.h.make(DType::kI64, {2, std::max<int64_t>(1, n_heads * n / 32)}));
    cuda::QuantizedRows rows;
    if (n % 32 == 0) rows = {q.as<int8_t>(), scales.as<cuda::ActScale>(), n_heads * n};
    cuda::attend_and_rotate(a, on, rows, device.c);
    CHECK(device.fetch<float>(on.out) == apart);
    if (n % 32 != 0) continue;
    const std::vector<int8_t> codes = device.fetch<int8_t>(q);
    const std::vector<cuda::ActScale> steps = device.fetch<cuda::ActScale>(scales);
    for (size_t i = 0; i < codes.size(); ++i)
      REQUIRE(std::fabs(apart[i] - steps[i / 32].d * static_cast<float>(codes[i])) <= 0.5001F * steps[i / 32].d);
  }
}
