"""What the generator of the shipped model's texts writes as a prompt is what the program writes: scripts/tiny/generator against fathom render."""
import json
import random
import sys
import unittest

from fathom_program import SOURCE, TINY, ProgramTest

sys.path.insert(0, str(SOURCE / "scripts/tiny"))
import generator as G
from generator.tools import as_messages


class Prompts(ProgramTest):
    def render(self, conversation):
        return self.run_ok("render", "-m", TINY, "--messages", "-", stdin=json.dumps(conversation).encode()).text

    def test_conversations_with_tools_are_written_as_the_program_does(self):
        seen = set()
        for seed in range(20):
            conversation = G.tool_conversation(random.Random(seed))
            self.assertEqual(self.render(as_messages(*conversation)), G.plain(G.tool_chat(random.Random(seed))) + G.ASSISTANT + "</think>")
            seen |= {what for what, _ in conversation[2]} | ({"system"} if conversation[0] else set())
        self.assertEqual(seen, {"user", "calls", "outputs", "answer", "system"})

    def test_a_question_is_opened_and_closed_as_the_program_does(self):
        question = {"messages": [{"role": "user", "content": "Hello"}]}
        self.assertEqual(self.render(question), G.BOS + G.USER + "Hello" + G.ASSISTANT + "</think>")


class HeldOut(unittest.TestCase):
    def test_what_is_held_out_is_never_called_in_training(self):
        def calls(split, seed):
            for what, x in G.tool_conversation(random.Random(seed), split)[2]:
                if what == "calls":
                    yield from ((t.name, *a.values()) for t, a in x)
        train, test = ({c for seed in range(3000) for c in calls(split, seed)} for split in ("train", "test"))
        self.assertGreater(len(test), 1000)
        self.assertEqual(train & test, set())


if __name__ == "__main__":
    unittest.main()
