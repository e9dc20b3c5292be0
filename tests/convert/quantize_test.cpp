#include <functional>

#include "checkpoint_fixture.h"
#include "convert/convert.h"
#include "convert/imatrix.h"
#include "convert/type_mix.h"
#include "core/quant/dequantize.h"
#include "core/quant/quantize.h"
#include "io/gguf.h"
#include "io/gguf_writer.h"

using namespace fathom;

namespace {

const std::string kV2 = FATHOM_FIXTURES "/models/v2/v2-bf16.gguf";

std::string message_of(const std::function<void()>& act, ErrorCode code) {
  try {
    act();
  } catch (const Error& error) {
    CHECK(error.code() == code);
    return error.what();
  }
  return "";
}

QuantizeOptions options(const std::string& in, const std::string& out, const std::string& type) {
  QuantizeOptions o;
  o.in = in;
  o.out = out;
  o.type = type;
  o.n_threads = 2;
  return o;
}

/// The same weights as floats.
const std::string& v2_f32() {
  static const TempFolder folder;
  static const std::string path = [] {
    quantize_file(options(kV2, folder / "v2-f32.gguf", "f32"));
    return folder / "v2-f32.gguf";
  }();
  return path;
}

std::string legacy_imatrix(const std::string& name, const std::vector<float>& values, int32_t n_calls) {
  std::string out;
  const auto i32 = [&](int32_t v) { out.append(reinterpret_cast<const char*>(&v), 4); };
  i32(1);
  i32(static_cast<int32_t>(name.size()));
  out += name;
  i32(n_calls);
  i32(static_cast<int32_t>(values.size()));
  for (const float v : values) {
    const float sum = v * static_cast<float>(n_calls);
    out.append(reinterpret_cast<const char*>(&sum), 4);
  }
  i32(7);
  i32(5);
  return out + "a.txt";
}

}  // namespace

TEST_CASE("every type that can be written is what quantize_row makes of each row") {
  const TempFolder folder;
  const GgufModel in = GgufModel::open(v2_f32());
  for (const char* type : {"f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "mxfp4"}) {
    CAPTURE(type);
    QuantizeOptions o = options(v2_f32(), folder / "out.gguf", "copy");
    o.tensor_types = {std::string("ffn_|attn_=") + type};
    quantize_file(o);
    const GgufModel out = GgufModel::open(folder / "out.gguf");
    REQUIRE(out.tensors().size() == in.tensors().size());
    for (const auto& [name, t] : in.tensors()) {
      CAPTURE(name);
      const Tensor& got = *out.find(name);
      const bool is_named = t.shape.rank > 1 && name.find("gate_inp") == std::string::npos && name.starts_with("blk.");
      CHECK(dtype_name(got.dtype) == (is_named ? type : "f32"));
      const int64_t width = t.shape.last();
      std::vector<std::byte> row(row_bytes(got.dtype, width));
      bool agrees = true;
      for (int64_t r = 0; r < t.n_rows(); ++r) {
        quantize_row(got.dtype, t.as<float>() + r * width, row.data(), width, nullptr);
        agrees &= std::memcmp(row.data(), got.data + static_cast<size_t>(r) * row.size(), row.size()) == 0;
      }
      CHECK(agrees);
    }
  }
}

TEST_CASE("a round trip through f16 and bf16 of a model that both hold exactly gives the file's own values") {
  const TempFolder folder;
  quantize_file(options(v2_f32(), folder / "a.gguf", "bf16"));
  quantize_file(options(folder / "a.gguf", folder / "b.gguf", "f16"));
  quantize_file(options(folder / "b.gguf", folder / "c.gguf", "f32"));
  const GgufModel a = GgufModel::open(v2_f32()), c = GgufModel::open(folder / "c.gguf");
  for (const auto& [name, t] : a.tensors())
    CHECK_MESSAGE(std::memcmp(t.data, c.find(name)->data, t.size_bytes()) == 0, name);
  for (const auto& [key, value] : a.metadata().all()) {
    if (key != "general.file_type") CHECK_MESSAGE(*c.metadata().find(key) == value, key);
  }
}

TEST_CASE("metadata keeps its types, the file type follows the mix") {
  const TempFolder folder;
  quantize_file(options(kV2, folder / "out.gguf", "q4_k_m"));
  const GgufModel in = GgufModel::open(kV2), out = GgufModel::open(folder / "out.gguf");
  for (const auto& [key, stored] : in.files().front().stored_types)
    CHECK_MESSAGE(out.files().front().stored_types.at(key).text() == stored.text(), key);
  CHECK(out.metadata().integer("general.file_type") == 15);
}

TEST_CASE("a dry run tells types and sizes and writes nothing") {
  const TempFolder folder;
  QuantizeOptions o = options(kV2, folder / "out.gguf", "q4_k_m");
  o.is_dry_run = true;
  const WriteReport planned = quantize_file(o);
  CHECK(std::filesystem::is_empty(folder.path()));
  o.is_dry_run = false;
  const WriteReport written = quantize_file(o);
  CHECK(planned.to_bytes == written.to_bytes);
  uint64_t sum = 0;
  const GgufModel out = GgufModel::open(o.out);
  for (const auto& [name, t] : out.tensors()) sum += t.size_bytes();
  CHECK(sum == planned.to_bytes);
}

TEST_CASE("rules: the first that matches counts, vectors and routers stay, bad rules are refused") {
  const TempFolder folder;
  QuantizeOptions o = options(kV2, folder / "out.gguf", "q8_0");
  o.tensor_types = {"blk\\.1\\.ffn_down_exps=q5_1", "ffn_down=q4_0", "ffn_=bf16"};
  quantize_file(o);
  const GgufModel out = GgufModel::open(o.out);
  CHECK(out.find("blk.1.ffn_down_exps.weight")->dtype == DType::kQ5_1);
  CHECK(out.find("blk.2.ffn_down_exps.weight")->dtype == DType::kQ4_0);
  CHECK(out.find("blk.1.ffn_up_exps.weight")->dtype == DType::kBF16);
  CHECK(out.find("blk.1.ffn_norm.weight")->dtype == DType::kF32);
  CHECK(out.find("blk.1.ffn_gate_inp.weight")->dtype == DType::kF32);
  CHECK(out.find("output.weight")->dtype == DType::kQ8_0);
  for (const char* bad : {"ffn_down", "=q8_0", "ffn_down=q9_9", "ffn_(=q8_0", "no_such_tensor=q8_0", "ffn_down=i32"}) {
    CAPTURE(bad);
    o.tensor_types = {bad};
    CHECK(message_of([&] { quantize_file(o); }, ErrorCode::kUsage).find("--tensor-type") == 0);
  }
  o.tensor_types.clear();
  o.type = "q4_k_xxl";
  CHECK(message_of([&] { quantize_file(o); }, ErrorCode::kUsage).find("--type") == 0);
}

TEST_CASE("rows that a type's blocks do not fit get the type that llama.cpp gives them") {
  CHECK(fitting_type(DType::kQ4_K, 1408) == DType::kQ5_0);
  CHECK(fitting_type(DType::kQ5_K, 1408) == DType::kQ5_1);
  CHECK(fitting_type(DType::kQ6_K, 10944) == DType::kQ8_0);
  for (const DType type : {DType::kQ2_K, DType::kQ3_K, DType::kIQ4_XS, DType::kIQ2_XXS, DType::kIQ3_S, DType::kIQ1_M})
    CHECK(fitting_type(type, 128) == DType::kIQ4_NL);
  CHECK(fitting_type(DType::kQ4_K, 2048) == DType::kQ4_K);
  CHECK(fitting_type(DType::kQ8_0, 48) == DType::kF16);
}

TEST_CASE("q4_k_m of V2-Lite's shapes gives the counts of the files people have") {
  // 27 layers, kv_b whole, experts of width 1408: 229 q4_K, 14 q5_0, 13 q8_0, 13 q6_K.
  const TypeMix mix = TypeMix::named("Q4_K_M");
  const MixContext context{27, 64, 1, false};
  std::map<DType, int> counts;
  const auto add = [&](const std::string& name, int64_t width) {
    ++counts[fitting_type(mix.type_of(name, context), width)];
  };
  add("token_embd.weight", 2048);
  add("output.weight", 2048);
  for (int i = 0; i < 27; ++i) {
    const std::string b = "blk." + std::to_string(i) + ".";
    add(b + "attn_q.weight", 2048);
    add(b + "attn_kv_a_mqa.weight", 2048);
    add(b + "attn_kv_b.weight", 512);
    add(b + "attn_output.weight", 2048);
    for (const std::string& part :
         i == 0 ? std::vector<std::string>{""} : std::vector<std::string>{"_exps", "_shexp"}) {
      add(b + "ffn_gate" + part + ".weight", 2048);
      add(b + "ffn_up" + part + ".weight", 2048);
      add(b + "ffn_down" + part + ".weight", part.empty() ? 10944 : part == "_exps" ? 1408 : 2816);
    }
  }
  CHECK(counts[DType::kQ4_K] == 229);
  CHECK(counts[DType::kQ5_0] == 14);
  CHECK(counts[DType::kQ8_0] == 13);
  CHECK(counts[DType::kQ6_K] == 13);
}

TEST_CASE("below four bits what every token passes keeps four") {
  const MixContext v3{61, 256, 1, true};
  for (const char* name : {"iq1_s", "iq2_xxs", "q2_k", "iq3_xxs", "q3_k_s"}) {
    const TypeMix mix = TypeMix::named(name);
    for (const char* tensor :
         {"blk.5.attn_q_b.weight", "blk.5.attn_output.weight", "blk.5.ffn_up_shexp.weight", "blk.0.ffn_up.weight"})
      CHECK(mix.type_of(tensor, v3) == DType::kQ4_K);
    CHECK(mix.type_of("blk.5.ffn_up_exps.weight", v3) == mix.base());
  }
}

TEST_CASE("importance matrices of both forms are read, and steer the search") {
  const TempFolder folder;
  const std::string tensor = "blk.1.ffn_gate_exps.weight";  // [16, 32, 96]
  std::vector<float> values(16 * 96);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(i % 11) * (i / 96 % 2 == 0 ? 1.0F : 3.0F) + 0.125F;
  write_bytes(folder / "a.dat", legacy_imatrix(tensor, values, 4));

  GgufWriter writer(folder / "b.gguf");
  writer.set_text("general.type", "imatrix");
  writer.set_u32("imatrix.chunk_count", 7);
  writer.set_texts("imatrix.datasets", {"a.txt"});
  writer.add_tensor(tensor + ".in_sum2", DType::kF32, {16, 96});
  writer.add_tensor(tensor + ".counts", DType::kF32, {16, 1});
  writer.begin();
  std::vector<float> sums = values, counts(16, 2.0F);
  for (float& v : sums) v *= 2;
  writer.write(tensor + ".in_sum2", sums.data(), sums.size() * 4);
  writer.write(tensor + ".counts", counts.data(), counts.size() * 4);
  writer.finish();

  const Shape shape{16, 32, 96};
  for (const char* name : {"a.dat", "b.gguf"}) {
    CAPTURE(name);
    const ImportanceMatrix m = ImportanceMatrix::read(folder / name);
    CHECK(m.size() == 1);
    CHECK(m.n_chunks() == 7);
    CHECK(m.dataset() == "a.txt");
    for (int64_t e = 0; e < 16; ++e)
      CHECK(std::equal(values.begin() + e * 96, values.begin() + (e + 1) * 96, m.find(tensor, shape, e)));
    CHECK(m.find("blk.2.ffn_gate_exps.weight", shape, 0) == nullptr);
    CHECK_THROWS_AS(m.find(tensor, Shape{16, 32, 64}, 0), Error);

    QuantizeOptions o = options(v2_f32(), folder / "out.gguf", "q4_0");
    o.imatrix = folder / name;
    quantize_file(o);
    const GgufModel in = GgufModel::open(v2_f32()), out = GgufModel::open(o.out);
    const Tensor& from = *in.find(tensor);
    const Tensor& to = *out.find(tensor);
    std::vector<std::byte> row(row_bytes(DType::kQ4_0, 96));
    bool agrees = true;
    for (int64_t r = 0; r < from.n_rows(); ++r) {
      quantize_row(DType::kQ4_0, from.as<float>() + r * 96, row.data(), 96, values.data() + r / 32 * 96);
      agrees &= std::memcmp(row.data(), to.data + static_cast<size_t>(r) * row.size(), row.size()) == 0;
    }
    CHECK(agrees);
    CHECK(out.metadata().integer("quantize.imatrix.chunks_count") == 7);
  }
}

TEST_CASE("damaged importance matrices are refused") {
  const TempFolder folder;
  const std::string good = legacy_imatrix("blk.1.ffn_up.weight", std::vector<float>(96, 1.0F), 1);
  const auto refused = [&](const std::string& bytes) {
    write_bytes(folder / "x.dat", bytes);
    CHECK(message_of([&] { ImportanceMatrix::read(folder / "x.dat"); }, ErrorCode::kModel).find("x.dat") !=
          std::string::npos);
  };
  for (size_t n = 0; n < good.size() - 13; n += 7) refused(good.substr(0, n));
  refused(std::string("\xFF\xFF\xFF\x7F", 4) + good.substr(4));
  std::string negative = good;
  negative[4 + 4 + 19 + 8 + 3] = '\xBF';
  refused(negative);
  CHECK(message_of([&] { ImportanceMatrix::read(kV2); }, ErrorCode::kModel).find("not an importance matrix") !=
        std::string::npos);
}

TEST_CASE("the result may not replace its source") {
  const TempFolder folder;
  std::filesystem::copy_file(kV2, folder / "a.gguf");
  CHECK(message_of([&] { quantize_file(options(folder / "a.gguf", folder / "a.gguf", "q8_0")); }, ErrorCode::kUsage) !=
        "");
  CHECK(std::filesystem::file_size(folder / "a.gguf") == std::filesystem::file_size(kV2));
}
