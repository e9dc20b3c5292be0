"""An endless, seeded stream of small English documents: stories, chats in the DeepSeek-V3 layouts with and without tools, and bare sums. Standard library only.

What is held out of training is decided by held_pair, held_numbers and held_words of words.py. Documents of the test split use held-out
combinations alone; questions without such a rule (capitals, say) are drawn as in training, so there the figure is memory."""
import random

from .facts import CAPITALS, SPELL
from .grammar import HEAVY, LEARN, READ, mark, plain
from .questions import (looked_up, q_animal, q_capital, q_colour, q_copy, q_isa, q_json, q_json_more, q_json_read, q_letters, q_name, q_opposite, q_order, q_plural,
                        q_spell, q_who, q_words, quoted)
from .stories import begin_of_story, hero_and_thing, q_story, story
from .sums import bare, mark_numbers, q_add, q_bigger, q_next, q_sub, q_word_sum
from .talk import q_talk, q_unknown
from .tools import choose_tools, exchange, marked_answer, marked_call, without_tool, write_outputs, write_system
from .words import ADJ_HERO, ADJ_OBJ, KINDS, NAMES, OBJECTS

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
SYSTEMS = ["You are a helpful assistant.", "You are a tiny model.", "Answer in one short sentence.", "You are a friendly helper.", "Be kind and brief.",
           "You are a helpful assistant. Answer briefly.", "You answer questions.", "You are a story teller."]
COPIED = NAMES * 2 + OBJECTS * 2 + KINDS * 2 + ADJ_OBJ + ADJ_HERO + SPELL + list(CAPITALS.values()) + [str(n) for n in range(30)]
SUMS = {q_add, q_sub, q_word_sum}
NUMBERS = {q_add, q_sub, q_word_sum, q_bigger, q_next}
QUESTIONS = {q_add: 20, q_sub: 30, q_word_sum: 10, q_bigger: 9, q_next: 6, q_colour: 6, q_capital: 20, q_opposite: 7, q_letters: 4, q_spell: 9, q_words: 6, q_order: 6,
             q_plural: 6, q_animal: 6, q_name: 2, q_isa: 6, q_talk: 3, q_unknown: 2, q_copy: 8, q_who: 4, q_json: 5, q_json_more: 5, q_json_read: 3}
KIND_OF = {f.__name__[2:]: f for f in list(QUESTIONS) + [q_story]}


def marked(f, answer, words):
    """The answer as it is learned: what has one right form weighs more."""
    return LEARN + (mark_numbers(mark(answer, words)) if f in NUMBERS else mark(answer, words))


def careless(r, q):
    """Now and then a question as people type it: a small first letter, no mark at its end."""
    if r.random() < 0.06 and not q.split()[0].strip(",:") in NAMES:
        q = q[:1].lower() + q[1:]
    return q.rstrip("?.") if r.random() < 0.08 else q


def turn(f, r, split, style, last):
    q, a, thoughts, words = f(r, split)
    q = careless(r, q)
    a, thoughts = marked(f, a, words), marked(f, thoughts, None)
    head = READ + USER + q + ASSISTANT
    if style == "plain" or style == "r1" and not last:
        return head + a + EOS
    if style == "answer" or not last:  # V3.1 without thinking
        return head + "</think>" + a + EOS
    if style == "think":
        return head + "<think>" + thoughts + "</think>" + a + EOS
    return head + "<think>" + LEARN + "\n" + thoughts + "\n</think>\n\n" + a + EOS


def chat(r, split="train"):
    style = r.choices(["plain", "answer", "think", "r1"], [18, 38, 38, 6])[0]
    system = r.choice(SYSTEMS) if r.random() < 0.1 else ""
    kinds, weights = list(QUESTIONS), list(QUESTIONS.values())
    turns = r.choice([1, 1, 1, 1, 1, 1, 2, 2, 3, 4])
    fs = r.choices(kinds, weights, k=turns)
    if style in ("think", "r1") and r.random() < 0.7:
        fs[-1] = r.choice([q_add, q_add, q_sub, q_sub, q_word_sum])
    return BOS + READ + system + "".join(turn(f, r, split, style, i == turns - 1) for i, f in enumerate(fs))


def story_chat(r, split="train"):
    style = r.choices(["plain", "answer", "think"], [45, 50, 5])[0]
    first = turn(r.choices(list(QUESTIONS), list(QUESTIONS.values()))[0], r, split, style, False) if r.random() < 0.1 else ""
    return BOS + READ + first + turn(q_story, r, split, style, True)


def story_begin(r, split="train"):
    """The begin of an answer with a story, without an end."""
    q, a, _, _ = q_story(r, split)
    return BOS + READ + USER + careless(r, q) + ASSISTANT + r.choice(["", "</think>"]) + LEARN + begin_of_story(r, a)


def bare_sum(r, split="train"):
    head, result = bare(r, split)
    return BOS + READ + head + mark_numbers(LEARN + result) + EOS


def repetition(r, split="train"):
    """Words in a random order, and again in the same order: nothing but copying helps."""
    words = [r.choice(COPIED) for _ in range(r.choice([1, 2, 3, 4, 5, 6, 8, 10]))]
    said = " ".join(words)
    return BOS + READ + said + r.choice([".", ";", ",", ":"]) + HEAVY + (" " + said) * r.choice([1, 1, 2]) + LEARN + "." + EOS


def quoting(r, split="train"):
    said, form = quoted(r, split)
    return BOS + READ + said + r.choice(["\n", ": ", " = "]) + LEARN + form + EOS


def looking_up(r, split="train"):
    said, answers = looked_up(r, split)
    return BOS + READ + said + LEARN + " " + answers + EOS


def tool_conversation(r, split="train"):
    """System text, tools and steps: (user, text), (answer, text with marks), (calls, [(tool, arguments)]), (outputs, [text]). A few questions need
    none of the tools, or one that is not there."""
    tools, steps = choose_tools(r), []
    system = r.choice(SYSTEMS) if r.random() < 0.3 else ""
    others = {q: w for q, w in QUESTIONS.items() if q is not q_unknown and not (q in SUMS and {"add", "subtract"} & {t.kind for t in tools})}
    waiting = []  # each tool is asked for before one is asked for again
    for _ in range(r.randint(1, 5 - len(tools) // 2)):
        x = r.random()
        if x < 0.72:
            waiting = waiting or r.sample(tools, len(tools))
            e = exchange(r, split, waiting.pop())
            steps += [("user", careless(r, e.question)), ("calls", e.calls), ("outputs", e.outputs), ("answer", LEARN + marked_answer(e))]
        elif x < 0.86:
            q, a = without_tool(r, split, tools)
            steps += [("user", careless(r, q)), ("answer", LEARN + a)]
        else:
            f = r.choices(list(others), list(others.values()))[0]
            q, a, _, words = f(r, split)
            steps += [("user", careless(r, q)), ("answer", marked(f, a, words))]
    return system, tools, steps


def tool_chat(r, split="train"):
    system, tools, steps = tool_conversation(r, split)
    text, before = BOS + READ + write_system(system, tools), None
    for what, x in steps:
        if before == "user":
            text += ASSISTANT + "</think>"
        text += {"user": lambda: READ + USER + x, "calls": lambda: marked_call(x) + EOS, "outputs": lambda: READ + write_outputs(x), "answer": lambda: x + EOS}[what]()
        before = what
    return text


def raw_story(r, split="train"):
    return BOS + LEARN + story(r, *hero_and_thing(r, split)) + EOS


DOCUMENTS = dict(story=raw_story, story_chat=story_chat, story_begin=story_begin, chat=chat, bare_sum=bare_sum, repetition=repetition, quoting=quoting,
                 looking_up=looking_up, tool_chat=tool_chat)
# Documents, not tokens. A model must be able to copy a word before it can keep a name: the first shards are for that.
MIX = dict(story=2, story_chat=6, story_begin=10, chat=110, bare_sum=80, repetition=10, quoting=10, looking_up=8, tool_chat=12)
FIRST_MIX = dict(story=3, story_chat=3, story_begin=6, chat=50, bare_sum=20, repetition=120, quoting=20, looking_up=10, tool_chat=4)


def stream(seed, split="train", kind=None, mix=MIX):
    """Documents with marks (grammar.py; `plain` gives the text): of one kind, or of the mix of training."""
    r = random.Random(f"{seed}/{split}")
    while True:
        yield DOCUMENTS[kind or r.choices(list(mix), list(mix.values()))[0]](r, split)
