"""The official Python packages openai and anthropic against a running server. Started by sdk_test.sh in their environment."""
import json
import unittest

import anthropic
import openai
from running_server import Server

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
TOOL = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 10}}, "required": ["city"]}


class SdkTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--api-key", "key")
        cls.openai = openai.OpenAI(base_url=cls.server.url + "/v1", api_key="key")
        cls.anthropic = anthropic.Anthropic(base_url=cls.server.url, api_key="key")

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def test_openai_chat(self):
        answer = self.openai.chat.completions.create(model="any", messages=MESSAGES, temperature=0, max_completion_tokens=24)
        self.assertTrue(answer.choices[0].message.content)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
        stream = self.openai.chat.completions.create(model="any", messages=MESSAGES, temperature=0, max_completion_tokens=24, stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), answer.choices[0].message.content)
        self.assertEqual(chunks[-1].usage.completion_tokens, answer.usage.completion_tokens)

    def test_openai_stream_helper_sees_a_whole_completion(self):
        with self.openai.chat.completions.stream(model="any", messages=MESSAGES, temperature=0, max_tokens=24) as stream:
            for _ in stream:
                pass
            self.assertIn(stream.get_final_completion().choices[0].finish_reason, ("stop", "length"))

    def test_openai_tools_and_parsed_json(self):
        tools = [{"type": "function", "function": {"name": "weather", "parameters": TOOL}}]
        answer = self.openai.chat.completions.create(model="any", messages=MESSAGES, tools=tools, tool_choice="required", max_tokens=100)
        self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
        call = answer.choices[0].message.tool_calls[0]
        self.assertEqual(set(json.loads(call.function.arguments)), {"city"})
        again = self.openai.chat.completions.create(model="any", max_tokens=8, tools=tools, messages=[*MESSAGES, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}])
        self.assertTrue(again.choices)
        schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
        kept = self.openai.chat.completions.create(model="any", messages=MESSAGES, max_tokens=60, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}})
        self.assertIn(json.loads(kept.choices[0].message.content)["a"], (True, False))

    def test_openai_completions_models_and_logprobs(self):
        text = self.openai.completions.create(model="any", prompt="Once upon a time", max_tokens=8, logprobs=2)
        self.assertEqual("".join(text.choices[0].logprobs.tokens), text.choices[0].text)
        self.assertEqual(self.openai.models.list().data[0].id, self.server.model)
        self.assertEqual(self.openai.models.retrieve(self.server.model).object, "model")

    def test_openai_responses(self):
        answer = self.openai.responses.create(model="any", input="What is the capital of France?", temperature=0, max_output_tokens=24)
        self.assertTrue(answer.output_text)
        with self.openai.responses.stream(model="any", input="What is the capital of France?", temperature=0, max_output_tokens=24) as stream:
            for _ in stream:
                pass
            self.assertEqual(stream.get_final_response().output_text if answer.status == "completed" else answer.output_text, answer.output_text)
        call = self.openai.responses.create(model="any", input="Weather?", max_output_tokens=100, tool_choice="required", tools=[{"type": "function", "name": "weather", "parameters": TOOL, "strict": False}])
        self.assertEqual(call.output[-1].type, "function_call")
        self.assertEqual(set(json.loads(call.output[-1].arguments)), {"city"})

    def test_openai_errors_have_their_classes(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.openai.chat.completions.create(model="any", messages=[{"role": "user", "content": "word " * 3000}])
        self.assertEqual(caught.exception.body["n_ctx"], 1024)
        with self.assertRaises(openai.AuthenticationError):
            openai.OpenAI(base_url=self.server.url + "/v1", api_key="wrong").chat.completions.create(model="any", messages=MESSAGES)
        with self.assertRaises(openai.NotFoundError):
            self.openai.models.retrieve("none")

    def test_anthropic_messages(self):
        answer = self.anthropic.messages.create(model="any", messages=MESSAGES, max_tokens=24, extra_body={"temperature": 0})
        self.assertEqual(answer.content[0].type, "text")
        with self.anthropic.messages.stream(model="any", messages=MESSAGES, max_tokens=24, extra_body={"temperature": 0}) as stream:
            self.assertEqual("".join(stream.text_stream), answer.content[0].text)
            self.assertEqual(stream.get_final_message().stop_reason, answer.stop_reason)
        counted = self.anthropic.messages.count_tokens(model="any", messages=MESSAGES)
        self.assertEqual(counted.input_tokens, answer.usage.input_tokens + answer.usage.cache_read_input_tokens)

    def test_anthropic_tools(self):
        tools = [{"name": "weather", "input_schema": TOOL}]
        with self.anthropic.messages.stream(model="any", messages=MESSAGES, max_tokens=100, tools=tools, tool_choice={"type": "any"}) as stream:
            message = stream.get_final_message()
        self.assertEqual(message.stop_reason, "tool_use")
        self.assertEqual(set(message.content[-1].input), {"city"})

    def test_anthropic_errors_have_their_classes(self):
        with self.assertRaises(anthropic.BadRequestError) as caught:
            self.anthropic.messages.create(model="any", messages=[{"role": "user", "content": "word " * 3000}], max_tokens=5)
        self.assertIn("prompt is too long", str(caught.exception))
        with self.assertRaises(anthropic.AuthenticationError):
            anthropic.Anthropic(base_url=self.server.url, api_key="wrong").messages.create(model="any", messages=MESSAGES, max_tokens=5)


if __name__ == "__main__":
    unittest.main()
