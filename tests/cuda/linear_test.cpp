// Weights on the device, activations in int8, linear layers.
#include <doctest/doctest.h>

#include <bit>
#include <cstring>
#include <numeric>

#include "core/error.h"
#include "cuda/matmul_fixture.h"

using namespace fathom;
using namespace fathom::test;
using cuda::MatmulContext;

namespace {

std::string name_of(DType type) { return std::string(dtype_name(type)); }

/// Sizes of rows that a type has: one block, odd numbers of blocks, a real one.
std::vector<int64_t> depths(DType type) {
  const int block = dtype_info(type).block_elements;
  if (block == 1) return {1, 7, 32, 161, 576};
  if (block == 32) return {32, 96, 1408};
  return {256, 768, 1536};
}

std::vector<float> run_linear(const TestWeights& w, const std::vector<float>& x, int64_t n_tokens) {
  const DeviceArray<float> device_x(x);
  const DeviceArray<float> out(static_cast<size_t>(n_tokens * w.rows));
  const LinearArgs args{device_x.tensor(DType::kF32, {n_tokens, w.k}), w.tensor(),
                        out.tensor(DType::kF32, {n_tokens, w.rows})};
  cuda::check_weights(args);
  const TestContext context(cuda::linear_workspace(args));
  cuda::linear(args, context.context());
  context.check();
  return out.download();
}

/// Quantized products are exact in each block; what is left are f32 roundings of k / 16 terms.
constexpr double kTolerance = 2e-6;

void check_linear(const TestWeights& w, const std::vector<float>& x, int64_t n_tokens) {
  const std::vector<float> y = run_linear(w, x, n_tokens);
  const std::vector<float> act = w.quantized() ? rounded(x) : x;
  int wrong = 0;
  for (int64_t t = 0; t < n_tokens; ++t) {
    for (int64_t r = 0; r < w.rows; ++r) {
      const Product p = product(w.row(0, r), act.data() + t * w.k, w.k);
      const float got = y[static_cast<size_t>(t * w.rows + r)];
      if (!(std::fabs(got - p.value) <= kTolerance * p.norm) && ++wrong == 1) {
        FAIL_CHECK("token " << t << " row " << r << ": expected " << p.value << ", got " << got << ", norm " << p.norm);
      }
    }
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("the planes of a device row hold every byte of the file's row once, fields at multiples of their alignment") {
  for (const DType type : weight_types()) {
    CAPTURE(name_of(type));
    const cuda::WeightLayout layout = cuda::weight_layout(type);
    CHECK(layout.block_bytes == dtype_info(type).block_bytes);
    CHECK(layout.block_elements == dtype_info(type).block_elements);
    CHECK(layout.bytes_before(layout.n_planes) == layout.block_bytes);
    for (int64_t n = 1; n <= 57; n = n < 20 ? n + 1 : n + 9) {
      CAPTURE(n);
      const int64_t bytes = n * layout.block_bytes;
      std::vector<int> hits(static_cast<size_t>(bytes), 0);
      for (int64_t i = 0; i < bytes; ++i) {
        const int64_t at = cuda::device_offset(layout, n, i);
        if (at >= 0 && at < bytes) ++hits[static_cast<size_t>(at)];
      }
      CHECK(std::all_of(hits.begin(), hits.end(), [](int h) { return h == 1; }));
      // A field of b bytes is loaded in pieces of the largest power of two that divides b, at most 16.
      for (int p = 0; p < layout.n_planes; ++p) {
        const int piece = std::min(16, layout.planes[p].bytes & -layout.planes[p].bytes);
        CHECK(n * layout.bytes_before(p) % piece == 0);
      }
    }
    CHECK(cuda::weight_row_bytes(type, 3 * layout.block_elements) % 16 == 0);
  }
  CHECK(!cuda::supports_weights(DType::kI32));
  CHECK(cuda::weight_layout(DType::kI32).block_elements == 0);
}

TEST_CASE("weights are arranged as the layout says, from any address, and padding stays as it was") {
  std::mt19937 rng(1);
  for (const DType type : weight_types()) {
    CAPTURE(name_of(type));
    const cuda::WeightLayout layout = cuda::weight_layout(type);
    const int64_t n_blocks = layout.block_elements == 1 ? 37 : 5, k = n_blocks * layout.block_elements, rows = 3;
    const size_t file_row = row_bytes(type, k), device_row = static_cast<size_t>(cuda::weight_row_bytes(type, k));
    std::vector<std::byte> file(1 + rows * file_row);
    for (std::byte& b : file) b = static_cast<std::byte>(rng());
    const DeviceArray<std::byte> raw(file);
    const DeviceArray<std::byte> out(rows * device_row);
    cuda::arrange_weights(type, raw.data() + 1, rows, k, out.data(), nullptr);
    const std::vector<std::byte> got = out.download();
    std::vector<std::byte> expected(rows * device_row, std::byte{0xff});
    for (size_t r = 0; r < rows; ++r) {
      for (size_t i = 0; i < file_row; ++i)
        expected[r * device_row + static_cast<size_t>(cuda::device_offset(layout, n_blocks, static_cast<int64_t>(i)))] =
            file[1 + r * file_row + i];
    }
    CHECK(got == expected);
  }
}

TEST_CASE("every type is taken apart on the device as the scalar definition says") {
  std::mt19937 rng(2);
  for (const DType type : weight_types()) {
    CAPTURE(name_of(type));
    for (const int64_t k : depths(type)) {
      CAPTURE(k);
      const TestWeights w(type, 1, 3, k, rng);
      const TestContext context(0);
      const DeviceArray<float> f32(static_cast<size_t>(3 * k));
      cuda::decode_weights(w.tensor(), f32.tensor(DType::kF32, {3, k}), context.context());
      const DeviceArray<uint16_t> bf16(static_cast<size_t>(3 * k));
      cuda::decode_weights(w.tensor(), bf16.tensor(DType::kBF16, {3, k}), context.context());
      const DeviceArray<int32_t> ids(std::vector<int32_t>{2, 0, 2, 1});
      const DeviceArray<float> rows(static_cast<size_t>(4 * k));
      cuda::embed_rows({w.tensor(), ids.tensor(DType::kI32, {4}), rows.tensor(DType::kF32, {4, k})}, context.context());
      const std::vector<float> got = f32.download(), embedded = rows.download();
      const std::vector<uint16_t> short_got = bf16.download();
      int wrong = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        // scale * q + min may be rounded once or twice.
        const float tolerance =
            3e-7f * (std::fabs(w.values[i]) + 0.2f * static_cast<float>(type == DType::kQ4_1 || type == DType::kQ5_1 ||
                                                                        type == DType::kQ2_K || type == DType::kQ4_K ||
                                                                        type == DType::kQ5_K));
        wrong += !(std::fabs(got[i] - w.values[i]) <= tolerance);
        wrong += short_got[i] != f32_to_bf16(got[i]);
      }
      const int64_t order[4] = {2, 0, 2, 1};
      for (int64_t r = 0; r < 4; ++r) {
        for (int64_t i = 0; i < k; ++i)
          wrong += embedded[static_cast<size_t>(r * k + i)] != got[static_cast<size_t>(order[r] * k + i)];
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("activations are rounded to nearest with one scale for 32 and the sums of their halves") {
  std::mt19937 rng(3);
  const int64_t k = 224, n = 5;
  std::vector<float> x = random_floats(n * k, rng);
  std::fill(x.begin() + 32, x.begin() + 64, 0.0f);
  const DeviceArray<float> device_x(x);
  const DeviceArray<std::byte> memory(cuda::quantized_rows_bytes(n, k));
  const cuda::QuantizedRows rows = cuda::quantized_rows_at(memory.data(), n, k);
  cuda::quantize_rows(device_x.tensor(DType::kF32, {n, k}), rows, nullptr);
  const std::vector<std::byte> got = memory.download();
  const auto* q = reinterpret_cast<const int8_t*>(got.data());
  std::vector<cuda::ActScale> scales(n * k / 32);
  std::memcpy(scales.data(), got.data() + (reinterpret_cast<std::byte*>(rows.scales) - memory.data()),
              scales.size() * sizeof(cuda::ActScale));
  int wrong = 0;
  for (size_t b = 0; b < scales.size(); ++b) {
    float top = 0;
    for (size_t i = 0; i < 32; ++i) top = std::max(top, std::fabs(x[32 * b + i]));
    wrong += scales[b].d != top / 127.0f;
    int sums[2] = {0, 0};
    for (size_t i = 0; i < 32; ++i) {
      const int expected = top == 0 ? 0 : static_cast<int>(std::nearbyint(x[32 * b + i] * (127.0f / top)));
      wrong += q[32 * b + i] != expected;
      sums[i / 16] += expected;
    }
    wrong += scales[b].sum[0] != sums[0] || scales[b].sum[1] != sums[1];
  }
  CHECK(wrong == 0);
}

TEST_CASE("products agree with float64 on decoded weights and rounded activations: every type, odd and real sizes") {
  unsigned seed = 10;
  for (const DType type : weight_types()) {
    for (const int64_t k : depths(type)) {
      for (const int64_t n_tokens : {1, 3, 17}) {
        const int64_t rows = n_tokens == 17 ? 67 : k > 1000 ? 9 : 35;
        ++seed;
        CAPTURE(name_of(type));
        CAPTURE(k);
        CAPTURE(rows);
        CAPTURE(n_tokens);
        CAPTURE(seed);
        std::mt19937 rng(seed);
        const TestWeights w(type, 1, rows, k, rng);
        check_linear(w, random_floats(static_cast<size_t>(n_tokens * k), rng), n_tokens);
      }
    }
  }
}

TEST_CASE("every number of tokens from 0 to 18, and beyond a tile, agrees with float64") {
  for (const DType type : {DType::kQ8_0, DType::kQ4_K, DType::kQ6_K, DType::kF16}) {
    for (int64_t n_tokens = 0; n_tokens <= 66; n_tokens += n_tokens < 18 ? 1 : 24) {
      CAPTURE(name_of(type));
      CAPTURE(n_tokens);
      std::mt19937 rng(7);
      const TestWeights w(type, 1, 21, 512, rng);
      check_linear(w, random_floats(static_cast<size_t>(n_tokens * 512), rng), n_tokens);
    }
  }
}

TEST_CASE("up to 16 tokens a step, a token's product is the same bits alone and in any company") {
  for (const DType type : weight_types()) {
    CAPTURE(name_of(type));
    std::mt19937 rng(11);
    const int64_t k = 768, n = 16;
    const TestWeights w(type, 1, 37, k, rng);
    const std::vector<float> x = random_floats(static_cast<size_t>(n * k), rng);
    const std::vector<float> all = run_linear(w, x, n);
    for (const int64_t count : {1, 2, 5, 9}) {
      for (const int64_t first : {int64_t{0}, n - count}) {
        const std::vector<float> some = run_linear(w, {x.begin() + first * k, x.begin() + (first + count) * k}, count);
        CHECK(std::memcmp(some.data(), all.data() + first * w.rows, some.size() * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("weights at the largest magnitudes of every format do not overflow the integer sums") {
  for (const DType type : weight_types()) {
    if (!dtype_info(type).is_quantized) continue;
    for (const int byte : {0x00, 0xff, 0x80, 0x77}) {
      CAPTURE(name_of(type));
      CAPTURE(byte);
      std::mt19937 rng(1);
      TestWeights w(type, 1, 3, 512, rng);
      const DTypeInfo& info = dtype_info(type);
      std::fill(w.file.begin(), w.file.end(), static_cast<std::byte>(byte));
      const uint16_t one = f32_to_f16(1.0f);
      for (size_t at = 0; at < w.file.size(); at += static_cast<size_t>(info.block_bytes)) {
        for (const size_t offset : half_offsets(type)) std::memcpy(w.file.data() + at + offset, &one, 2);
        if (type == DType::kMXFP4) w.file[at] = std::byte{127};
        if (type == DType::kIQ1_M) w.file[at + 55] = (w.file[at + 55] & std::byte{0x0f}) | std::byte{0x20};
      }
      for (size_t r = 0; r < 3; ++r)
        dequantize_row(type, w.file.data() + r * row_bytes(type, 512), w.values.data() + r * 512, 512);
      const DeviceArray<std::byte> raw(w.file);
      cuda::arrange_weights(type, raw.data(), 3, 512, w.device->data(), nullptr);
      cuda_ok(cudaDeviceSynchronize());
      for (const float sign : {1.0f, -1.0f}) {
        check_linear(w, std::vector<float>(512, sign), 1);
        check_linear(w, std::vector<float>(17 * 512, sign), 17);
      }
    }
  }
}

TEST_CASE("a product adds what it is given, takes activations already rounded, and writes rows that are apart") {
  std::mt19937 rng(21);
  for (const int64_t n_tokens : {2, 20}) {
    CAPTURE(n_tokens);
    const int64_t k = 256, rows = 19, apart = 24;
    const TestWeights w(DType::kQ5_K, 1, rows, k, rng);
    const std::vector<float> x = random_floats(static_cast<size_t>(n_tokens * k), rng),
                             plain = run_linear(w, x, n_tokens);
    const std::vector<float> base = random_floats(static_cast<size_t>(n_tokens * apart), rng);
    const DeviceArray<float> device_x(x), out(base);
    const DeviceArray<std::byte> memory(cuda::quantized_rows_bytes(n_tokens, k));
    const cuda::QuantizedRows q = cuda::quantized_rows_at(memory.data(), n_tokens, k);
    cuda::quantize_rows(device_x.tensor(DType::kF32, {n_tokens, k}), q, nullptr);
    Tensor y = out.tensor(DType::kF32, {n_tokens, rows});
    y.strides_bytes[0] = apart * 4;
    const TestContext context(0);  // no workspace: x is there already
    cuda::linear({device_x.tensor(DType::kF32, {n_tokens, k}), w.tensor(), y}, context.context(),
                 {.quantized_x = q, .add = y});
    const std::vector<float> got = out.download();
    int wrong = 0;
    for (int64_t t = 0; t < n_tokens; ++t) {
      for (int64_t r = 0; r < apart; ++r) {
        const auto i = static_cast<size_t>(t * apart + r);
        wrong += got[i] != (r < rows ? plain[static_cast<size_t>(t * rows + r)] + base[i] : base[i]);
      }
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("products of one x in a group equal the products alone") {
  std::mt19937 rng(22);
  const int64_t k = 256;
  const TestWeights a(DType::kQ4_K, 1, 40, k, rng), b(DType::kQ4_K, 1, 7, k, rng), c(DType::kQ8_0, 1, 33, k, rng),
      d(DType::kF32, 1, 5, k, rng);
  for (const int64_t n_tokens : {1, 4, 18}) {
    CAPTURE(n_tokens);
    const std::vector<float> x = random_floats(static_cast<size_t>(n_tokens * k), rng);
    const DeviceArray<float> device_x(x);
    std::vector<LinearArgs> products;
    std::vector<std::unique_ptr<DeviceArray<float>>> outs;
    size_t workspace = 0;
    for (const TestWeights* w : {&a, &c, &b, &d}) {
      outs.push_back(std::make_unique<DeviceArray<float>>(static_cast<size_t>(n_tokens * w->rows)));
      products.push_back({device_x.tensor(DType::kF32, {n_tokens, k}), w->tensor(),
                          outs.back()->tensor(DType::kF32, {n_tokens, w->rows})});
      workspace = std::max(workspace, cuda::linear_workspace(products.back()));
    }
    const TestContext context(workspace);
    cuda::linear_group(products.data(), 4, context.context());
    context.check();
    size_t i = 0;
    for (const TestWeights* w : {&a, &c, &b, &d}) CHECK(outs[i++]->download() == run_linear(*w, x, n_tokens));
  }
}

TEST_CASE("a product for each head reads and writes that head's part alone") {
  std::mt19937 rng(23);
  for (const DType type : {DType::kQ8_0, DType::kF16}) {
    for (const int64_t n_tokens : {1, 5, 19}) {
      CAPTURE(name_of(type));
      CAPTURE(n_tokens);
      const int64_t heads = 3, k = 64, width = 96, rows = 21, out_width = 32;
      const TestWeights w(type, heads, rows, k, rng);
      const std::vector<float> x = random_floats(static_cast<size_t>(n_tokens * heads * width), rng);
      const DeviceArray<float> device_x(x), out(static_cast<size_t>(n_tokens * heads * out_width));
      Tensor tx = device_x.tensor(DType::kF32, {n_tokens, heads, width}),
             ty = out.tensor(DType::kF32, {n_tokens, heads, out_width});
      tx.shape.dims[2] = k;  // the first k of each head's width
      ty.shape.dims[2] = rows;
      const cuda::HeadLinearArgs args{tx, w.tensor(), ty};
      const TestContext context(cuda::head_linear_workspace(args));
      cuda::head_linear(args, context.context());
      context.check();
      const std::vector<float> got = out.download();
      int wrong = 0;
      for (int64_t t = 0; t < n_tokens; ++t) {
        for (int64_t h = 0; h < heads; ++h) {
          const float* from = x.data() + (t * heads + h) * width;
          std::vector<float> act(from, from + k);
          if (w.quantized()) act = rounded(act);
          for (int64_t r = 0; r < out_width; ++r) {
            const float y = got[static_cast<size_t>((t * heads + h) * out_width + r)];
            if (r >= rows) {
              wrong += !std::isnan(y);
              continue;
            }
            const Product p = product(w.row(h, r), act.data(), k);
            wrong += !(std::fabs(y - p.value) <= kTolerance * p.norm);
          }
        }
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("weights of no known type are refused with operation and type") {
  const float nothing[4] = {};
  LinearArgs args{Tensor(DType::kF32, {1, 4}, const_cast<float*>(nothing)),
                  Tensor(DType::kI8, {4, 4}, const_cast<float*>(nothing)),
                  {}};
  CHECK_THROWS_WITH_AS(cuda::check_weights(args), doctest::Contains("linear has no kernel for weights of type i8"),
                       Error);
  GatedFfnArgs ffn;
  ffn.weights.gate = Tensor(DType::kQ8_0, {32, 32}, nullptr);
  ffn.weights.up = Tensor(DType::kQ4_0, {32, 32}, nullptr);
  ffn.weights.down = Tensor(DType::kQ4_0, {32, 32}, nullptr);
  CHECK_THROWS_WITH_AS(cuda::check_weights(ffn), doctest::Contains("gate and up weights of two types"), Error);
}
