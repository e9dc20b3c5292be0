"""The official Python packages openai and anthropic against a running server. Started by sdk_test.sh in their environment."""
import asyncio
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

    def test_openai_sampling_fields_do_what_they_say(self):
        create = lambda **more: self.openai.chat.completions.create(model="any", messages=MESSAGES, **{"max_completion_tokens": 12, "temperature": 0, **more})
        plain = create(logprobs=True, top_logprobs=2).choices[0]
        self.assertEqual("".join(t.token for t in plain.logprobs.content), plain.message.content)
        first = plain.logprobs.content[0]
        self.assertEqual([t.token for t in first.top_logprobs][0], first.token)
        token = self.server.post("/tokenize", {"content": first.token}, headers={"Authorization": "Bearer key"})[2]["tokens"][0]
        self.assertFalse(create(logit_bias={str(token): -100}).choices[0].message.content.startswith(first.token))
        drawn = create(n=3, seed=7, temperature=1.5, presence_penalty=0.5, frequency_penalty=0.5, extra_body={"min_p": 0.01, "top_k": 50})
        self.assertEqual([c.index for c in drawn.choices], [0, 1, 2])
        again = create(n=3, seed=7, temperature=1.5, presence_penalty=0.5, frequency_penalty=0.5, extra_body={"min_p": 0.01, "top_k": 50})
        self.assertEqual([c.message.content for c in drawn.choices], [c.message.content for c in again.choices])
        one = create(temperature=2, seed=1, extra_body={"min_p": 1.0}).choices[0].message.content  # only the likeliest is left
        self.assertEqual(one, plain.message.content)
        stopped = create(stop=plain.message.content[3:6]).choices[0]
        self.assertEqual((stopped.message.content, stopped.finish_reason), (plain.message.content[:3], "stop"))

    def test_openai_streams_of_tools_choices_and_json(self):
        tools = [{"type": "function", "function": {"name": "weather", "parameters": TOOL}}]
        with self.openai.chat.completions.stream(model="any", messages=MESSAGES, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=100) as stream:
            for _ in stream:
                pass
            call, = stream.get_final_completion().choices[0].message.tool_calls
        self.assertEqual(set(json.loads(call.function.arguments)), {"city"})
        chunks = list(self.openai.chat.completions.create(model="any", messages=MESSAGES, n=2, seed=3, temperature=1, max_tokens=8, stream=True))
        self.assertEqual({c.choices[0].index for c in chunks}, {0, 1})
        self.assertEqual(sum(c.choices[0].finish_reason is not None for c in chunks), 2)
        text = "".join(c.choices[0].delta.content or "" for c in self.openai.chat.completions.create(
            model="any", messages=MESSAGES, max_tokens=200, seed=2, temperature=1, stream=True,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"a": {"enum": ["b", "c"]}}, "required": ["a"]}}}))
        self.assertIn(json.loads(text)["a"], ("b", "c"))
        pieces = list(self.openai.completions.create(model="any", prompt=["Once", "There"], max_tokens=6, stream=True, stream_options={"include_usage": True}))
        self.assertEqual({p.choices[0].index for p in pieces if p.choices}, {0, 1})
        self.assertEqual(pieces[-1].usage.completion_tokens, 12)

    def test_a_stream_that_is_left_ends_on_the_server(self):
        key = {"Authorization": "Bearer key"}
        with self.openai.chat.completions.create(model="any", messages=MESSAGES, max_tokens=900, stream=True, extra_body={"ignore_eos": True}) as stream:
            next(iter(stream))
        idle = lambda: 'fathom:cache_pages_used{model_name="fathom-tiny"} 0\n' in self.server.request("GET", "/metrics", headers=key)[2]
        self.assertTrue(self.server.wait_for(idle, 10))

    def test_a_full_queue_is_the_sdks_rate_limit(self):
        with Server("--parallel", "1", "--queue", "0", "--isa", "reference") as server:
            client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
            with client.chat.completions.create(model="any", messages=MESSAGES, max_tokens=900, stream=True, extra_body={"ignore_eos": True}):
                with self.assertRaises(openai.RateLimitError):
                    client.chat.completions.create(model="any", messages=MESSAGES)
                with self.assertRaises(anthropic.RateLimitError):
                    anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0).messages.create(model="any", messages=MESSAGES, max_tokens=5)

    def test_anthropic_system_stop_sequences_and_a_round_of_tools(self):
        create = lambda **more: self.anthropic.messages.create(model="any", **{"messages": MESSAGES, "max_tokens": 24, "extra_body": {"temperature": 0}, **more})
        whole = create(system="You are kind.").content[0].text
        stopped = create(system="You are kind.", stop_sequences=[whole[2:5]])
        self.assertEqual((stopped.stop_reason, stopped.stop_sequence), ("stop_sequence", whole[2:5]))
        tools = [{"name": "weather", "input_schema": TOOL}]
        call = create(tools=tools, tool_choice={"type": "tool", "name": "weather"}, max_tokens=100)
        after = create(tools=tools, messages=[*MESSAGES, {"role": "assistant", "content": call.content}, {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": call.content[-1].id, "content": "sunny"}]}])
        self.assertEqual(after.content[0].type, "text")


class AsyncSdkTest(unittest.IsolatedAsyncioTestCase):
    """The asynchronous clients say what the others say, and many of them at once too."""
    @classmethod
    def setUpClass(cls):
        cls.server = Server()

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def setUp(self):
        self.openai = openai.AsyncOpenAI(base_url=self.server.url + "/v1", api_key="none")
        self.anthropic = anthropic.AsyncAnthropic(base_url=self.server.url, api_key="none")

    async def asyncTearDown(self):
        await self.openai.close()
        await self.anthropic.close()

    async def test_openai_chat(self):
        alone = openai.OpenAI(base_url=self.server.url + "/v1", api_key="none").chat.completions.create(model="any", messages=MESSAGES, temperature=0, max_tokens=24)
        async def ask(stream):
            answer = await self.openai.chat.completions.create(model="any", messages=MESSAGES, temperature=0, max_tokens=24, stream=stream)
            return "".join([c.choices[0].delta.content or "" async for c in answer]) if stream else answer.choices[0].message.content
        for text in await asyncio.gather(*(ask(i % 2 == 0) for i in range(16))):
            self.assertEqual(text, alone.choices[0].message.content)

    async def test_openai_tools_json_completions_responses_and_models(self):
        tools = [{"type": "function", "function": {"name": "weather", "parameters": TOOL}}]
        async with self.openai.chat.completions.stream(model="any", messages=MESSAGES, tools=tools, tool_choice="required", max_tokens=100) as stream:
            call = (await stream.get_final_completion()).choices[0].message.tool_calls[0]
        self.assertEqual(set(json.loads(call.function.arguments)), {"city"})
        kept = await self.openai.chat.completions.create(model="any", messages=MESSAGES, max_tokens=400, temperature=1, seed=3, response_format={
            "type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}}})
        self.assertIn(json.loads(kept.choices[0].message.content)["a"], (True, False))
        text = await self.openai.completions.create(model="any", prompt="Once upon a time", max_tokens=8, stream=True)
        self.assertTrue("".join([c.choices[0].text async for c in text]))
        async with self.openai.responses.stream(model="any", input="What is the capital of France?", temperature=0, max_output_tokens=24) as stream:
            names = [event.type async for event in stream]
        self.assertIn(names[-1], ("response.completed", "response.incomplete"))
        self.assertEqual([m.id async for m in self.openai.models.list()], [self.server.model])

    async def test_openai_errors(self):
        with self.assertRaises(openai.BadRequestError):
            await self.openai.chat.completions.create(model="any", messages=MESSAGES, temperature=-1)
        with self.assertRaises(openai.BadRequestError):
            await self.openai.chat.completions.create(model="any", messages=MESSAGES, temperature=-1, stream=True)

    async def test_anthropic(self):
        whole = await self.anthropic.messages.create(model="any", messages=MESSAGES, max_tokens=24, extra_body={"temperature": 0})
        async with self.anthropic.messages.stream(model="any", messages=MESSAGES, max_tokens=24, extra_body={"temperature": 0}) as stream:
            self.assertEqual("".join([t async for t in stream.text_stream]), whole.content[0].text)
        tools = [{"name": "weather", "input_schema": TOOL}]
        async with self.anthropic.messages.stream(model="any", messages=MESSAGES, max_tokens=100, tools=tools, tool_choice={"type": "any"}) as stream:
            self.assertEqual(set((await stream.get_final_message()).content[-1].input), {"city"})
        self.assertGreater((await self.anthropic.messages.count_tokens(model="any", messages=MESSAGES)).input_tokens, 0)
        with self.assertRaises(anthropic.BadRequestError):
            await self.anthropic.messages.create(model="any", messages=[], max_tokens=5)


if __name__ == "__main__":
    unittest.main()
