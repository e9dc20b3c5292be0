"""The chat format of V4 over HTTP: prompts to the token as DeepSeek's encoder writes them, efforts, calls in DSML.

The small model has not learnt that format. What the fields of a request make of the prompt is seen in the cache: the reference
prompt is evaluated as ids, and the request must find all of it but the last token, which is always evaluated."""
import json
import os
import unittest

from running_server import CHAT, Server

CASES = json.load(open(os.path.join(os.path.dirname(__file__), "../fixtures/chat/prompt_v4.json")))["cases"]
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
TOOL = {"name": "weather", "description": "The weather", "parameters": {
    "type": "object", "required": ["city", "days"], "additionalProperties": False,
    "properties": {"city": {"enum": ["Rome", "Göteborg"]}, "days": {"type": "integer"}, "note": {"type": "string", "maxLength": 20}}}}
FORCED = {"messages": [{"role": "user", "content": "Weather in Rome?"}], "tools": [{"type": "function", "function": TOOL}],
          "max_tokens": 300, "temperature": 1, "seed": 2}


class V4Test(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--chat-format", "v4", ctx=4096)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def ok(self, path, body):
        status, _, answer = self.server.post(path, body)
        self.assertEqual(status, 200, answer)
        return answer

    def ids(self, case):
        """Of the reference prompt, cut where its special tokens stand."""
        text, ids, at = case["prompt"].encode(), [], 0
        pieces = []
        for begin, end in case["special_bytes"]:
            piece = text[begin:end].decode()
            if piece == "｜DSML｜":  # no token of this vocabulary: part of the text around it
                continue
            pieces += [(text[at:begin], False), (text[begin:end], True)]
            at = end
        for piece, special in pieces + [(text[at:], False)]:
            if piece:
                ids += self.ok("/tokenize", {"content": piece.decode(), "parse_special": special})["tokens"]
        return ids

    def check_same_prompt(self, case, cached, prompt_tokens, ids):
        self.assertEqual(prompt_tokens, len(ids), case["id"])
        self.assertEqual(cached, len(ids) - 1, case["id"])

    def test_chat_completions_write_the_reference_prompts(self):
        n_checked = 0
        for case in CASES:
            options = case["options"]
            if "special_bytes" not in case or not options["add_generation_prompt"] or "｜latest_reminder｜" in case["prompt"]:
                continue
            if options.get("response_schema") and case.get("tools"):
                continue  # refused in one request
            # Names of this API for what the reference calls thinking and effort.
            body = {"messages": case["messages"], "max_tokens": 1}
            if case.get("tools"):
                body["tools"] = case["tools"]
            if not options["thinking"]:
                body["thinking"] = {"type": "disabled"}
            elif options.get("effort"):
                body["reasoning_effort"] = options["effort"]
            if options.get("response_schema"):
                body["response_format"] = {"type": "json_schema", "json_schema": {"schema": options["response_schema"]}}
            ids = self.ids(case)
            self.ok("/v1/completions", {"prompt": ids, "max_tokens": 1})
            usage = self.ok(CHAT, body)["usage"]
            self.check_same_prompt(case, usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"], ids)
            n_checked += 1
        self.assertGreater(n_checked, 60)

    def test_messages_write_the_reference_prompts(self):
        n_checked = 0
        for case in CASES:
            options, messages = case["options"], case["messages"]
            roles = [m["role"] for m in messages]
            if "special_bytes" not in case or not options["add_generation_prompt"] or options.get("response_schema") or case.get("tools") and "tool" not in roles:
                continue
            if set(roles) - {"system", "user", "assistant", "tool"} or "system" in roles[1:] or roles[-1] == "assistant" or not messages[0]["content"]:
                continue
            body = {"messages": [], "max_tokens": 1}
            for m in messages:
                if m["role"] == "system":
                    body["system"] = m["content"]
                elif m["role"] == "tool":
                    block = {"type": "tool_result", "tool_use_id": m["tool_call_id"], "content": m["content"]}
                    if body["messages"][-1]["role"] == "user":
                        body["messages"][-1]["content"].append(block)
                    else:
                        body["messages"].append({"role": "user", "content": [block]})
                elif m["role"] == "assistant":
                    blocks = [{"type": "thinking", "thinking": m["reasoning_content"]}] if m.get("reasoning_content") else []
                    blocks += [{"type": "text", "text": m["content"]}] if m.get("content") else []
                    for call in m.get("tool_calls") or []:
                        try:
                            arguments = json.loads(call["function"]["arguments"])
                        except ValueError:
                            arguments = None
                        blocks.append({"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": arguments})
                    body["messages"].append({"role": "assistant", "content": blocks})
                else:
                    body["messages"].append({"role": "user", "content": [{"type": "text", "text": m["content"]}]})
            if any(b.get("input", {}) is None or not isinstance(b.get("input", {}), dict) for m in body["messages"] for b in m["content"]):
                continue
            if case.get("tools"):
                body["tools"] = [{k: v for k, v in (("name", f["name"]), ("description", f.get("description")), ("input_schema", f.get("parameters"))) if v is not None}
                                 for f in (t["function"] for t in case["tools"])]
                if any(set(t["function"]) - {"name", "description", "parameters"} for t in case["tools"]):
                    continue
            if not options["thinking"]:
                body["thinking"] = {"type": "disabled"}
            elif options.get("effort"):
                body["output_config"] = {"effort": options["effort"]}
            ids = self.ids(case)
            self.assertEqual(self.ok(COUNT, body)["input_tokens"], len(ids), case["id"])
            self.ok("/v1/completions", {"prompt": ids, "max_tokens": 1})
            usage = self.ok(MESSAGES, body)["usage"]
            self.check_same_prompt(case, usage["cache_read_input_tokens"], usage["cache_read_input_tokens"] + usage["input_tokens"], ids)
            n_checked += 1
        self.assertGreater(n_checked, 30)

    def test_efforts_and_toggles_choose_the_beginning_and_the_end_of_the_prompt(self):
        user = [{"role": "user", "content": "q"}]
        count = lambda **more: self.ok(CHAT, {"messages": user, "max_tokens": 1, **more})["usage"]["prompt_tokens"]
        low, high, most = (count(reasoning_effort=e) for e in ("low", "high", "max"))
        self.assertEqual(len({low, high, most}), 3)
        self.assertEqual(count(), high)  # thinking is the default, and high
        self.assertEqual([count(reasoning_effort=e) for e in ("minimal", "medium", "xhigh")], [low, high, most])
        self.assertEqual(count(chat_template_kwargs={"thinking": True, "reasoning_effort": "max"}), most)
        self.assertEqual(count(reasoning_effort="max", thinking={"type": "enabled"}), most)
        off = count(thinking={"type": "disabled"})
        self.assertEqual([off, off], [count(reasoning_effort="none"), count(chat_template_kwargs={"enable_thinking": False})])
        self.assertEqual(off, low)  # one closes where the other opens
        anthropic = lambda **more: self.ok(COUNT, {"messages": user, "max_tokens": 1, **more})["input_tokens"]
        self.assertEqual([anthropic(), anthropic(output_config={"effort": "max"}), anthropic(thinking={"type": "disabled"}), anthropic(thinking={"type": "adaptive"})],
                         [high, most, off, high])
        responses = lambda effort: self.ok("/v1/responses", {"input": "q", "max_output_tokens": 1, "reasoning": {"effort": effort}})["usage"]["input_tokens"]
        self.assertEqual([responses(e) for e in ("none", "low", "high", "max")], [off, low, high, most])

    def test_reasoning_has_its_place_in_both_apis_and_in_streams(self):
        body = {"messages": [{"role": "user", "content": "What is 2 + 3?"}], "max_tokens": 12, "temperature": 0, "reasoning_effort": "low", "ignore_eos": True}
        message = self.ok(CHAT, body)["choices"][0]["message"]
        self.assertTrue(message["reasoning_content"])
        deltas = [c["delta"] for _, data in self.server.events(CHAT, {**body, "stream": True}) if data != "[DONE]" for c in json.loads(data)["choices"]]
        self.assertEqual("".join(d.get("reasoning_content") or "" for d in deltas), message["reasoning_content"])
        blocks = self.ok(MESSAGES, {"messages": body["messages"], "max_tokens": 12, "temperature": 0, "output_config": {"effort": "low"}})["content"]
        self.assertEqual(blocks[0]["type"], "thinking")
        off = self.ok(CHAT, {**body, "reasoning_effort": "none"})["choices"][0]["message"]
        self.assertNotIn("reasoning_content", off)

    def test_a_forced_call_is_written_in_dsml_and_fits_its_schema(self):
        named = self.ok(CHAT, {**FORCED, "tool_choice": {"type": "function", "function": {"name": "weather"}}})["choices"][0]
        self.assertEqual(named["finish_reason"], "tool_calls", named)
        call = named["message"]["tool_calls"][0]
        arguments = json.loads(call["function"]["arguments"])
        self.assertEqual(call["function"]["name"], "weather")
        self.assertIn(arguments["city"], ("Rome", "Göteborg"))
        self.assertIsInstance(arguments["days"], int)
        self.assertLessEqual(set(arguments), {"city", "days", "note"})
        block = self.ok(MESSAGES, {"messages": FORCED["messages"], "max_tokens": 300, "tool_choice": {"type": "any"},
                                   "tools": [{"name": "weather", "input_schema": TOOL["parameters"]}]})["content"][0]
        self.assertEqual((block["type"], block["name"]), ("tool_use", "weather"))
        self.assertIn(block["input"]["city"], ("Rome", "Göteborg"))
        # The next round is found in the cache up to the answer's last tokens: the call is rendered as it was written.
        messages = FORCED["messages"] + [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}]
        usage = self.ok(CHAT, {**FORCED, "messages": messages, "max_tokens": 1, "thinking": {"type": "disabled"}})["usage"]
        self.assertGreater(usage["prompt_tokens_details"]["cached_tokens"], 100)

    def test_quick_tasks_end_the_prompt_with_their_token(self):
        prompt = self.ok("/apply-template", {"messages": [{"role": "user", "content": "q", "task": "title"}], "options": {"thinking": False}})["prompt"]
        self.assertEqual(prompt, "<｜begin▁of▁sentence｜><｜User｜>q<｜title｜>")
        self.ok(CHAT, {"messages": [{"role": "user", "content": "q", "task": "title"}], "max_tokens": 4})
        self.assertEqual(self.server.post(CHAT, {"messages": [{"role": "user", "content": "q", "task": "poem"}]})[0], 400)


if __name__ == "__main__":
    unittest.main()
