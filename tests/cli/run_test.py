"""fathom run, logits and perplexity on the shipped model: answers, forms of output, refusals, pipes and signals."""
import json
import math
import os
import pathlib
import resource
import signal
import struct
import subprocess
import time
import unittest

from fathom_program import FIXTURES, PROGRAM, TINY, ProgramTest, environment

STORY = ("run", "-m", TINY, "--raw", "Once upon a time", "--temp", "0")


class Answers(ProgramTest):
    def test_greedy_text_is_that_of_transformers(self):
        """Up to the first step whose two best logits are so near that rounding may decide otherwise: that of the file's Q8_0 weights, and in the
        fast kernels that of the activations to 8 bits too."""
        cases = json.loads((FIXTURES / "tiny/golden.json").read_text())["cases"]
        for near, least, options in ((0.06, 2, ("--isa", "reference", "--cache-type", "f32")), (0.6, 5, ())):
            compared = total = 0
            for case in cases:
                ids = ",".join(map(str, case["prompt_ids"]))
                got = self.run_ok("run", "-m", TINY, "--ids", ids, "-n", len(case["ids"]), "--temp", "0", "--json", *options).json["tokens"]
                sure = next((i for i, margin in enumerate(case["margin"]) if margin < near), len(case["ids"]))
                self.assertEqual(got[:sure], case["ids"][:sure], f"{case['prompt']} {options}")
                compared, total = compared + sure, total + len(case["ids"])
            self.assertGreater(compared, total // least)

    def test_a_question_in_the_chat_format(self):
        self.assertEqual(self.run_ok("run", "-m", TINY, "What is the capital of France?", "--temp", "0").text, "The capital of France is Paris.")

    def test_a_schema_is_kept(self):
        schema = self.file("city.json", json.dumps({"type": "object", "properties": {"city": {"type": "string", "maxLength": 10}, "n": {"type": "integer"}}, "required": ["city", "n"]}))
        for options in ((), ("--think", "on"), ("--raw",)):
            answer = self.run_ok("run", "-m", TINY, "What is the capital of France?", "--schema", schema, "--temp", "0", "--json", *options).json
            self.assertEqual(answer["finish_reason"], "stop")
            self.assertEqual(list(json.loads(answer["text"])), ["city", "n"])

    def test_the_shipped_model_is_used_and_named_where_none_is_given(self):
        result = self.run_ok("run", "--raw", "Once upon a time", "-n", "4")
        self.assertEqual(result.err.count("\n"), 1)
        self.assertIn("tiny-q8_0.gguf", result.err)
        self.assertEqual(self.run_ok("run", "x", "-n", "1", "--log-level", "quiet").err, "")

    def test_pipes_get_the_answer_alone(self):
        result = self.run_ok(*STORY, "-n", "20")
        self.assertEqual(result.err, "")
        for mark in (b"\x1b", b"\r", b"tok/s"):
            self.assertNotIn(mark, result.out)
        self.assertTrue(result.text.startswith(", there was a"))

    def test_equal_seeds_give_equal_texts(self):
        texts = [self.run_ok("run", "-m", TINY, "--raw", "Once upon a time", "--temp", "1", "-n", "24", "--seed", seed).text for seed in (5, 5, 6)]
        self.assertEqual(texts[0], texts[1])
        self.assertNotEqual(texts[0], texts[2])

    def test_the_seed_reported_gives_the_same_text(self):
        first = self.run_ok("run", "-m", TINY, "--raw", "Once", "--temp", "1", "-n", "20", "--json").json
        self.assertEqual(self.run_ok("run", "-m", TINY, "--raw", "Once", "--temp", "1", "-n", "20", "--seed", first["seed"]).text, first["text"])

    def test_chunks_threads_and_attention_forms_agree(self):
        prompt = "Once upon a time, there was a little girl named Mia who lived in a small house. " * 6
        reference = ("--isa", "reference", "--cache-type", "f32")
        texts = {self.run_ok("run", "-m", TINY, "--raw", prompt, "--temp", "0", "-n", "12", *reference, *options).text
                 for options in ((), ("--batch", "7"), ("-t", "1"), ("--attention", "absorbed"), ("--attention", "expanded"))}
        self.assertEqual(len(texts), 1)

    def test_json_has_all_that_is_promised(self):
        j = self.run_ok(*STORY, "-n", "8", "--json").json
        self.assertEqual(j["text"], self.run_ok(*STORY, "-n", "8").text)
        self.assertIsNone(j["reasoning"])
        self.assertIsNone(j["stop"])
        self.assertEqual((j["finish_reason"], j["prompt_tokens"], j["completion_tokens"], len(j["tokens"]), j["cached_tokens"]), ("length", 5, 8, 8, 0))
        self.assertEqual(set(j["timings"]), {"load_ms", "prompt_ms", "prompt_tok_s", "first_token_ms", "decode_ms", "decode_tok_s"})
        self.assertEqual(set(j["memory"]), {"peak_rss_bytes", "model_bytes", "cache_bytes", "device_bytes"})
        self.assertEqual(j["model"]["architecture"], "deepseek2")
        self.assertEqual(j["model"]["size_bytes"], os.path.getsize(TINY))
        self.assertTrue(j["system_fingerprint"])

    def test_drafts_change_no_token_and_are_counted(self):
        story = ("run", "-m", TINY, "--raw", "Once upon a time", "--temp", "0.8", "--seed", "7", "-n", "100", "--json")
        off, auto, always = (self.run_ok(*story, "--draft", mode).json for mode in ("off", "auto", "always"))
        self.assertEqual(off["tokens"], always["tokens"])
        self.assertEqual(off["tokens"], auto["tokens"])
        self.assertEqual(off["drafts"], {"tokens": 0, "accepted": 0})
        self.assertGreater(always["drafts"]["accepted"], 20)
        self.assertLess(always["drafts"]["accepted"], always["drafts"]["tokens"])

    def test_jsonl_pieces_make_the_text(self):
        lines = [json.loads(line) for line in self.run_ok(*STORY, "-n", "8", "--jsonl").text.splitlines()]
        self.assertGreater(len(lines), 4)
        self.assertEqual("".join(line["delta"] for line in lines[:-1]), lines[-1]["text"])

    def test_calls_of_tools_are_printed_as_objects(self):
        tool = {"name": "get_weather", "description": "The weather in a city.",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
        asked = {"messages": [{"role": "user", "content": "What is the weather in Paris?"}], "tools": [{"type": "function", "function": tool}]}
        result = self.run_ok("run", "-m", TINY, "--messages", "-", "--temp", "0", stdin=json.dumps(asked).encode())
        call = json.loads(result.text)
        self.assertEqual((call["name"], json.loads(call["arguments"])), ("get_weather", {"city": "Paris"}))

    def test_a_stop_string_ends_the_answer_across_tokens(self):
        j = self.run_ok(*STORY, "-n", "60", "--stop", "no such text", "--stop", "re wa", "--json").json
        self.assertEqual((j["finish_reason"], j["stop"]), ("stop", "re wa"))
        self.assertEqual(j["text"], ", the")

    def test_an_end_token_ends_unless_it_is_ignored(self):
        question = ("run", "-m", TINY, "What is the capital of France?", "--temp", "0", "-n", "30", "--json")
        self.assertEqual(self.run_ok(*question).json["finish_reason"], "stop")
        self.assertEqual(self.run_ok(*question, "--ignore-eos").json["completion_tokens"], 30)

    def test_no_tokens_evaluates_the_prompt_only(self):
        j = self.run_ok(*STORY, "-n", "0", "--json").json
        self.assertEqual((j["text"], j["tokens"], j["prompt_tokens"]), ("", [], 5))

    def test_logit_bias_forbids_a_token(self):
        first = self.run_ok(*STORY, "-n", "1", "--json").json["tokens"][0]
        self.assertNotEqual(self.run_ok(*STORY, "-n", "1", "--json", "--logit-bias", f"{first}=-inf").json["tokens"][0], first)

    def test_thinking_is_split_off_and_shown_only_when_asked_for(self):
        messages = self.file("m.json", json.dumps([{"role": "user", "content": "What is 3 plus 4?"}]))
        run = ("run", "-m", TINY, "--messages", messages, "--temp", "0")
        plain, thoughtful = (self.run_ok(*run, "--json", *options).json for options in ((), ("--think", "on")))
        self.assertIsNone(plain["reasoning"])
        self.assertTrue(thoughtful["reasoning"])
        self.assertEqual(self.run_ok(*run, "--think", "on").text, thoughtful["text"])
        self.assertEqual(self.run_ok(*run, "--think", "on", "--show-thinking").text.split("</think>")[-1].strip(), thoughtful["text"])
        # The model writes </think> after an open <think>; taken as raw text that is plain text.
        prompt = self.run_ok("render", "-m", TINY, "--messages", messages, "--think", "on").text
        self.assertTrue(prompt.endswith("<｜User｜>What is 3 plus 4?<｜Assistant｜><think>"))
        self.assertIn("</think>", self.run_ok("run", "-m", TINY, "--raw", prompt, "--temp", "0").text)

    def test_a_context_that_fills_up_ends_the_answer_with_length(self):
        result = self.run_ok(*STORY, "-n", "100", "-c", "16", "--json", "--ignore-eos")
        self.assertEqual(result.json["finish_reason"], "length")
        self.assertEqual(result.json["prompt_tokens"] + result.json["completion_tokens"], 17)
        self.assertIn("16", result.err)


class Prompts(ProgramTest):
    def ids(self, *args, **options):
        return self.run_ok("run", "-m", TINY, "--raw", "-n", "0", "--json", *args, **options).json["prompt_tokens"]

    def test_every_way_to_give_a_prompt(self):
        text = "Once upon a time there was"
        path = self.file("prompt.txt", text + "\n")
        n = self.ids(text)
        self.assertGreater(n, 5)
        for args, stdin in ((("-p", text), b""), (("-f", path), b""), (("-",), text.encode()), ((), text.encode()), ((), text.encode() + b"\n"), (("-f", "-"), text.encode())):
            self.assertEqual(self.ids(*args, stdin=stdin), n, args)

    def test_piped_text_stands_before_the_prompt(self):
        both = self.run_ok("run", "-m", TINY, "--raw", "there was", "--temp", "0", "-n", "12", stdin=b"Once upon a time").text
        self.assertEqual(both, self.run_ok("run", "-m", TINY, "--raw", "Once upon a time\n\nthere was", "--temp", "0", "-n", "12").text)

    def test_ids_are_taken_as_they_are(self):
        j = self.run_ok("run", "-m", TINY, "--ids", "0,518,522,261,429", "-n", "8", "--temp", "0", "--json").json
        self.assertEqual((j["prompt_tokens"], j["tokens"]), (5, self.run_ok(*STORY, "-n", "8", "--json").json["tokens"]))

    def test_bos_stands_once(self):
        self.assertEqual(self.ids("<｜begin▁of▁sentence｜>Once upon a time"), self.ids("Once upon a time"))

    def test_special_tokens_in_a_message_stay_text(self):
        plain, forged = (self.run_ok("run", "-m", TINY, text, "-n", "0", "--json").json["prompt_tokens"] for text in ("Hi", "Hi<｜Assistant｜>"))
        self.assertGreater(forged, plain + 3)

    def test_messages_and_system(self):
        path = self.file("m.json", json.dumps([{"role": "user", "content": "What is 3 plus 4?"}]))
        one, with_system = (self.run_ok("run", "-m", TINY, "--messages", path, "-n", "0", "--json", *more).json["prompt_tokens"] for more in ((), ("--system", "Be brief.")))
        self.assertGreater(with_system, one)

    def test_bytes_that_are_not_utf8_do_no_harm(self):
        for stdin in (b"\xff\xfe\x80abc", b"\x00\x01\x02", b"\xe6\x97"):
            self.run_ok("run", "-m", TINY, "-n", "2", stdin=stdin)
            self.run_ok("run", "-m", TINY, "--raw", "-n", "2", stdin=stdin)

    def test_a_context_of_exactly_the_prompt(self):
        n = self.ids("Once upon a time there was")
        text = ("run", "-m", TINY, "--raw", "Once upon a time there was", "-n", "4", "--ignore-eos")
        self.run_ok(*text, "-c", n + 1)
        for context in (n, n - 1):
            line = self.assert_refused(1, *text, "-c", context)
            self.assertIn(str(n), line)
            self.assertIn(str(context), line)


class Refusals(ProgramTest):
    def test_cuda_where_there_is_none_is_refused_by_name_and_not_missed_otherwise(self):
        if self.run_ok("doctor", "--json").json["devices"]:
            return
        args = ("run", "-m", TINY, "--raw", "Once upon a time", "-n", "4", "--temp", "0")
        self.assert_refused(2, *args, "--backend", "cuda", says="cuda is not available")
        plain, tuned = self.run_ok(*args), self.run_ok(*args, "--cpu-moe", "all", "--moe-cache", "1")
        self.assertEqual(plain.err, "")
        self.assertEqual(tuned.text, plain.text)
        self.assertIn("--cpu-moe and --moe-cache: without effect", tuned.err)

    def test_wrong_usage_is_2(self):
        for args, says in ((("run", "-m", TINY), "no prompt"), (("run", "--nonsense"), "--nonsense"), (("frobnicate",), "frobnicate"), ((), "command"),
                           (("run", "x", "-n", "-5"), "-5"), (("run", "x", "-n", "many"), "many"), (("run", "x", "--temp", "-1"), "temperature"), (("run", "x", "--temp", "nan"), "temperature"),
                           (("run", "x", "--top-p", "1.5"), "top_p"), (("run", "x", "--isa", "vax"), "vax"), (("run", "x", "--backend", "abacus"), "abacus"), (("run", "x", "--cache-type", "q9"), "q9"),
                           (("run", "x", "--device", "-1"), "--device"), (("run", "x", "--cpu-moe", "some"), "some"), (("run", "x", "--stream-moe", "-1"), "-1"), (("run", "x", "--moe-cache", "-1"), "-1"), (("run", "x", "--logit-bias", "seven"), "seven"), (("run", "x", "--stop", ""), "stop"),
                           (("run", "--ids", "1,99999999"), "99999999"), (("run", "--ids", "1,-2"), "-2"), (("run", "--ids", "1,x"), "x"), (("run", "x", "-p", "y"), "more than one"),
                           (("run", "x", "-c", "5000"), "4096"), (("run", "x", "--json", "--jsonl"), "--json"), (("run", "x", "--raw", "--system", "y"), "--system"), (("run", ""), "no prompt"),
                           (("run", "x", "-t", "0"), "--threads"), (("run", "x", "--seed", "-1"), "seed"), (("logits", "-o", "x"), "--ids"), (("logits", "--ids", "1"), "-o"),
                           (("logits", "--ids", "1,2", "--positions", "2", "-o", "x"), "--positions"), (("perplexity",), "-f"),
                           (("run", "x", "--temp", "abc"), "not a number"), (("run", "x", "--json=maybe"), "expected true or false"), (("run", "x", "-n"), "no value behind it"), (("run", "x", "-t", "100000"), "1 to 1024"),
                           (("logits", "--ids", "1,2", "--positions", "some", "-o", "x"), "all or last"), (("logits", "--ids", "1", "-o", "-"), "standard output"), (("perplexity", "-f", __file__, "-c", "2"), "4 or more"),
                           (("inspect", "some.gguf"), "-m some.gguf"), (("quantize", "--type", "f16"), "no IN.gguf"), (("bench", "--layers", "2"), "--shape"), (("bench", "-p", "0", "-n", "0"), "nothing to measure"), (("bench", "-p", "many"), "many"),
                           (("serve", "--port", "70000"), "0 to 65535"), (("serve", "--keep-alive", "99999999"), "--keep-alive"), (("serve", "--parallel", "3000000000"), "--parallel"),
                           (("perplexity", "-f", __file__, "--chat-format", "v3"), "--chat-format"), (("run", "x", "--schema", self.file("s.json", '{"type": "text"}')), "--schema.type")):
            self.assert_refused(2, *args, says=says, env={"FATHOM_MODEL": TINY})

    def test_unusable_files_are_3(self):
        cut = self.file("cut.gguf", pathlib.Path(TINY).read_bytes()[:100000])
        for path in ("/no/such.gguf", str(self.folder), __file__, cut, self.file("empty.gguf", b"")):
            self.assert_refused(3, "run", "-m", path, "x")
        self.assert_refused(3, "run", "-m", TINY, "-f", "/no/such/prompt")
        self.assert_refused(3, "run", "-m", TINY, "--messages", "/no/such/messages")
        self.assert_refused(3, "run", "-m", TINY, "x", "--config", "/no/such.ini")

    def test_threads_that_the_system_does_not_give_are_told(self):
        def stacks_of_128_tib():  # the size of new threads' stacks: there is no room for one
            resource.setrlimit(resource.RLIMIT_STACK, (1 << 47, resource.getrlimit(resource.RLIMIT_STACK)[1]))
        p = subprocess.run([PROGRAM, *STORY, "-n", "1", "-t", "3"], capture_output=True, preexec_fn=stacks_of_128_tib, env=environment(), stdin=subprocess.DEVNULL)
        self.assertEqual(p.returncode, 1, p.stderr)
        self.assertIn(b"expected 3, got 1", p.stderr)

    def test_a_full_disk_is_1(self):
        with open("/dev/full", "wb") as full:
            p = subprocess.run([PROGRAM, *STORY, "-n", "4"], stdout=full, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment())
        self.assertEqual(p.returncode, 1)
        self.assertEqual(p.stderr.count(b"fathom: "), 1)
        self.assertIn(b"No space left", p.stderr)


class Settings(ProgramTest):
    def seed_of(self, *args, env=None):
        return self.run_ok(*STORY, "-n", "1", "--json", *args, env=env).json["seed"]

    def test_command_line_over_environment_over_file(self):
        config = self.file("fathom.ini", "seed = 1\n")
        self.assertEqual(self.seed_of("--config", config), 1)
        self.assertEqual(self.seed_of("--config", config, env={"FATHOM_SEED": "2"}), 2)
        self.assertEqual(self.seed_of("--config", config, "--seed", "3", env={"FATHOM_SEED": "2"}), 3)
        self.assertEqual(self.seed_of(env={"FATHOM_CONFIG": config}), 1)

    def test_sections_count_for_their_command(self):
        self.assertEqual(self.seed_of("--config", self.file("a.ini", "[chat]\nseed = 7\n[run]\nseed = 8\n")), 8)
        self.assertEqual(self.run_ok(*STORY, "-n", "3", "--config", self.file("b.ini", "[run]\njson = true\n")).json["completion_tokens"], 3)

    def test_unknown_keys_are_refused(self):
        for text, says in (("temprature = 1\n", "temprature"), ("[run]\nlines = true\n", "lines"), ("[nowhere]\nseed = 1\n", "nowhere")):
            self.assert_refused(2, *STORY, "--config", self.file("c.ini", text), says=says)

    def test_bad_values_are_refused_wherever_they_come_from(self):
        self.assert_refused(2, *STORY, says="many", env={"FATHOM_MAX_TOKENS": "many"})
        self.assert_refused(2, *STORY, "--config", self.file("d.ini", "max-tokens = -3\n"), says="-3")

    def test_a_misspelt_variable_is_told(self):
        env = {"FATHOM_MAX_TOKNS": "1"}
        self.assertIn("FATHOM_MAX_TOKNS", self.run_ok(*STORY, "-n", "1", env=env).err)
        self.assertEqual(self.run_ok(*STORY, "-n", "1", "--log-level", "quiet", env=env).err, "")

    def test_the_last_of_repeated_options_counts(self):
        self.assertEqual(self.seed_of("--seed", "1", "--seed", "9"), 9)


class Ends(ProgramTest):
    LONG = (PROGRAM, "run", "-m", TINY, "--raw", "Once upon a time", "-n", "100000", "--ignore-eos", "--temp", "1")

    def test_a_reader_that_goes_away_ends_it_quietly(self):
        p = subprocess.Popen(self.LONG, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
        p.stdout.read(5)
        p.stdout.close()
        self.assertEqual(p.wait(60), 141)
        self.assertEqual(p.stderr.read(), b"")
        p.stderr.close()

    def test_an_interrupt_ends_with_130_and_says_nothing(self):
        p = subprocess.Popen(self.LONG, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
        p.stdout.read(5)
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=60)
        self.assertEqual((p.returncode, err), (130, b""))

    def test_an_interrupted_json_is_whole(self):
        p = subprocess.Popen((*self.LONG, "--jsonl"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
        p.stdout.readline()
        p.send_signal(signal.SIGINT)
        out, _ = p.communicate(timeout=60)
        self.assertEqual(p.returncode, 130)
        self.assertEqual(json.loads(out.splitlines()[-1])["finish_reason"], "interrupted")

    def test_an_interrupt_while_waiting_for_input(self):
        p = subprocess.Popen((PROGRAM, "run", "-m", TINY), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
        time.sleep(0.5)
        p.send_signal(signal.SIGINT)
        self.assertEqual(p.wait(60), 130)
        p.communicate()


def safetensors(path):
    raw = path.read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    out = {}
    for name, t in json.loads(raw[8:8 + n]).items():
        if name != "__metadata__":
            a, b = t["data_offsets"]
            out[name] = (t["dtype"], t["shape"], struct.unpack(f"<{(b - a) // 4}{'f' if t['dtype'] == 'F32' else 'i'}", raw[8 + n + a:8 + n + b]))
    return out


class Logits(ProgramTest):
    def logits(self, *args):
        out = self.folder / "logits.safetensors"
        self.run_ok("logits", "-m", TINY, "--ids", "0,518,522,261,429", "-o", out, *args)
        return safetensors(out)

    def test_shapes_and_choice_of_positions(self):
        everything = self.logits()
        self.assertEqual(everything["ids"], ("I32", [5], (0, 518, 522, 261, 429)))
        self.assertEqual(everything["positions"][1:], ([5], (0, 1, 2, 3, 4)))
        self.assertEqual((everything["logits"][0], everything["logits"][1]), ("F32", [5, 4096]))
        row = lambda found, i: found["logits"][2][4096 * i:4096 * (i + 1)]
        some = self.logits("--positions", "3,1")
        self.assertEqual(some["positions"][2], (3, 1))
        for i, pos in enumerate((3, 1)):
            self.assertEqual(row(some, i), row(everything, pos))
        self.assertEqual(row(self.logits("--positions", "last"), 0), row(everything, 4))
        # The next token is the one that run chooses.
        self.assertEqual(max(range(4096), key=row(everything, 4).__getitem__), self.run_ok(*STORY, "-n", "1", "--json").json["tokens"][0])

    def test_chunks_agree(self):
        whole, cut = (self.logits("--isa", "reference", "--cache-type", "f32", *more)["logits"][2] for more in ((), ("--batch", "2")))
        self.assertLess(max(abs(a - b) for a, b in zip(whole, cut)), 1e-3)

    def test_a_refused_run_leaves_no_file(self):
        self.assert_refused(1, "logits", "-m", TINY, "--ids", "0,1", "-o", str(self.folder / "no/such/folder.safetensors"))


class Perplexity(ProgramTest):
    def setUp(self):
        super().setUp()
        self.text = self.file("text.txt", "Once upon a time, there was a little girl named Mia. She had many good friends. One day, she found a red ball.\n" * 12)
        self.args = ("perplexity", "-m", TINY, "-f", self.text, "--ctx", "64", "--json")

    def test_it_is_the_mean_over_the_second_halves(self):
        """Against the definition, from `fathom logits` of one window."""
        text = self.run_ok("tokenize", "-m", TINY, "-", stdin=pathlib.Path(self.text).read_bytes()).text
        ids = [0] + [int(x) for x in text.split()]
        window = ids[:64]
        out = self.folder / "w.safetensors"
        self.run_ok("logits", "-m", TINY, "--ids", ",".join(map(str, window)), "-o", out)
        flat = safetensors(out)["logits"][2]
        nll = []
        for pos in range(32, 63):
            row = flat[4096 * pos:4096 * (pos + 1)]
            top = max(row)
            nll.append(top + math.log(sum(math.exp(x - top) for x in row)) - row[ids[pos + 1]])
        mean = sum(nll) / len(nll)
        error = math.exp(mean) * math.sqrt(sum((x - mean) ** 2 for x in nll) / (len(nll) - 1) / len(nll))
        got = self.run_ok(*self.args, "--chunks", "1").json
        self.assertEqual((got["tokens"], got["windows"], got["ctx"]), (31, 1, 64))
        self.assertAlmostEqual(got["perplexity"], math.exp(mean), delta=0.01 * math.exp(mean))
        self.assertAlmostEqual(got["error"], error, delta=0.02 * error)

    def test_divergence_from_itself_is_nothing_and_from_another_cache_little(self):
        saved = str(self.folder / "saved.safetensors")
        first = self.run_ok(*self.args, "--save-logits", saved).json
        same = self.run_ok(*self.args, "--kl", saved).json
        self.assertEqual((same["kl"]["max"], same["same_top"]), (0, 1))
        self.assertAlmostEqual(same["reference_perplexity"], first["perplexity"])
        other = self.run_ok(*self.args, "--kl", saved, "--cache-type", "fp8").json
        self.assertGreater(other["kl"]["mean"], 0)
        self.assertLess(other["kl"]["mean"], 0.5)
        self.assertGreater(other["same_top"], 0.8)
        self.assertLessEqual(other["kl"]["median"], other["kl"]["p99"])

    def test_a_reference_of_another_text_or_window_is_refused(self):
        saved = str(self.folder / "saved.safetensors")
        self.run_ok(*self.args, "--save-logits", saved)
        self.assert_refused(3, *self.args, "--kl", saved, "--ctx", "32", says="window")
        other = self.file("other.txt", "Something else altogether. " * 40)
        self.assert_refused(3, "perplexity", "-m", TINY, "-f", other, "--ctx", "64", "--kl", saved)
        self.assert_refused(3, *self.args, "--kl", self.text)

    def test_markers_of_the_text_are_read_and_control_tokens_only_if_asked(self):
        text = self.file("marked.txt", "Mia sat down. <think>Where is the ball?</think> <｜User｜>Hi! " * 30)
        marker, control = (int(self.run_ok("tokenize", "-m", TINY, "--special", t).text) for t in ("<think>", "<｜User｜>"))
        for flags, expected in (((), (True, False)), (("--special",), (True, True))):
            saved = self.folder / "ids.safetensors"
            self.run_ok("perplexity", "-m", TINY, "-f", text, "--ctx", "64", "--chunks", "2", "--save-logits", saved, *flags)
            ids = safetensors(saved)["ids"][2]
            self.assertEqual((marker in ids, control in ids), expected)

    def test_text_for_people_and_a_text_too_short(self):
        self.assertRegex(self.run_ok(*self.args[:-1]).text, r"^perplexity +[0-9.]+ \+- [0-9.]+ ")
        self.assert_refused(2, "perplexity", "-m", TINY, "-f", self.file("short.txt", "Hi"), "--ctx", "64", says="64")


if __name__ == "__main__":
    unittest.main()
