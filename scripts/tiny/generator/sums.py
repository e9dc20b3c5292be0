"""Questions about numbers below 100, the written steps that lead to their answers, and bare sums.

A question is (question, answer, thoughts, the words of the answer that have one right form)."""
import re

from .grammar import HEAVY, LEARN, pick
from .words import BOYS, GIRLS, held_numbers

DIGITS = re.compile(r"\d+")


def mark_numbers(text):
    return DIGITS.sub(HEAVY + r"\g<0>" + LEARN, text)


def number_pair(r, op, split):
    """a + b and a - b are between 0 and 99, compared numbers differ; a quarter of the pairs is below 21. Training has more with one digit beside two."""
    while True:
        a, b = r.randrange(100), r.randrange(100)
        if r.random() < 0.25:
            a, b = r.randrange(21), r.randrange(21)
        elif split == "train" and r.random() < 0.2:
            a, b = (r.randrange(100), r.randrange(10)) if op == "-" or r.random() < 0.5 else (r.randrange(10), r.randrange(100))
        if op == "+" and a + b > 99 or op == "-" and a < b or op == "?" and a == b:
            continue
        if held_numbers(a, b) == (split == "test"):
            return a, b


def padded(a, op, b):
    """The sum with two digits in each number, the first step of thinking: afterwards ones and tens stand at the same places in all sums."""
    return f"{a:02d} {op} {b:02d}. "


def think_add(a, b):
    """Always the same steps, each a fact about single digits, in the order in which a carry is known."""
    u, t = a % 10 + b % 10, a // 10 + b // 10
    s = padded(a, "+", b) + f"Ones: {a % 10} + {b % 10} = {u}."
    if u > 9:
        return s + f" Write {u % 10}, carry 1. Tens: {a // 10} + {b // 10} + 1 = {t + 1}."
    return s + f" Tens: {a // 10} + {b // 10} = {t}."


def think_sub(a, b):
    ua, ub, ta, tb = a % 10, b % 10, a // 10, b // 10
    s = padded(a, "-", b)
    if ua >= ub:
        return s + f"Ones: {ua} - {ub} = {ua - ub}. Tens: {ta} - {tb} = {ta - tb}."
    return s + f"Ones: {ua} is less than {ub}, so borrow 1: {ua + 10} - {ub} = {ua + 10 - ub}. Tens: {ta} - 1 - {tb} = {ta - 1 - tb}."


def q_add(r, split):
    a, b = number_pair(r, "+", split)
    q = pick(r, f"[What is {a} + {b}?|What is {a} + {b}?|What is {a} plus {b}?|{a} + {b} = ?|Add {a} and {b}.|How much is {a} + {b}?|"
                f"Please compute {a} + {b}.|{a}+{b}|What is the sum of {a} and {b}?]")
    return q, f"{a} + {b} = {a + b}.", think_add(a, b), None


def q_sub(r, split):
    a, b = number_pair(r, "-", split)
    q = pick(r, f"[What is {a} - {b}?|What is {a} - {b}?|What is {a} minus {b}?|{a} - {b} = ?|Take {b} away from {a}.|How much is {a} - {b}?|"
                f"Please compute {a} - {b}.|{a}-{b}]")
    return q, f"{a} - {b} = {a - b}.", think_sub(a, b), None


def q_word_sum(r, split):
    add = r.random() < 0.5
    a, b = number_pair(r, "+" if add else "-", split)
    t = r.choice(["apples", "coins", "books", "nuts", "eggs", "stones", "kites", "pears"])
    n = r.choice(GIRLS + BOYS)
    he = "she" if n in GIRLS else "he"
    if add:
        q = pick(r, f"{n} has {a} {t} and [gets|finds|buys] {b} more. How many {t} does {he} have now?")
        return q, f"{a} + {b} = {a + b}, so {n} has {a + b} {t}.", f"{a} + {b}. " + think_add(a, b), [n, t]
    # The steps begin with the numbers as they were said: they can be copied there, and then padded.
    q = pick(r, f"{n} has {a} {t} and [loses|sells|gives away] {b}. How many {t} does {he} have left?")
    return q, f"{a} - {b} = {a - b}, so {n} has {a - b} {t} left.", f"{a} - {b}. " + think_sub(a, b), [n, t]


def q_bigger(r, split):
    a, b = number_pair(r, "?", split)
    big = r.random() < 0.6
    x = max(a, b) if big else min(a, b)
    w = r.choice(["bigger", "larger", "greater"]) if big else "smaller"
    q = pick(r, f"[Which is {w}, {a} or {b}?|Which number is {w}: {a} or {b}?|What is {w}, {a} or {b}?]")
    tens = f"Tens: {a // 10} and {b // 10}." if a // 10 != b // 10 else f"The tens are equal. Ones: {a % 10} and {b % 10}."
    return q, f"{x} is {w} than {a + b - x}.", tens, None


def q_next(r, split):
    n = r.randrange(0, 99)
    if r.random() < 0.6:
        return pick(r, f"What [number comes after|comes after|is the number after] {n}?"), f"After {n} comes {n + 1}.", f"{n} + 1 = {n + 1}.", None
    return pick(r, f"What [number comes before|comes before] {n + 1}?"), f"Before {n + 1} comes {n}.", f"{n + 1} - 1 = {n}.", None


def bare(r, split):
    """A sum without a question: ten tokens, of which the result is learned. The cheapest way to see many."""
    if r.random() < 0.35:
        a, b = number_pair(r, "+", split)
        return f"{a} + {b} =", f" {a + b}."
    a, b = number_pair(r, "-", split)
    return f"{a} - {b} =", f" {a - b}."
