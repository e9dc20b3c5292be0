"""The Anthropic endpoints over plain HTTP."""
import json
import unittest

from running_server import Server

PATH = "/v1/messages"
TOOLS = [{"name": "weather", "description": "The weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 10}}, "required": ["city"]}}]


def ask(content="What is the capital of France?", **more):
    return {"model": "claude", "max_tokens": 24, "temperature": 0, "messages": [{"role": "user", "content": content}], **more}


class AnthropicTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def ok(self, body, path=PATH + "?beta=true"):
        status, _, answer = self.server.post(path, body)
        self.assertEqual(status, 200, answer)
        return answer

    def refused(self, body, word):
        status, _, answer = self.server.post(PATH, body)
        self.assertEqual(status, 400, answer)
        self.assertEqual((answer["type"], answer["error"]["type"]), ("error", "invalid_request_error"))
        self.assertIn(word, answer["error"]["message"])

    def test_message(self):
        answer = self.ok(ask())
        self.assertEqual((answer["type"], answer["role"]), ("message", "assistant"))
        self.assertEqual(answer["content"][0]["type"], "text")
        self.assertIn(answer["stop_reason"], ("end_turn", "max_tokens"))
        self.assertGreater(answer["usage"]["output_tokens"], 0)
        self.assertNotIn("timings", answer)

    def test_events_in_order(self):
        whole = self.ok(ask())["content"][0]["text"]
        events = self.server.events(PATH, ask(stream=True))
        data = [json.loads(d) for _, d in events]
        self.assertEqual([name for name, _ in events], [d["type"] for d in data])
        kinds = [d["type"] for d in data if d["type"] != "ping"]
        self.assertEqual(kinds[:2], ["message_start", "content_block_start"])
        self.assertEqual(kinds[-3:], ["content_block_stop", "message_delta", "message_stop"])
        self.assertEqual(set(kinds[2:-3]), {"content_block_delta"})
        self.assertEqual("".join(d["delta"]["text"] for d in data if d["type"] == "content_block_delta"), whole)

    def test_system_blocks_that_change_with_every_request_are_dropped(self):
        billing = {"type": "text", "text": "x-anthropic-billing-header: cch=123"}
        count = lambda system: self.ok(ask(system=system), PATH + "/count_tokens?beta=true")["input_tokens"]
        self.assertEqual(count([billing, {"type": "text", "text": "Be kind."}]), count("Be kind."))

    def test_counted_tokens_are_those_of_the_message(self):
        usage = self.ok(ask())["usage"]
        self.assertEqual(self.ok(ask(), PATH + "/count_tokens")["input_tokens"], usage["input_tokens"] + usage["cache_read_input_tokens"])

    def test_stop_sequence_is_named(self):
        text = self.ok(ask())["content"][0]["text"]
        answer = self.ok(ask(stop_sequences=[text[2:5]]))
        self.assertEqual((answer["stop_reason"], answer["stop_sequence"]), ("stop_sequence", text[2:5]))

    def test_tool_use_round(self):
        answer = self.ok(ask("Weather in Rome?", tools=TOOLS, tool_choice={"type": "tool", "name": "weather"}, max_tokens=100))
        self.assertEqual(answer["stop_reason"], "tool_use")
        call = answer["content"][-1]
        self.assertEqual(call["type"], "tool_use")
        self.assertEqual(set(call["input"]), {"city"})
        events = [json.loads(d) for _, d in self.server.events(PATH, ask("Weather in Rome?", tools=TOOLS, tool_choice={"type": "any"}, max_tokens=100, stream=True))]
        joined = "".join(e["delta"]["partial_json"] for e in events if e["type"] == "content_block_delta")
        self.assertEqual(set(json.loads(joined)), {"city"})
        self.ok({"model": "x", "max_tokens": 8, "tools": TOOLS, "messages": [
            {"role": "user", "content": "Weather in Rome?"}, {"role": "assistant", "content": answer["content"]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "sunny"}]}, {"type": "text", "text": "And now?"}]}]})

    def test_an_answer_begun_goes_on(self):
        answer = self.ok({"model": "x", "max_tokens": 8, "temperature": 0, "messages": [{"role": "user", "content": "What is the capital of France?"}, {"role": "assistant", "content": "The capital of"}]})
        self.assertFalse(answer["content"][0]["text"].startswith("The capital of"))

    def test_mistakes_are_told_in_this_apis_words(self):
        self.refused(ask(max_tokens=-1), "max_tokens")
        self.refused({"max_tokens": 5, "messages": []}, "messages")
        self.refused(ask([{"type": "image", "source": {}}]), "messages[0].content[0].type")
        self.refused(ask("word " * 3000), "prompt is too long")
        self.refused(ask(tools=[{"type": "web_search_1", "name": "a"}]), "tools[0].type")


if __name__ == "__main__":
    unittest.main()
