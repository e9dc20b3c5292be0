"""The OpenAI endpoints and the server's own, over plain HTTP."""
import json
import unittest

from running_server import CHAT, Server, chat


class OpenAiTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def ok(self, path, body, **more):
        status, _, answer = self.server.post(path, body, **more)
        self.assertEqual(status, 200, answer)
        return answer

    def refused(self, path, body, *words, status=400):
        got, _, answer = self.server.post(path, body)
        self.assertEqual(got, status, answer)
        for word in words:
            self.assertIn(word, answer["error"]["message"])
        self.assertEqual(answer["error"]["code"], status)
        return answer["error"]

    def chunks(self, body):
        events = self.server.events(CHAT, {**body, "stream": True})
        self.assertEqual(events[-1], ("", "[DONE]"))
        return [json.loads(data) for name, data in events[:-1] if name == ""]

    def test_health_models_and_props(self):
        self.assertEqual(self.server.request("GET", "/health")[2], {"status": "ok"})
        models = self.server.request("GET", "/v1/models")[2]
        self.assertEqual(models["data"][0]["id"], self.server.model)
        self.assertEqual(models["data"][0]["meta"]["n_ctx"], 1024)
        self.assertEqual(self.server.request("GET", "/v1/models/" + self.server.model)[0], 200)
        self.assertEqual(self.server.request("GET", "/v1/models/none")[0], 404)
        self.assertEqual(self.server.request("GET", "/props")[2]["default_generation_settings"]["n_ctx"], 1024)

    def test_chat_answers_with_usage(self):
        answer = self.ok(CHAT, chat())
        choice = answer["choices"][0]
        self.assertEqual(answer["object"], "chat.completion")
        self.assertEqual(choice["message"]["role"], "assistant")
        self.assertTrue(choice["message"]["content"])
        self.assertIn(choice["finish_reason"], ("stop", "length"))
        usage = answer["usage"]
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])

    def test_stream_joins_to_the_same_answer(self):
        whole = self.ok(CHAT, chat())["choices"][0]
        chunks = self.chunks(chat(stream_options={"include_usage": True}))
        self.assertEqual(len({c["id"] for c in chunks}), 1)
        self.assertEqual(chunks[0]["choices"][0]["delta"], {"role": "assistant", "content": None})
        text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
        self.assertEqual(text, whole["message"]["content"])
        finish = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
        self.assertEqual(finish[-1], whole["finish_reason"])
        self.assertEqual([f for f in finish[:-1] if f], [])
        self.assertEqual(chunks[-1]["choices"], [])
        self.assertGreater(chunks[-1]["usage"]["completion_tokens"], 0)

    def test_n_choices_differ_and_a_seed_repeats_them(self):
        body = chat("Tell me a story.", n=3, seed=5, temperature=1.5, top_p=1)
        first, second = self.ok(CHAT, body), self.ok(CHAT, body)
        texts = [c["message"]["content"] for c in first["choices"]]
        self.assertEqual([c["index"] for c in first["choices"]], [0, 1, 2])
        self.assertGreater(len(set(texts)), 1)
        self.assertEqual(texts, [c["message"]["content"] for c in second["choices"]])

    def test_stop_text_is_not_part_of_the_answer(self):
        whole = self.ok("/v1/completions", {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 24})["choices"][0]["text"]
        stop = whole[8:12]
        cut = self.ok("/v1/completions", {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 24, "stop": stop})["choices"][0]
        self.assertEqual(cut["text"], whole[:whole.index(stop)])
        self.assertEqual(cut["finish_reason"], "stop")

    def test_logprobs_join_to_the_content(self):
        answer = self.ok(CHAT, chat(logprobs=True, top_logprobs=3))["choices"][0]
        entries = answer["logprobs"]["content"]
        self.assertEqual("".join(e["token"] for e in entries), answer["message"]["content"])
        for entry in entries:
            self.assertEqual(len(entry["top_logprobs"]), 3)
            self.assertAlmostEqual(entry["logprob"], entry["top_logprobs"][0]["logprob"], places=5)  # greedy
            self.assertEqual(bytes(entry["bytes"]).decode(), entry["token"])
        streamed = self.chunks(chat(logprobs=True))
        joined = "".join(e["token"] for c in streamed if c["choices"][0]["logprobs"] for e in c["choices"][0]["logprobs"]["content"])
        self.assertEqual(joined, answer["message"]["content"])

    def test_logit_bias_forbids(self):
        body = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 1, "logprobs": 1}
        first = self.ok("/v1/completions", body)["choices"][0]
        token = self.ok("/tokenize", {"content": first["text"]})["tokens"]
        self.assertEqual(len(token), 1)
        other = self.ok("/v1/completions", {**body, "logit_bias": {str(token[0]): -100}})["choices"][0]
        self.assertNotEqual(other["text"], first["text"])

    def test_completions_of_several_prompts_with_echo(self):
        answer = self.ok("/v1/completions", {"prompt": ["Once", "There was"], "n": 2, "echo": True, "max_tokens": 4, "seed": 1})
        self.assertEqual([c["index"] for c in answer["choices"]], [0, 1, 2, 3])
        self.assertTrue(all(c["text"].startswith("Once") for c in answer["choices"][:2]))
        self.assertTrue(all(c["text"].startswith("There was") for c in answer["choices"][2:]))
        ids = self.ok("/tokenize", {"content": "Once upon", "add_special": True})["tokens"]
        self.assertEqual(self.ok("/v1/completions", {"prompt": ids, "max_tokens": 4, "temperature": 0})["choices"][0]["text"],
                         self.ok("/v1/completions", {"prompt": "Once upon", "max_tokens": 4, "temperature": 0})["choices"][0]["text"])

    def test_tokenize_and_back(self):
        text = "Häuser 123 \U0001f600"
        ids = self.ok("/tokenize", {"content": text})
        self.assertEqual(ids["count"], len(ids["tokens"]))
        self.assertEqual(self.ok("/detokenize", {"tokens": ids["tokens"]})["content"], text)
        # What users spell is text: no marker.
        self.assertGreater(self.ok("/tokenize", {"content": "<｜User｜>"})["count"], 1)
        self.assertEqual(self.ok("/tokenize", {"content": "<｜User｜>", "parse_special": True})["count"], 1)

    def test_second_request_finds_the_prompt_in_the_cache(self):
        body = chat("Please tell me a long story about a fox and a river and a lamp and a bridge. " * 6)
        self.ok(CHAT, body)
        usage = self.ok(CHAT, body)["usage"]
        self.assertGreater(usage["prompt_tokens_details"]["cached_tokens"], 0)
        self.assertEqual(usage["prompt_cache_hit_tokens"] + usage["prompt_cache_miss_tokens"], usage["prompt_tokens"])

    def test_json_object_and_schema_are_kept_to(self):
        json.loads(self.ok(CHAT, chat("Give me JSON.", temperature=1, max_tokens=400, seed=3, response_format={
            "type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"], "additionalProperties": False}}}))["choices"][0]["message"]["content"])
        schema = {"type": "object", "additionalProperties": False, "required": ["color", "sizes", "name"],
                  "properties": {"color": {"enum": ["red", "green"]}, "sizes": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
                                 "name": {"type": "string", "maxLength": 12}, "note": {"anyOf": [{"type": "null"}, {"type": "boolean"}]}}}
        for seed in range(6):
            choice = self.ok(CHAT, chat("Describe a shirt.", temperature=1.2, seed=seed, max_tokens=300, response_format={"type": "json_schema", "json_schema": {"name": "shirt", "schema": schema}}))["choices"][0]
            self.assertEqual(choice["finish_reason"], "stop", choice)
            value = json.loads(choice["message"]["content"])
            self.assertIn(value["color"], ("red", "green"))
            self.assertTrue(1 <= len(value["sizes"]) <= 3 and all(type(x) is int for x in value["sizes"]))
            self.assertLessEqual(len(value["name"]), 12)
            self.assertLessEqual(set(value), {"color", "sizes", "name", "note"})

    def test_json_without_a_schema_is_an_object_or_cut_off_by_the_limit(self):
        ends = []
        for seed in range(6):
            choice = self.ok(CHAT, chat("Give me JSON.", temperature=1, seed=seed, max_tokens=300, response_format={"type": "json_object"}))["choices"][0]
            ends.append(choice["finish_reason"])
            if choice["finish_reason"] == "stop":
                self.assertIsInstance(json.loads(choice["message"]["content"]), dict)
            else:
                self.assertEqual((choice["finish_reason"], choice["message"]["content"].strip()[:1]), ("length", "{"))
        self.assertIn("stop", ends)

    def test_schemas_that_cannot_be_kept_are_refused(self):
        def of(schema):
            return chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
        self.refused(CHAT, of({"type": "string", "pattern": "^a+$"}), "pattern")
        self.refused(CHAT, of({"type": 123}), "type")
        self.refused(CHAT, of({"type": "array", "minItems": 10**9}), "minItems")
        self.refused(CHAT, of({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), "refers to itself")
        self.refused(CHAT, of({"enum": list(range(5000))}), "enum")
        self.refused(CHAT, chat(response_format={"type": "sound"}), "response_format.type")
        self.refused(CHAT, chat(response_format={"type": "json_schema", "json_schema": {"schema": 123}}), "schema")

    TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"type": "integer"}}, "required": ["city", "days"], "additionalProperties": False}}},
        {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]}}}]

    def test_forced_tool_calls_fit_their_schema(self):
        named = self.ok(CHAT, chat("Weather in Rome?", tools=self.TOOLS, tool_choice={"type": "function", "function": {"name": "weather"}}, max_tokens=200, temperature=1, seed=2))["choices"][0]
        self.assertEqual(named["finish_reason"], "tool_calls")
        self.assertIsNone(named["message"]["content"])
        call = named["message"]["tool_calls"][0]
        self.assertEqual(call["function"]["name"], "weather")
        self.assertEqual(set(json.loads(call["function"]["arguments"])), {"city", "days"})
        free = self.ok(CHAT, chat("Weather in Rome?", tools=self.TOOLS, tool_choice="required", max_tokens=200))["choices"][0]["message"]["tool_calls"][0]
        self.assertIn(free["function"]["name"], ("weather", "time"))
        streamed = self.chunks(chat("Weather in Rome?", tools=self.TOOLS, tool_choice={"type": "function", "function": {"name": "time"}}, max_tokens=100))
        deltas = [d for c in streamed for d in c["choices"][0]["delta"].get("tool_calls", [])]
        self.assertEqual(deltas[0]["function"]["name"], "time")
        self.assertIn(json.loads("".join(d["function"]["arguments"] for d in deltas))["zone"], ("UTC", "CET"))
        self.assertEqual(streamed[-1]["choices"][0]["finish_reason"], "tool_calls")
        # The next round of the conversation is accepted, whatever the client kept of it.
        self.ok(CHAT, {"messages": [{"role": "user", "content": "Weather in Rome?"}, {"role": "assistant", "content": None, "tool_calls": [call]},
                                    {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}], "tools": self.TOOLS, "max_tokens": 8})

    def test_tool_choice_mistakes_are_refused(self):
        self.refused(CHAT, chat(tool_choice="required"), "tool_choice")
        self.refused(CHAT, chat(tools=self.TOOLS, tool_choice={"type": "function", "function": {"name": "none"}}), "tool_choice")
        self.refused(CHAT, chat(tools=[{"type": "function", "function": {}}]), "tools[0]")
        self.ok(CHAT, chat(tools=self.TOOLS, tool_choice="none"))

    def test_wrong_fields_are_named(self):
        for body, field in [({"messages": None}, "messages"), ({"messages": "hi"}, "messages"), ({"messages": [123]}, "messages[0]"), ({"messages": [{}]}, "messages[0].role"),
                            ({"messages": [{"role": 123}]}, "role"), ({"messages": [{"role": "user", "content": 123}]}, "content"), (chat(stream="true"), "stream"),
                            (chat(max_tokens=-1), "max_tokens"), (chat(max_tokens=0), "max_tokens"), (chat(max_tokens=2**63), "max_tokens"), (chat(max_tokens=1e300), "max_tokens"),
                            (chat(max_tokens="5"), "max_tokens"), (chat(max_tokens=True), "max_tokens"), (chat(max_tokens=1.5), "max_tokens"), (chat(temperature=-1), "temperature"),
                            (chat(temperature=1e30), "temperature"), (chat(temperature=1e300), "temperature"), (chat(top_p=2), "top_p"), (chat(top_k=-5), "top_k"),
                            (chat(frequency_penalty=1e9), "frequency_penalty"), (chat(n=5000000), "n"), (chat(n=0), "n"), (chat(logprobs=True, top_logprobs=10**9), "top_logprobs"),
                            (chat(top_logprobs=2), "top_logprobs"), (chat(stop=["x"] * 1000), "stop"), (chat(stop=""), "stop"), (chat(stop="x" * 10**6), "stop"), (chat(stop=[1]), "stop"),
                            (chat(logit_bias={"999999": 1}), "logit_bias"), (chat(logit_bias={"x": 1}), "logit_bias"), (chat(logit_bias=[1]), "logit_bias"),
                            (chat(seed="1"), "seed"), (chat(model="a\nb"), "model"), (chat(reasoning_effort="huge"), "reasoning_effort"), (chat(thinking={"type": "x"}), "thinking"),
                            ({"prompt": [1, 99999999]}, "prompt[1]"), ({"prompt": []}, "prompt"), ({"prompt": "a", "logprobs": 10**9}, "logprobs"), ({"tokens": ["a"]}, "tokens[0]")]:
            path = "/v1/completions" if "prompt" in body else "/detokenize" if "tokens" in body else CHAT
            with self.subTest(field=field, body=str(body)[:80]):
                self.refused(path, body, field)

    def test_bodies_that_are_no_json(self):
        deep = "[" * 10000 + "]" * 10000
        for body in (b"", b"{", b'{"messages": []} x', b"\xef\xbb\xbf{}", "{\"a\": \"äö\"}".encode("latin-1"), deep.encode(), b"[]", b"NaN"):
            with self.subTest(body=body[:30]):
                self.assertEqual(self.server.post(CHAT, body)[0], 400)

    def test_a_prompt_too_long_tells_both_numbers(self):
        error = self.refused(CHAT, chat("word " * 3000))
        self.assertEqual(error["type"], "exceed_context_size_error")
        self.assertEqual(error["n_ctx"], 1024)
        self.assertGreater(error["n_prompt_tokens"], 1024)

    def test_unknown_fields_are_accepted(self):
        self.ok(CHAT, chat(some_new_field={"a": 1}, user="me", metadata={}, store=False))

    def test_responses(self):
        answer = self.ok("/v1/responses", {"input": "What is the capital of France?", "temperature": 0, "max_output_tokens": 24})
        self.assertEqual(answer["object"], "response")
        text = answer["output"][0]["content"][0]["text"]
        events = self.server.events("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "What is the capital of France?"}]}], "temperature": 0, "max_output_tokens": 24, "stream": True})
        names = [name for name, _ in events]
        self.assertEqual(names[:4], ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"])
        self.assertIn(names[-1], ("response.completed", "response.incomplete"))
        data = [json.loads(d) for _, d in events]
        self.assertEqual([d["sequence_number"] for d in data], list(range(len(data))))
        self.assertEqual("".join(d["delta"] for d in data if d["type"] == "response.output_text.delta"), text)
        self.refused("/v1/responses", {"input": "a", "previous_response_id": "resp_1"}, "previous_response_id")

    def test_metrics_have_the_names_dashboards_know(self):
        self.ok(CHAT, chat())
        self.assertGreater(self.server.metric("llamacpp:tokens_predicted_total"), 0)
        self.assertGreater(self.server.metric("vllm:generation_tokens_total"), 0)
        self.assertGreater(self.server.metric("vllm:time_to_first_token_seconds_count"), 0)
        guessed, right = (self.server.metric(f"llamacpp:spec_decode_num_{kind}_tokens_total") for kind in ("draft", "accepted"))
        self.assertGreaterEqual(guessed, right)

    def test_page_needs_nothing_from_elsewhere(self):
        status, headers, page = self.server.request("GET", "/")
        self.assertEqual(status, 200)
        self.assertIn("default-src 'none'", headers["Content-Security-Policy"])
        self.assertNotIn("http://", page)
        self.assertNotIn("https://", page)


class ReasoningTest(unittest.TestCase):
    """A chat format with thinking. What the small model thinks makes no sense, but it is told apart from the answer."""
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--chat-format", "v3.1")

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def thinking_chat(self, **more):
        return chat("What is 2 + 3?", thinking={"type": "enabled"}, max_tokens=20, ignore_eos=True, **more)

    def test_reasoning_is_no_content(self):
        for body in (self.thinking_chat(), chat("What is 2 + 3?", reasoning_effort="high", max_tokens=20, ignore_eos=True),
                     chat("What is 2 + 3?", chat_template_kwargs={"thinking": True}, max_tokens=20, ignore_eos=True)):
            answer = self.server.post(CHAT, body)[2]
            message = answer["choices"][0]["message"]
            self.assertTrue(message["reasoning_content"])
            self.assertNotIn("think>", message["content"] + message["reasoning_content"])
            self.assertGreater(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 0)
        off = self.server.post(CHAT, chat("What is 2 + 3?", thinking={"type": "disabled"}))[2]["choices"][0]["message"]
        self.assertNotIn("reasoning_content", off)
        self.assertTrue(off["content"])

    def test_reasoning_ends_where_its_marker_stands(self):
        end, = self.server.post("/tokenize", {"content": "</think>", "parse_special": True})[2]["tokens"]
        message = self.server.post(CHAT, chat("What is 2 + 3?", thinking={"type": "enabled"}, max_tokens=1, logit_bias={str(end): 100}))[2]["choices"][0]["message"]
        self.assertNotIn("reasoning_content", message)  # it was empty
        self.assertEqual(message["content"], "")

    def test_streams_join_to_the_same_reasoning(self):
        whole = self.server.post(CHAT, self.thinking_chat())[2]["choices"][0]["message"]
        events = [json.loads(d) for name, d in self.server.events(CHAT, self.thinking_chat(stream=True)) if name == "" and d != "[DONE]"]
        deltas = [c["delta"] for e in events for c in e["choices"]]
        self.assertEqual("".join(d.get("reasoning_content") or "" for d in deltas), whole["reasoning_content"])
        self.assertEqual("".join(d.get("content") or "" for d in deltas), whole["content"])

    def test_the_other_apis_have_their_own_place_for_it(self):
        question = [{"role": "user", "content": "What is 2 + 3?"}]
        blocks = self.server.post("/v1/messages", {"messages": question, "max_tokens": 20, "temperature": 0, "thinking": {"type": "enabled", "budget_tokens": 1024}})[2]["content"]
        self.assertEqual(blocks[0]["type"], "thinking")
        self.assertTrue(blocks[0]["thinking"])
        events = [json.loads(d) for name, d in self.server.events("/v1/messages", {"messages": question, "max_tokens": 20, "temperature": 0, "stream": True, "thinking": {"type": "enabled", "budget_tokens": 1024}})]
        self.assertEqual("".join(e["delta"].get("thinking", "") for e in events if e["type"] == "content_block_delta"), blocks[0]["thinking"])
        output = self.server.post("/v1/responses", {"input": "What is 2 + 3?", "max_output_tokens": 20, "temperature": 0, "reasoning": {"effort": "high"}})[2]["output"]
        self.assertEqual(output[0]["type"], "reasoning")

    def test_the_format_is_told(self):
        self.assertEqual(self.server.request("GET", "/props")[2]["chat_format"], "v3.1")


if __name__ == "__main__":
    unittest.main()
