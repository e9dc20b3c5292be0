#!/usr/bin/env python3
"""Asks the program for stories about held-out pairs of a hero and a thing, at the temperature the model's file names, and counts those that hold together.

  check_stories.py --model models/tiny/tiny-q8_0.gguf [--count 20] [--seed 1] [--show]

A story holds together if it comes to an end, the hero asked for and the thing asked for appear, the hero has one name that is kept to the end, nobody but the
hero and one friend is named, each name belongs to one kind of creature, and no other creature and no other thing turns up."""
import argparse
import random
import re
import sys

from generator.grammar import fix
from generator.words import KINDS, NAMES, OBJECTS, held_kind
from program import FATHOM, Program

WORD = re.compile(r"[A-Za-z]+")


def kinds_of(text, name):
    """The kinds that the text says `name` is: "a shy fox named Pip", "Pip the fox", "Pip, a shy fox", "Pip was a shy fox"."""
    kind = "(" + "|".join(KINDS) + ")"
    forms = (rf"\b{kind} (?:named|called) {name}\b", rf"\b{name} the {kind}\b", rf"\b{name}(?:,| was) an? (?:\w+ )?{kind}\b", rf"\b{name}, the \w+ {kind}\b")
    return {m for f in forms for m in re.findall(f, text)}


def faults(text, kind, thing):
    """What is wrong with a story about `kind` and `thing`; an empty list if nothing is."""
    found = []
    words = WORD.findall(text)
    lower = {w.lower() for w in words}
    names = [w for w in words if w in NAMES]
    who = list(dict.fromkeys(names))
    if kind not in lower:
        found.append(f"no {kind}")
    if thing not in lower:
        found.append(f"no {thing}")
    heroes = [n for n in who if kind in kinds_of(text, n)]
    if not heroes:
        found.append(f"no name for the {kind}")
    else:
        if names.count(heroes[0]) < 3:
            found.append(f"{heroes[0]} is named {names.count(heroes[0])} times")
        if heroes[0] not in names[-(len(names) // 3 or 1):]:
            found.append(f"{heroes[0]} is gone at the end")
    if len(who) > 2:
        found.append("names: " + ", ".join(who))
    for n in who:
        if len(kinds_of(text, n)) > 1:
            found.append(f"{n} is " + " and ".join(sorted(kinds_of(text, n))))
    if len(who) > 1 and heroes and heroes[0] in who[:2] and not all(kinds_of(text, n) for n in who[:2]):
        found.append("somebody is a name only")
    known = {kind} | {k for n in who for k in kinds_of(text, n)}
    plain = [w for w in words if w.islower()]
    for w in sorted(set(plain) & set(KINDS) - known - {thing}):
        found.append(f"another creature: {w}")
    for w in sorted(set(plain) & set(OBJECTS) - {thing, kind}):
        found.append(f"another thing: {w}")
    return found


def requests(count, seed):
    r = random.Random(seed)
    while count:
        kind, thing = r.choice(KINDS), r.choice(OBJECTS)
        if held_kind(kind, thing):
            yield fix(f"Tell me a story about a@ {kind} and a@ {thing}."), kind, thing
            count -= 1


def check(program, count=20, seed=1, options=(), show=False):
    """(good, count, what was wrong with each of the others)."""
    asked = list(requests(count, seed))
    answers = program.all([(q, "-n", 400, "--seed", seed * 1000 + i, *options) for i, (q, _, _) in enumerate(asked)])
    bad = []
    for (q, kind, thing), answer in zip(asked, answers):
        wrong = faults(answer["text"], kind, thing) + ([] if answer["finish_reason"] == "stop" else ["no end"])
        if wrong:
            bad.append((q, wrong, answer["text"]))
        if show or wrong:
            print(f"{'WRONG ' + '; '.join(wrong) if wrong else 'good'}\n  {q}\n  {answer['text']}\n")
    return count - len(bad), count, bad


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", required=True)
    ap.add_argument("--fathom", default=FATHOM)
    ap.add_argument("--count", type=int, default=20)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--temp", type=float, help="another temperature than the file's")
    ap.add_argument("--show", action="store_true", help="print the good ones too")
    a = ap.parse_args()
    good, count, _ = check(Program(a.model, a.fathom), a.count, a.seed, () if a.temp is None else ("--temp", a.temp), a.show)
    print(f"{good} of {count} stories hold together")
    sys.exit(good != count)
