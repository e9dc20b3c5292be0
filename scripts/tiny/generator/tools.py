"""Conversations in which tools may be called, in the words of V3.1's format (src/text/chat_literals.cpp; `fathom render` writes the same).

Each tool has one name and one set of parameters: of a million tokens of tools with names that only their declaration told, the model learned the form,
the values and when to call, and guessed the names. An exchange is a question, the arguments
of each call, what each call returns, and the answer made of that; `held_call` decides which tool never meets which value in training."""
import json
import re
from dataclasses import dataclass

from .grammar import HEAVY, LEARN, mark, pick, plain
from .questions import CITIES
from .sums import number_pair
from .words import BOYS, GIRLS, OBJECTS, held_call, held_numbers

CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEP, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
OUTPUT, OUTPUT_END = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"
HEAD = "## Tools\nYou have access to the following tools:\n\n"
TAIL = f"""

IMPORTANT: ALWAYS adhere to this exact format for tool use:
{CALLS}{CALL}tool_call_name{SEP}tool_call_arguments{CALL_END}{{{{additional_tool_calls}}}}{CALLS_END}

Where:

- `tool_call_name` must be an exact match to one of the available tools
- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema
- For multiple tool calls, chain them directly without separators or spaces
"""
SKIES = ["sunny", "cloudy", "rainy", "windy", "foggy", "clear", "snowy", "stormy", "warm", "cold", "dry", "wet"]
ROOMS = ["kitchen", "garden", "hall", "school", "cellar", "tower", "library", "stable", "barn", "attic", "market", "castle", "shop", "cave"]
MESSAGES = ["dinner is ready", "I am late", "the train is late", "we meet at noon", "the door is open", "happy birthday", "good night", "I am at home",
            "the shop is closed", "call me", "come home", "I found the key", "the cat is here", "see you tomorrow", "thank you", "it is raining"]


@dataclass
class Tool:
    kind: str
    name: str
    description: str
    parameters: list  # (name, type of JSON schema)

    def schema(self):
        return dict(type="object", properties={n: dict(type=t) for n, t in self.parameters}, required=[n for n, _ in self.parameters])

    def args(self, *values):
        return {n: v for (n, _), v in zip(self.parameters, values)}


@dataclass
class Exchange:
    question: str
    calls: list    # (tool, arguments)
    outputs: list  # a text for each call
    answer: str
    words: list    # those of the answer that have one right form


def write_system(system, tools):
    """The system text with the tools."""
    parts = [f"### {t.name}\nDescription: {t.description}\n\nParameters: {json.dumps(t.schema())}" for t in tools]
    return system + ("\n\n" if system else "") + HEAD + "\n\n".join(parts) + TAIL


def write_calls(calls):
    return CALLS + "".join(CALL + t.name + SEP + json.dumps(a) + CALL_END for t, a in calls) + CALLS_END


def write_outputs(outputs):
    return "".join(OUTPUT + o + OUTPUT_END for o in outputs)


def value(r, split, tool, values):
    """One that the tool may meet in this split."""
    while True:
        v = r.choice(values)
        if held_call(tool.name, v) == (split == "test"):
            return v


def output(r, **fields):
    """What a tool returns: an object, or its values alone."""
    return json.dumps(fields) if r.random() < 0.5 else ", ".join(map(str, fields.values()))


NUMBERS = {"add": ("+", "plus", ["Add two numbers.", "Adds two numbers.", "The sum of two numbers."]),
           "subtract": ("-", "minus", ["Subtract two numbers.", "The difference of two numbers.", "Take one number from another."]),
           "multiply": ("*", "times", ["Multiply two numbers.", "Multiplies two numbers.", "The product of two numbers."])}
TIMES = ("*", "x", "times")


def numbers(r, split, op):
    """Two numbers: half below 100, half of up to three digits; a difference is not negative."""
    if op != "*" and r.random() < 0.4:
        return number_pair(r, op, split)
    while True:
        a, b = r.randrange(2, r.choice([20, 100, 1000])), r.randrange(2, r.choice([20, 100, 1000]))
        if (op != "-" or a >= b) and held_numbers(a, b) == (split == "test"):
            return a, b


def compute(op, a, b):
    return a + b if op == "+" else a - b if op == "-" else a * b


def ask_numbers(r, op, word, a, b):
    said = r.choice([op, op, word]) if op != "*" else r.choice(TIMES)
    verb = {"+": f"Add {a} and {b}.", "-": f"Take {b} away from {a}.", "*": f"Multiply {a} and {b}."}[op]
    return r.choice([f"What is {a} {said} {b}?", f"What is {a} {said} {b}?", f"How much is {a} {said} {b}?", f"{a} {said} {b} = ?", f"Please compute {a} {said} {b}.", verb])


def arithmetic(kind):
    op, word, descriptions = NUMBERS[kind]

    def make(r):
        return Tool(kind, kind, r.choice(descriptions), [("a", "integer"), ("b", "integer")])

    def ask(r, split, tool):
        a, b = numbers(r, split, op)
        y = compute(op, a, b)
        return Exchange(ask_numbers(r, op, word, a, b), [(tool, tool.args(a, b))], [output(r, result=y)], f"The result is {y}.", None)
    return make, ask


def make_weather(r):
    return Tool("weather", "get_weather",
                r.choice(["The weather in a city.", "Get the weather of a city.", "Tells the weather of a place.", "Current weather."]),
                [("city", "string")])


def ask_weather(r, split, tool):
    city, sky, n = value(r, split, tool, CITIES), r.choice(SKIES), r.randrange(1, 36)
    outputs, answer = [output(r, **{r.choice(["weather", "sky"]): sky, r.choice(["degrees", "temperature"]): n})], f"It is {sky} in {city}, {n} degrees."
    if r.random() < 0.15:
        other, sky2, n2 = value(r, split, tool, [c for c in CITIES if c != city]), r.choice(SKIES), r.randrange(1, 36)
        outputs.append(output(r, weather=sky2, degrees=n2))
        q = pick(r, f"[What is the weather in {city} and in {other}?|How is the weather in {city} and {other}?]")
        return Exchange(q, [(tool, tool.args(city)), (tool, tool.args(other))], outputs, answer + f" It is {sky2} in {other}, {n2} degrees.", [sky, city, sky2, other])
    q = pick(r, f"[What is the weather in {city}?|What is the weather like in {city}?|How is the weather in {city}?|What's the weather in {city}?|Tell me the weather in {city}.|"
                f"Is it warm in {city}?|Weather in {city}?|How warm is it in {city}?]")
    return Exchange(q, [(tool, tool.args(city))], outputs, answer, [sky, city])


def make_time(r):
    return Tool("time", "get_time", r.choice(["The time in a city.", "Get the time of a city.", "What time it is in a place."]),
                [("city", "string")])


def ask_time(r, split, tool):
    city, t = value(r, split, tool, CITIES), f"{r.randrange(24):02d}:{r.randrange(60):02d}"
    q = pick(r, f"[What time is it in {city}?|What time is it in {city}?|Tell me the time in {city}.|What is the time in {city}?|How late is it in {city}?|Time in {city}?]")
    return Exchange(q, [(tool, tool.args(city))], [output(r, time=t)], f"It is {t} in {city}.", [city])


def make_remember(r):
    return Tool("remember", "remember", r.choice(["Remember where a thing is.", "Saves the place of a thing.", "Store where something is."]),
                [("thing", "string"), ("place", "string")])


def ask_remember(r, split, tool):
    thing, room = value(r, split, tool, OBJECTS), r.choice(ROOMS)
    q = pick(r, f"[Remember that the {thing} is in the {room}.|Remember: the {thing} is in the {room}.|Please remember that the {thing} is in the {room}.|"
                f"Save that the {thing} is in the {room}.|The {thing} is in the {room}. Please remember it.]")
    return Exchange(q, [(tool, tool.args(thing, room))], [r.choice(["ok", "saved", "done", json.dumps({"saved": True})])],
                    f"I remember that the {thing} is in the {room}.", [thing, room])


def make_find(r):
    return Tool("find", "find", r.choice(["Find a thing.", "Tells where a thing is.", "Look up where something is."]),
                [("thing", "string")])


def ask_find(r, split, tool):
    thing, room = value(r, split, tool, OBJECTS), r.choice(ROOMS)
    q = pick(r, f"[Where is the {thing}?|Where is the {thing}?|Where did I put the {thing}?|Find the {thing}.|Where can I find the {thing}?|Please find the {thing}.]")
    return Exchange(q, [(tool, tool.args(thing))], [output(r, **{r.choice(["place", "room"]): room})], f"The {thing} is in the {room}.", [thing, room])


def make_message(r):
    return Tool("message", "send_message", r.choice(["Send a message to a person.", "Sends a text to somebody.", "Tell somebody something."]),
                [("to", "string"), ("text", "string")])


def ask_message(r, split, tool):
    who, text = value(r, split, tool, GIRLS + BOYS), r.choice(MESSAGES)
    q = r.choice([f"Tell {who}: {text}", f"Send a message to {who}: {text}", f"Send {who} the message: {text}", f"Write to {who}: {text}", f"Send this to {who}: {text}"])
    return Exchange(q, [(tool, tool.args(who, text))], [r.choice(["ok", "sent", "done", json.dumps({"sent": True})])], f"I sent the message to {who}.", [who])


def make_timer(r):
    return Tool("timer", "set_timer", r.choice(["Set a timer.", "Starts a timer.", "A timer of some minutes."]),
                [("minutes", "integer")])


def ask_timer(r, split, tool):
    n = value(r, split, tool, range(2, 100))
    q = r.choice([f"Set a timer for {n} minutes.", f"Start a timer of {n} minutes.", f"Please set a timer for {n} minutes.", f"Timer, {n} minutes.", f"Tell me when {n} minutes are over."])
    return Exchange(q, [(tool, tool.args(n))], [r.choice(["ok", "started", "done"])], f"The timer is set for {n} minutes.", [str(n)])


def make_light(r):
    return Tool("light", "set_light", r.choice(["Switch a light.", "Turns the light of a room on or off.", "The light in a room."]),
                [("room", "string"), ("on", "boolean")])


def ask_light(r, split, tool):
    room, on = value(r, split, tool, ROOMS), r.random() < 0.5
    w = "on" if on else "off"
    q = r.choice([f"Turn {w} the light in the {room}.", f"Switch {w} the light in the {room}.", f"Turn the light in the {room} {w}.", f"Please turn the light in the {room} {w}."])
    return Exchange(q, [(tool, tool.args(room, on))], [r.choice(["ok", "done", json.dumps({"light": w})])], f"The light in the {room} is {w}.", [room, w])


def make_dice(r):
    return Tool("dice", "roll_dice", r.choice(["Roll a die.", "Rolls a die with so many sides."]), [("sides", "integer")])


def ask_dice(r, split, tool):
    n = value(r, split, tool, range(3, 100))
    y = r.randrange(1, n + 1)
    q = r.choice([f"Roll a die with {n} sides.", f"Please roll a die with {n} sides.", f"Throw a die with {n} sides."])
    return Exchange(q, [(tool, tool.args(n))], [output(r, result=y)], f"The die shows {y}.", [str(y)])


KINDS = {**{k: arithmetic(k) for k in NUMBERS}, "weather": (make_weather, ask_weather), "time": (make_time, ask_time),
         "remember": (make_remember, ask_remember), "find": (make_find, ask_find), "message": (make_message, ask_message), "timer": (make_timer, ask_timer),
         "light": (make_light, ask_light), "dice": (make_dice, ask_dice)}
SHARES = dict(add=4, subtract=3, multiply=5, weather=9, time=6, remember=3, find=4, message=3, timer=2, light=2, dice=2)
SHARES = dict(add=4, subtract=3, multiply=5, weather=9, time=6, remember=3, find=4, message=3, timer=2, light=2, dice=2)
ARITHMETIC = {*NUMBERS, "calculate"}


def choose_tools(r):
    """One to three tools."""
    n, kinds = r.choice([1, 1, 1, 2, 2, 3, 3]), []
    while len(kinds) < n:
        k = r.choices(list(SHARES), list(SHARES.values()))[0]
        if k not in kinds:
            kinds.append(k)
    return [KINDS[k][0](r) for k in kinds]


def exchange(r, split, tool):
    return KINDS[tool.kind][1](r, split, tool)


def without_tool(r, split, tools):
    """A question that only a tool could answer, which is not there."""
    missing = [k for k in ("weather", "time", "find", "timer", "light", "message") if k not in {t.kind for t in tools}]
    k = r.choice(missing)
    return exchange(r, split, KINDS[k][0](r)).question, "I am sorry, I have no tool for that."


def marked_call(calls):
    """All of a call has one right form."""
    return LEARN + HEAVY + write_calls(calls) + LEARN


def marked_answer(x):
    return mark(x.answer, (x.words or []) + re.findall(r"\d+", x.answer))


def as_messages(system, tools, steps):
    """A conversation in the form of the OpenAI API, as `fathom run --messages` and `fathom render --messages` take it. Steps as in tool_conversation."""
    messages, ids = ([dict(role="system", content=system)] if system else []), []
    for what, x in steps:
        if what == "calls":
            ids = [f"call_{len(messages)}_{i}" for i in range(len(x))]
            calls = [dict(id=n, type="function", function=dict(name=t.name, arguments=json.dumps(a))) for n, (t, a) in zip(ids, x)]
            messages.append(dict(role="assistant", content="", tool_calls=calls))
        elif what == "outputs":
            messages += [dict(role="tool", tool_call_id=n, content=o) for n, o in zip(ids, x)]
        else:
            messages.append(dict(role="user" if what == "user" else "assistant", content=plain(x)))
    return dict(messages=messages, tools=[dict(type="function", function=dict(name=t.name, description=t.description, parameters=t.schema())) for t in tools])
