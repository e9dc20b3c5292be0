"""inspect, tokenize, detokenize, render, parse, fit, doctor, help and version: what needs no forward pass."""
import json
import os
import subprocess
import unittest

from fathom_program import PROGRAM, TINY, VOCAB, ProgramTest, environment

COMMANDS = ("run", "chat", "inspect", "tokenize", "detokenize", "render", "parse", "logits", "perplexity", "bench", "fit", "doctor", "convert", "quantize", "imatrix", "prune")


class Program(ProgramTest):
    def test_version_and_help(self):
        version = self.run_ok("--version").text
        for word in ("fathom 0.", "commit", "compiler", "ISA", "reference", "CUDA"):
            self.assertIn(word, version)
        for command in COMMANDS:
            self.assertIn(command, self.run_ok("--help").text)
            text = self.run_ok(command, "--help").text
            for option in ("--seed", "--config", "--threads", "--log-level", "--color"):
                self.assertIn(option, text, command)

    def test_colour_only_where_asked_for(self):
        text = self.run_ok("run", "-m", TINY, "--raw", "Once", "-n", "2", "--color", "never")
        self.assertNotIn(b"\x1b", text.out)

    def test_the_shipped_model_is_found_from_another_folder(self):
        self.assertIn("deepseek2", self.run_ok("inspect", cwd="/").text)


class Inspect(ProgramTest):
    def test_text_and_json(self):
        j = self.run_ok("inspect", "-m", TINY, "--json").json
        self.assertEqual(j["architecture"], "deepseek2")
        text = self.run_ok("inspect", "-m", TINY).text
        self.assertIn("deepseek2", text)
        self.assertGreater(self.run_ok("inspect", "-m", TINY, "--tensors").text.count("\n"), text.count("\n") + 50)

    def test_a_header_alone_is_enough(self):
        self.assertIn("deepseek", self.run_ok("inspect", "-m", VOCAB).text)

    def test_damage_is_refused(self):
        self.assert_refused(3, "inspect", "-m", self.file("x.gguf", b"GGUF" + b"\xff" * 100))


class Tokens(ProgramTest):
    TEXTS = ["Hello world, 123!", "日本語 και ελληνικά 😀", "", "a\n\n  b\t", "<｜User｜>x", "\x00\x7f"]

    def test_there_and_back(self):
        for text in self.TEXTS[:2]:
            ids = self.run_ok("tokenize", "-m", VOCAB, text).text.split()
            self.assertEqual(self.run_ok("detokenize", "-m", VOCAB, *ids).text, text)
            self.assertEqual(self.run_ok("detokenize", "-m", VOCAB, stdin=" ".join(ids).encode()).text, text)
            self.assertEqual(self.run_ok("tokenize", "-m", VOCAB, "-", stdin=text.encode()).text.split(), ids)

    def test_lines(self):
        lines = "".join(json.dumps(text) + "\n" for text in self.TEXTS).encode()
        for flags in ((), ("--special",)):
            ids = self.run_ok("tokenize", "-m", VOCAB, "--lines", *flags, stdin=lines).out
            back = self.run_ok("detokenize", "-m", VOCAB, "--lines", stdin=ids).text
            self.assertEqual([json.loads(line) for line in back.splitlines()], self.TEXTS)

    def test_lines_are_answered_one_by_one(self):
        p = subprocess.Popen([PROGRAM, "tokenize", "-m", VOCAB, "--lines"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment())
        for text in ("one", "two"):
            p.stdin.write(json.dumps(text).encode() + b"\n")
            p.stdin.flush()
            self.assertIsInstance(json.loads(p.stdout.readline()), list)
        p.stdin.close()
        self.assertEqual(p.wait(60), 0)
        p.stdout.close()

    def test_special_tokens_only_when_asked_for(self):
        plain, special = (self.run_ok("tokenize", "-m", VOCAB, "<｜User｜>", *flags).text.split() for flags in ((), ("--special",)))
        self.assertEqual(len(special), 1)
        self.assertGreater(len(plain), 1)

    def test_json_pieces(self):
        pieces = self.run_ok("tokenize", "-m", VOCAB, "日本", "--json").json
        self.assertEqual(bytes(b for p in pieces for b in p["bytes"]).decode(), "日本")
        self.assertEqual({"id", "piece", "bytes"}, set(pieces[0]))

    def test_refusals(self):
        self.assert_refused(2, "detokenize", "-m", VOCAB, "99999999")
        self.assert_refused(2, "detokenize", "-m", VOCAB, "x")
        self.assert_refused(2, "tokenize", "-m", VOCAB, "--lines", stdin=b"not json\n", says="line 1")
        self.assert_refused(3, "tokenize", "-m", "/no/such.gguf", "x")


class ChatFormats(ProgramTest):
    def test_every_generation_renders_and_the_model_chooses_its_own(self):
        path = self.file("m.json", json.dumps([{"role": "user", "content": "Hi"}]))
        for generation in ("v2", "v2.5", "v3", "v3-0324", "r1", "r1-0528", "v3.1", "v3.2", "v4"):
            self.assertIn("Hi", self.run_ok("render", "--format", generation, "--messages", path).text)
        self.assertEqual(self.run_ok("render", "-m", TINY, "--messages", path).text, self.run_ok("render", "--format", "v3.1", "--messages", path).text)
        off, on = (self.run_ok("render", "--format", "v3.1", "--messages", path, "--think", think).text for think in ("off", "on"))
        self.assertTrue(off.endswith("</think>") and on.endswith("<think>"))
        self.assert_refused(2, "render", "--format", "v9", "--messages", path, says="v9")
        self.assert_refused(2, "render", "--format", "v3", "--messages", self.file("bad.json", '[{"role": "wizard"}]'))
        self.assert_refused(3, "render", "--format", "v3", "--messages", "/no/such")

    def test_parse_splits_however_it_is_cut(self):
        item = {"text": "Because.</think>Seven.", "options": {"starts_in_reasoning": True}}
        for cut in ([22], [1] * 22, [5, 8]):
            got = self.run_ok("parse", "--format", "r1", stdin=json.dumps({**item, "cut": cut}).encode()).json
            self.assertEqual((got["reasoning_content"], got["content"]), ("Because.", "Seven."))
        lines = self.run_ok("parse", "--format", "r1", "--lines", stdin=(json.dumps(item) + "\n").encode() * 3).text
        self.assertEqual(lines.count("\n"), 3)
        self.assert_refused(2, "parse", "--format", "r1", "--lines", stdin=b"{}\n", says="line 1")


class Machine(ProgramTest):
    def test_doctor(self):
        j = self.run_ok("doctor", "--json").json
        self.assertGreaterEqual(j["cpu"]["physical_cores"], 1)
        self.assertIn("reference", j["cpu"]["isa"])
        self.assertGreater(j["memory"]["total_bytes"], 0)
        self.assertIn("memory", self.run_ok("doctor").text)

    def test_fit_counts_what_run_takes(self):
        j = self.run_ok("fit", "-m", TINY, "--ctx", "1000", "--backend", "cpu", "--json").json
        self.assertTrue(j["fits"])
        self.assertEqual(j["host"]["weights_bytes"], os.path.getsize(TINY))
        # 5 layers of 64 + 16 bf16 values, in pages of 64 tokens: 16 of them and the spare one.
        self.assertEqual(j["host"]["cache_bytes"], 17 * 64 * 5 * 80 * 2)
        self.assertGreater(j["host"]["activation_bytes"], 0)
        self.assertGreater(j["predicted"]["decode_tok_s_at_most"], 0)
        self.assertIn("it fits", self.run_ok("fit", "-m", TINY).text)


if __name__ == "__main__":
    unittest.main()
