#include "convert/load_checkpoint.h"

#include "checkpoint_fixture.h"

using namespace fathom;

TEST_CASE("matrices are viewed where they lie, the rest is put together in memory") {
  const TempFolder folder;
  made_v3().save(folder.path(), 2);
  const LoadedCheckpoint c = load_checkpoint(folder.path(), 2, std::nullopt);
  CHECK(c.copied_bytes > 0);
  CHECK(c.copied_bytes < c.size_bytes);
  CHECK(c.tensors.at("token_embd.weight").dtype == DType::kBF16);
  CHECK(c.tensors.at("blk.1.ffn_gate_exps.weight").shape == Shape{4, 32, 64});
  CHECK(c.tensors.at("blk.0.attn_norm.weight").dtype == DType::kF32);
  CHECK(*c.metadata.text("general.architecture") == "deepseek2");
  c.check_intact();
}

TEST_CASE("FP8 becomes BF16 and FP4 MXFP4 in memory") {
  const TempFolder v3, v4;
  made_v3(32).save(v3.path());
  CHECK(load_checkpoint(v3.path(), 1, std::nullopt).tensors.at("blk.1.attn_output.weight").dtype == DType::kBF16);
  made_v4().save(v4.path());
  const LoadedCheckpoint c = load_checkpoint(v4.path(), 1, std::nullopt);
  CHECK(c.tensors.at("blk.1.ffn_down_exps.weight").dtype == DType::kMXFP4);
  CHECK(c.tensors.at("blk.0.ffn_gate_tid2eid.weight").dtype == DType::kI32);
}

TEST_CASE("a description has the metadata, tensors and sizes of a load, without their bytes") {
  const TempFolder folder;
  made_v3().save(folder.path(), 2);
  const LoadedCheckpoint loaded = load_checkpoint(folder.path(), 1, std::nullopt),
                         described = describe_checkpoint(folder.path());
  CHECK(described.size_bytes == loaded.size_bytes);
  CHECK(described.copied_bytes == loaded.copied_bytes);
  CHECK(*described.metadata.text("general.architecture") == "deepseek2");
  REQUIRE(described.tensors.size() == loaded.tensors.size());
  for (const auto& [name, tensor] : loaded.tensors) {
    CAPTURE(name);
    CHECK(described.tensors.at(name).dtype == tensor.dtype);
    CHECK(described.tensors.at(name).shape == tensor.shape);
  }
  CHECK(described.tensors.at("blk.1.ffn_gate_exps.weight").as<uint16_t>()[0] == 0);
}

TEST_CASE("what does not fit is refused with both numbers and another way") {
  const TempFolder folder;
  made_v3().save(folder.path());
  try {
    load_checkpoint(folder.path(), 1, 1000);
    FAIL("1000 bytes were enough");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kNoMemory);
    CHECK(std::string(error.what()).find("try fathom convert") != std::string::npos);
  }
}

TEST_CASE("a damaged folder is refused by the name of what is wrong") {
  const TempFolder folder;
  MadeCheckpoint c = made_v3();
  c.tensors.erase("model.layers.1.mlp.experts.3.up_proj.weight");
  c.save(folder.path());
  CHECK_THROWS_AS(load_checkpoint(folder.path(), 1, std::nullopt), Error);
}
