"""convert, quantize, imatrix and prune: model files from model files, and checkpoints that somebody damaged."""
import json
import os
import stat
import struct
import unittest

from fathom_program import TINY, ProgramTest, fathom

TEXT = "Once upon a time there was a small dog. The dog liked to run in the park with a red ball. " * 12


class Quality(ProgramTest):
    """Files made of the shipped model, run and measured."""

    def perplexity(self, model, text):
        return self.run_ok("perplexity", "-m", model, "-f", text, "--ctx", "64", "--json").json["perplexity"]

    def test_an_importance_matrix_is_measured_and_used(self):
        text, matrix, plain, weighted = self.file("t.txt", TEXT), self.folder / "i.gguf", self.folder / "p.gguf", self.folder / "w.gguf"
        said = self.run_ok("imatrix", "-m", TINY, "-f", text, "--ctx", "64", "-o", matrix).err
        self.assertRegex(said, r"wrote .*: \d+ tensors, \d+ windows of 64 tokens, perplexity [0-9.]+")
        self.run_ok("quantize", TINY, plain, "--type", "q4_0")
        self.run_ok("quantize", TINY, weighted, "--type", "q4_0", "--imatrix", matrix)
        self.assertEqual(plain.stat().st_size // 4096, weighted.stat().st_size // 4096)
        self.assertNotEqual(plain.read_bytes(), weighted.read_bytes())
        best = self.perplexity(TINY, text)
        for model in (plain, weighted):
            self.assertLess(self.perplexity(model, text), 1.5 * best)
        planned = self.run_ok("quantize", TINY, self.folder / "x.gguf", "--type", "q4_0", "--imatrix", matrix, "--dry-run", "--json").json
        self.assertTrue(next(t for t in planned["tensors"] if t["name"] == "blk.1.ffn_down_exps.weight")["importance"])
        self.assertFalse((self.folder / "x.gguf").exists())

    def test_a_pruned_model_runs_and_says_that_it_is_one(self):
        text, small = self.file("t.txt", TEXT), self.folder / "small.gguf"
        report = self.run_ok("prune", TINY, small, "--keep", "12", "-f", text, "--ctx", "64", "--json").json
        self.assertLess(report["to_bytes"], 0.9 * report["from_bytes"] + 1e6)
        self.assertIn("12 of 16 experts", self.run_ok("inspect", "-m", small).text)
        self.assertLess(self.perplexity(small, text), 3 * self.perplexity(TINY, text))

    def test_where_nothing_can_be_written_nothing_is_measured(self):
        text, nowhere = self.file("t.txt", TEXT), self.folder / "none/out"
        for args in (("prune", TINY, nowhere, "--keep", "12", "-f", text), ("imatrix", "-m", TINY, "-f", text, "-o", nowhere), ("perplexity", "-m", TINY, "-f", text, "--save-logits", nowhere)):
            result = fathom(*args, "--progress")
            self.assertEqual(result.code, 1, result.err)
            self.assertIn("cannot be created", result.err)
            self.assertNotIn("measured", result.err)
        self.assertIn("tensors", self.run_ok("prune", TINY, "--keep", "12", "-f", text, "--dry-run").text)

    def test_refusals(self):
        text, out = self.file("t.txt", TEXT), self.folder / "o.gguf"
        self.assert_refused(2, "prune", TINY, out, "--keep", "6", "-f", text, says="expected one of 8, 12")
        self.assert_refused(2, "prune", TINY, TINY, "--keep", "12", "-f", text, "--ctx", "64", says="replace its source")
        self.assert_refused(2, "imatrix", "-m", TINY, "-o", out, says="--file")
        self.assert_refused(2, "imatrix", "-m", TINY, "-f", self.file("s.txt", "Hi"), "-o", out, "--ctx", "64", says="shorter than one window")
        self.assert_refused(3, "quantize", TINY, out, "--type", "q4_0", "--imatrix", TINY, says="not an importance matrix")
        self.assert_refused(2, "quantize", TINY, out, "--type", "q9", says="expected one of f32")
        pipe = self.folder / "pipe"  # a device would do as well, but a failure would remove it
        os.mkfifo(pipe)
        self.assert_refused(2, "quantize", TINY, pipe, "--type", "q4_0", says="a device or pipe")
        self.assert_refused(2, "logits", "-m", TINY, "--ids", "1", "-o", pipe, says="a device or pipe")
        self.assertTrue(stat.S_ISFIFO(pipe.stat().st_mode))
        self.assertFalse(out.exists())


class Shards(ProgramTest):
    """What --split-max-size writes is the model, from any of its files."""

    def test_a_split_model_runs_as_the_whole_one_does(self):
        self.run_ok("quantize", TINY, self.folder / "m.gguf", "--type", "copy", "--split-max-size", "2M")
        shards = sorted(self.folder.glob("m-*-of-*.gguf"))
        self.assertGreater(len(shards), 2)
        self.assertFalse((self.folder / "m.gguf").exists())
        logits = {}
        for model in (TINY, shards[0], shards[-1]):
            out = self.folder / "l.safetensors"
            self.run_ok("logits", "-m", model, "-p", "Once upon a time", "-o", out)
            content = out.read_bytes()
            logits[model] = content[8 + struct.unpack("<Q", content[:8])[0]:]
            self.assertIn(b"Paris", self.run_ok("run", "-m", model, "--temp", "0", "-n", "12", "What is the capital of France?").out)
        self.assertEqual(len(set(logits.values())), 1)
        # And they go back into one file.
        self.run_ok("quantize", shards[0], self.folder / "one.gguf", "--type", "copy")
        self.run_ok("quantize", TINY, self.folder / "copy.gguf", "--type", "copy")
        self.assertEqual((self.folder / "one.gguf").read_bytes(), (self.folder / "copy.gguf").read_bytes())

    def test_missing_and_foreign_shards(self):
        self.run_ok("quantize", TINY, self.folder / "m.gguf", "--type", "copy", "--split-max-size", "2M")
        self.run_ok("quantize", TINY, self.folder / "other.gguf", "--type", "q4_0", "--split-max-size", "2M")
        shards, others = sorted(self.folder.glob("m-*.gguf")), sorted(self.folder.glob("other-*.gguf"))
        second = shards[1].read_bytes()
        shards[1].unlink()
        for model in (shards[0], shards[2]):
            self.assert_refused(3, "run", "-m", model, "Hi", says=f"shard 2 of {len(shards)}")
        shards[1].write_bytes(shards[0].read_bytes())
        self.assert_refused(3, "run", "-m", shards[0], "Hi", says="expected shard 2")
        shards[1].write_bytes(others[1].read_bytes())
        self.assert_refused(3, "run", "-m", shards[0], "Hi", says="split.count")
        shards[1].write_bytes(second)
        self.run_ok("run", "-m", shards[0], "-n", "1", "Hi")


CONFIG = {"model_type": "deepseek_v3", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
          "num_attention_heads": 1, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "intermediate_size": 32,
          "first_k_dense_replace": 1, "n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


class DamagedCheckpoints(ProgramTest):
    """Each gives one line that names the file, exit code 3, and writes nothing; as a model as well as to convert."""

    def check(self, files, says, name="model.safetensors"):
        folder = self.folder / "hf"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        (folder / "config.json").write_text(json.dumps(CONFIG))
        for path, content in files.items():
            (folder / path).write_bytes(content)
        out = self.folder / "o.gguf"
        for line in (self.assert_refused(3, "convert", folder, "-o", out, "--type", "q8_0", says=says), self.assert_refused(3, "run", "-m", folder, "Hi", says=says),
                     self.assert_refused(3, "inspect", "-m", folder, says=says)):
            self.assertIn(name, line)
        self.assertEqual(list(self.folder.glob("o.gguf*")), [])

    def test_headers(self):
        good = tensor("BF16", [64, 32], 0, 4096)
        for content, says in ((b"", "bytes"),
                              (b"\x10\0\0", "bytes"),
                              (struct.pack("<Q", 2**63), "header"),
                              (struct.pack("<Q", 1 << 20) + b"{}", "header"),
                              (safetensors(b"{"), "JSON"),
                              (safetensors(b"[" * 5000), "header"),
                              (safetensors({"a": good}), "does not lie in the file"),
                              (safetensors({"a": good}, b"\0" * 4095), "does not lie in the file"),
                              (safetensors({"a": tensor("BF16", [64, 31], 0, 4096)}, b"\0" * 4096), "4096"),
                              (safetensors({"a": tensor("BF16", [2**62, 8], 0, 4096)}, b"\0" * 4096), ""),
                              (safetensors({"a": tensor("BF16", [-64, -32], 0, 4096)}, b"\0" * 4096), ""),
                              (safetensors({"a": tensor("Q4", [64, 32], 0, 4096)}, b"\0" * 4096), "Q4"),
                              (safetensors({"a": tensor("BF16", [64, 32], 4096, 0)}, b"\0" * 4096), "")):
            with self.subTest(content=content[:80], says=says):
                self.check({"model.safetensors": content}, says)

    def test_what_is_no_weight_file_at_all(self):
        self.check({"model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4096\n"}, "try git lfs pull")
        self.assert_refused(3, "quantize", self.folder / "hf", self.folder / "o.gguf", "--type", "q8_0", says="try fathom convert")
        self.assert_refused(3, "convert", TINY, "-o", self.folder / "o.gguf", "--type", "q8_0", says="fathom quantize for a GGUF file")

    def test_tensors_that_the_configuration_does_not_ask_for(self):
        embedding = {"model.embed_tokens.weight": tensor("I64", [64, 32], 0, 16384)}
        self.check({"model.safetensors": safetensors(embedding, b"\0" * 16384)}, "'model.embed_tokens.weight' has a type that no weight has")
        embedding = {"model.embed_tokens.weight": tensor("BF16", [64, 16], 0, 2048)}
        self.check({"model.safetensors": safetensors(embedding, b"\0" * 2048)}, "expected [64, 32], got [64, 16]")
        self.check({"model.safetensors": safetensors({})}, "lacks a tensor", name="config.json")

    def test_shards_and_index(self):
        shard = safetensors({"model.embed_tokens.weight": tensor("BF16", [64, 32], 0, 4096)}, b"\0" * 4096)
        names = ["model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors"]
        index = {"weight_map": {"model.embed_tokens.weight": names[0], "lm_head.weight": names[1]}}
        self.check({"model.safetensors.index.json": json.dumps(index).encode(), names[0]: shard}, names[1], name=names[1])
        self.check({"model.safetensors.index.json": json.dumps(index).encode(), names[0]: shard, names[1]: shard}, "the index is wrong", name="")
        self.check({"model.safetensors.index.json": b'{"weight_map": {"a": "../../etc/passwd"}}'}, "", name="index.json")
        self.check({"model.safetensors.index.json": b'{"weight_map": 3}'}, "", name="index.json")
        self.check({}, "", name="hf")


if __name__ == "__main__":
    unittest.main()
