"""Small questions with one right answer. Each function returns (question, answer, thoughts, the words of the answer that have one right form)."""
import json

from .facts import (BABIES, CAPITALS, COLOURS, COUNT_SUBJ, COUNT_TAIL, COUNT_VERB, DAYS, GROUPS, HOMES, MONTHS, NUMWORD, OPPOSITES, PLURALS, SOUNDS, SPELL)
from .grammar import HEAVY, LEARN, fix, mark, pick
from .words import ADJ_OBJ, ANIMALS, BOYS, GIRLS, NAMES, OBJECTS, held_words

ORDINAL = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
CITIES = [c for c in list(CAPITALS.values())[:61] if " " not in c]  # Paris to Wellington
SINGULAR = {"fruits": "fruit", "animals": "animal", "colours": "colour", "trees": "tree", "birds": "bird", "vegetables": "vegetable", "tools": "tool",
            "clothes": "piece of clothing", "instruments": "instrument"}


def q_colour(r, split):
    t, c = r.choice(list(COLOURS.items()))
    return pick(r, f"[What colour is {t}?|What color is {t}?|Which colour is {t}?|Tell me the colour of {t}.]"), fix(f"{t} is {c}."), f"I think of {t}. It is {c}.", [c]


def q_capital(r, split):
    t, c = r.choice(list(CAPITALS.items()))
    if r.random() < 0.3:
        q = pick(r, f"[Which country has the capital {c}?|{c} is the capital of which country?|What country is {c} the capital of?]")
        return q, f"{c} is the capital of {t}.", f"{c} is a capital. The country is {t}.", [t]
    q = pick(r, f"[What is the capital of {t}?|What is the capital of {t}?|Which city is the capital of {t}?|Capital of {t}?|Name the capital of {t}.|"
                f"Tell me the capital of {t}.|What is the capital city of {t}?]")
    return q, f"The capital of {t} is {c}.", f"The country is {t}. Its capital is {c}.", [c]


def q_opposite(r, split):
    a, b = r.choice(OPPOSITES)
    if r.random() < 0.5 and (a, b) not in (("heavy", "light"), ("new", "old"), ("wrong", "right"), ("right", "wrong")):
        a, b = b, a
    b = {"light": "dark", "old": "young", "right": "left", "quiet": "loud"}.get(a, b)  # words with several opposites
    q = pick(r, f"[What is the opposite of {a}?|What is the opposite of {a}?|Opposite of {a}?|Tell me the opposite of {a}.|Which word is the opposite of {a}?]")
    return q, f"The opposite of {a} is {b}.", f"{a} and {b} are opposites.".capitalize(), [b]


def q_letters(r, split):
    w = r.choice(SPELL)
    q = pick(r, f"[How many letters are in the word {w}?|How many letters does {w} have?|Count the letters in {w}.|How many letters are there in \"{w}\"?]")
    return q, f"The word {w} has {len(w)} letters.", f"{'-'.join(w)}. That is {len(w)}.", [str(len(w))]


def q_spell(r, split):
    w = r.choice(SPELL)
    x = r.random()
    if x < 0.5:
        return pick(r, f"[How do you spell {w}?|Spell the word {w}.|Please spell {w}.|Spell {w}.]"), fix(f"{'-'.join(w)}."), f"The word is {w}.", ["-".join(w)]
    if x < 0.8:
        return pick(r, f"[What is the first letter of {w}?|Which letter does {w} begin with?]"), f"The first letter of {w} is {w[0]}.", fix(f"{'-'.join(w)}."), [w[0]]
    return f"What is the last letter of {w}?", f"The last letter of {w} is {w[-1]}.", fix(f"{'-'.join(w)}."), [w[-1]]


def q_words(r, split):
    while True:
        s = " ".join(x for x in (r.choice(COUNT_SUBJ), r.choice(COUNT_VERB), r.choice(COUNT_TAIL)) if x)
        if held_words(s) == (split == "test"):
            break
    n = len(s.split())
    q = pick(r, f"[How many words are in \"{s}\"?|Count the words: {s}|How many words does this have: {s}]")
    return q, f"There are {n} words.", " ".join(f"{i + 1} {w}" for i, w in enumerate(s.split())) + ".", [str(n)]


def q_order(r, split):
    if r.random() < 0.5:
        i = r.randrange(7)
        if r.random() < 0.6:
            nxt = DAYS[(i + 1) % 7]
            return pick(r, f"[What day|Which day|What] comes after {DAYS[i]}?"), f"After {DAYS[i]} comes {nxt}.", "I go through the week.", [nxt]
        return pick(r, f"[What day comes before {DAYS[i]}?|Which day is before {DAYS[i]}?]"), f"Before {DAYS[i]} comes {DAYS[i - 1]}.", "I go through the week.", [DAYS[i - 1]]
    i = r.randrange(12)
    x = r.random()
    if x < 0.5:
        nxt = MONTHS[(i + 1) % 12]
        return pick(r, f"[What month|Which month|What] comes after {MONTHS[i]}?"), f"After {MONTHS[i]} comes {nxt}.", "I go through the year.", [nxt]
    if x < 0.75:
        q = pick(r, f"[What month comes before {MONTHS[i]}?|Which month is before {MONTHS[i]}?]")
        return q, f"Before {MONTHS[i]} comes {MONTHS[i - 1]}.", "I go through the year.", [MONTHS[i - 1]]
    return f"What is the {ORDINAL[i]} month of the year?", f"The {ORDINAL[i]} month of the year is {MONTHS[i]}.", "I count the months.", [MONTHS[i]]


def q_plural(r, split):
    a, b = r.choice(PLURALS)
    q = pick(r, f"[What is the plural of {a}?|Plural of {a}?|What do you call more than one {a}?|Tell me the plural of {a}.]")
    return q, f"The plural of {a} is {b}.", f"One {a}, two {b}.", [b]


def q_animal(r, split):
    x = r.random()
    if x < 0.4:
        a, b = r.choice(list(SOUNDS.items()))
        return pick(r, f"[What sound does a@ {a} make?|What does a@ {a} say?]"), fix(f"a@ {a} says {b}."), fix(f"a@ {a} says {b}."), [b]
    if x < 0.7:
        a, b = r.choice(list(BABIES.items()))
        return f"What is a baby {a} called?", f"A baby {a} is called a {b}.", f"The baby of a {a} is a {b}.", [b]
    a, b = r.choice(list(HOMES.items()))
    return fix(f"Where does a@ {a} live?"), fix(f"A@ {a} lives in {b}."), fix(f"A@ {a} lives in {b}."), [b]


def q_name(r, split):
    g, members = r.choice(list(GROUPS.items()))
    n = r.choice([2, 3, 3, 3, 4])
    c = r.sample(members, n)
    q = pick(r, f"[Name|Tell me|Give me|Can you name] {NUMWORD[n]} {g}")
    return q + ("?" if q.startswith("Can") else "."), fix(", ".join(c[:-1]) + " and " + c[-1] + "."), f"I choose {NUMWORD[n]} {g}.", None


def q_isa(r, split):
    """The answer says what the thing is before it says yes or no: the one is known by heart, the other then stands there."""
    g = r.choice(list(SINGULAR))
    w = r.choice(GROUPS[g])
    art = "" if g == "colours" else "a@ "
    if r.random() < 0.5:
        return fix(f"is {art}{w} a@ {SINGULAR[g]}?"), fix(f"{art}{w} is a@ {SINGULAR[g]}, so yes."), fix(f"{art}{w} is a@ {SINGULAR[g]}."), ["yes", *SINGULAR[g].split()]
    if w in GROUPS["birds"]:
        g = "birds"  # what is asked for is no animal either: the narrower kind is said
    h = r.choice([x for x in SINGULAR if w not in GROUPS[x] and {x, g} != {"animals", "birds"}])
    return (fix(f"is {art}{w} a@ {SINGULAR[h]}?"), fix(f"{art}{w} is a@ {SINGULAR[g]}, so no, it is not a@ {SINGULAR[h]}."), fix(f"{art}{w} is a@ {SINGULAR[g]}."),
            ["no", *SINGULAR[h].split(), *SINGULAR[g].split()])


def q_copy(r, split):
    s = " ".join(r.choice(OBJECTS + ANIMALS + ADJ_OBJ + NAMES[:60]) for _ in range(r.choice([1, 2, 2, 3, 4])))
    return pick(r, f"[Say|Repeat after me:|Repeat:] {s}"), f"{s}.", f"I repeat: {s}.", s.split()


def belongings(r, n):
    """n names, and a thing for each."""
    return r.sample(GIRLS + BOYS, n), r.sample(OBJECTS, n)


def q_who(r, split):
    """Who has what, and what somebody has. The answer begins with what was asked for: from there the other can be looked up."""
    n = r.choice([2, 2, 3])
    who, what = belongings(r, n)
    said = " ".join(fix(f"{w} has a@ {o}.") for w, o in zip(who, what))
    i = r.randrange(n)
    if r.random() < 0.6:
        return f"{said} Who has the {what[i]}?", f"The {what[i]} is with {who[i]}.", fix(f"{who[i]} has a@ {what[i]}."), [who[i], what[i]]
    return f"{said} What does {who[i]} have?", fix(f"{who[i]} has a@ {what[i]}."), fix(f"{who[i]} has a@ {what[i]}."), [who[i], what[i]]


def looked_up(r, split):
    """Belongings, and all of them asked for, in another order, with marks on what is to be looked up: (what is read, what is learned)."""
    n = r.choice([2, 2, 3, 3, 4])
    who, what = belongings(r, n)
    said = " ".join(fix(f"{w} has a@ {o}.") for w, o in zip(who, what))
    found = lambda word: HEAVY + " " + word + LEARN
    order = r.sample(range(n), n)
    return said, " ".join(f"The {what[i]} is with{found(who[i])}." if r.random() < 0.7 else f"{who[i]} has {'an' if what[i][0] in 'aeiou' else 'a'}{found(what[i])}." for i in order)


def fields(r, n):
    """Names of values and the values, n of them."""
    who = r.choice(GIRLS + BOYS)
    possible = [("name", who), ("age", r.randrange(2, 100)), ("pet", r.choice(ANIMALS)), ("thing", r.choice(OBJECTS)), ("count", r.randrange(2, 100)), ("place", r.choice(CITIES)),
                ("city", r.choice(CITIES)), ("colour", r.choice(GROUPS["colours"])), ("animal", r.choice(ANIMALS)), ("friend", r.choice(GIRLS + BOYS)), ("number", r.randrange(2, 100))]
    return r.sample(possible, n)


def as_words(pairs):
    said = [f"{k} {v}" for k, v in pairs]
    return said[0] if len(said) == 1 else ", ".join(said[:-1]) + " and " + said[-1]


def written(pairs):
    return [x for k, v in pairs for x in (k, str(v))]


def q_json(r, split):
    """A small object out of two named values."""
    who, n = r.choice(GIRLS + BOYS), r.randrange(2, 100)
    pairs = r.choice([(("name", who), ("age", n)), (("name", who), ("pet", r.choice(ANIMALS))), (("thing", r.choice(OBJECTS)), ("count", n)),
                      (("name", who), ("place", r.choice(CITIES)))])
    said = " and ".join(f"{k} {v}" for k, v in pairs)
    q = pick(r, f"[Write as JSON: {said}.|Give me JSON with {said}.|Make a JSON object with {said}.]")
    return q, json.dumps(dict(pairs)), f"The keys are {pairs[0][0]} and {pairs[1][0]}.", written(pairs)


def q_json_more(r, split):
    """Objects of one to four values, and lists."""
    if r.random() < 0.35:
        words = r.sample(r.choice([OBJECTS, ANIMALS, GIRLS + BOYS, CITIES, GROUPS["colours"]]), r.choice([2, 3, 3, 4]))
        said = ", ".join(words[:-1]) + " and " + words[-1]
        return pick(r, f"[Write {said} as a JSON list.|Make a JSON list of {said}.|Give me a JSON array with {said}.]"), json.dumps(words), f"The list is {said}.", words
    pairs = fields(r, r.choice([1, 3, 3, 4]))
    q = pick(r, f"[Write as JSON: {as_words(pairs)}.|Give me JSON with {as_words(pairs)}.|Make a JSON object with {as_words(pairs)}.]")
    return q, json.dumps(dict(pairs)), "The keys are " + ", ".join(k for k, _ in pairs) + ".", written(pairs)


def q_json_read(r, split):
    """What stands under a key."""
    pairs = fields(r, r.choice([2, 2, 3]))
    k, v = r.choice(pairs)
    q = pick(r, r.choice([f"What is the {k} in {json.dumps(dict(pairs))}?", f"{json.dumps(dict(pairs))} What is the {k}?", f"Read the {k} from {json.dumps(dict(pairs))}."]))
    return q, f"The {k} is {v}.", f"The key is {k}.", [k, str(v)]


def quoted(r, split):
    """Words, and the same as JSON: (what is read, what is learned, with marks)."""
    if r.random() < 0.5:
        words = [r.choice(ANIMALS + OBJECTS + GIRLS + BOYS + CITIES + GROUPS["colours"]) for _ in range(r.choice([2, 3, 4, 5, 6]))]
        return " ".join(words), mark(json.dumps(words), words)
    pairs = fields(r, r.choice([2, 3, 4]))
    return as_words(pairs), mark(json.dumps(dict(pairs)), written(pairs))
