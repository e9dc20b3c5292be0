"""Templates: '[a|b [c|d]]' chooses, '{slot}' fills in, 'a@ word' becomes 'a word' or 'an word'."""
import re
from functools import lru_cache

# Marks in a document, never part of its text. What follows is read only, or learned, or learned with more weight because
# it has one right form (see train.py).
READ, LEARN, HEAVY = "\x01", "\x02", "\x03"
MARKS = re.compile("[\x01-\x03]")


@lru_cache(maxsize=None)
def parse(template):
    """'a [b|c [d|e]]' -> nested tuples: a sequence of strings and ('|', alternatives)."""
    def sequence(i, inside):
        out, text = [], []
        while i < len(template) and not (inside and template[i] in "|]"):
            if template[i] != "[":
                text.append(template[i])
                i += 1
                continue
            if text:
                out.append("".join(text))
                text = []
            alternatives = []
            while True:
                node, i = sequence(i + 1, True)
                alternatives.append(node)
                if template[i] == "]":
                    break
            out.append(("|", tuple(alternatives)))
            i += 1
        if text:
            out.append("".join(text))
        return tuple(out), i
    return sequence(0, False)[0]


def render(node, r):
    return "".join(x if isinstance(x, str) else render(r.choice(x[1]), r) for x in node)


ARTICLE = re.compile(r"\b([Aa])@ (\w)")
AFTER_STOP = re.compile(r"([.!?] +)([a-z])")
SLOT = re.compile(r"\{(\w+)\}")
QUOTED = re.compile(r'^"\w')


def fix(s):
    """Articles, and capitals at the begin of sentences."""
    s = ARTICLE.sub(lambda m: m[1] + ("n " if m[2] in "aeiouAEIOU" else " ") + m[2], s)
    s = AFTER_STOP.sub(lambda m: m[1] + m[2].upper(), s)
    return s[:2].upper() + s[2:] if QUOTED.match(s) else s[:1].upper() + s[1:]


def pick(r, template, slots=None):
    s = render(parse(template), r)
    while slots and "{" in s:
        s = SLOT.sub(lambda m: slots[m[1]], s)
    return fix(s)


def mark(text, words, new=()):
    """Marks the words (whole words, any case) wherever they stand; of those in `new` the first occurrence stays unmarked: nothing foretells it."""
    if not words:
        return text
    unseen = {w.lower() for w in new}

    def marked(m):
        if m[0].lower() in unseen:
            unseen.discard(m[0].lower())
            return m[0]
        return HEAVY + m[0] + LEARN
    return re.sub(r"(?<!\w)(?:" + "|".join(map(re.escape, words)) + r")(?!\w)", marked, text, flags=re.IGNORECASE)


def plain(text):
    return MARKS.sub("", text)


def listed(s):
    return [w.strip() for w in s.replace("\n", " ").split(",") if w.strip()]


def plural(w):
    odd = {"mouse": "mice", "goose": "geese", "deer": "deer", "wolf": "wolves", "fisher": "fishers", "postman": "postmen"}
    if w in odd:
        return odd[w]
    if w.endswith(("x", "ch", "sh", "ss")):
        return w + "es"
    return w[:-1] + "ies" if w.endswith("y") and w[-2] not in "aeiou" else w + "s"
