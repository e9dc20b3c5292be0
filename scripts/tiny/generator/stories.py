"""Stories: a hero, a friend and one thing, held together by a plot; and requests for them."""
import re

from .grammar import listed, mark, pick
from .plots import CLOSE, DAYTIMES, EXTRA, OPEN_ONCE, OPEN_OTHER, PLOTS, SKILLS, TITLE
from .words import (ADJ_HERO, ADJ_OBJ, ADJ_OLD, ANIMALS, BOYS, FANTASY, GIRLS, KINDS, KINDS_HE, KINDS_SHE, NAMES, OBJECTS, PEOPLE, PETS, PETS_SHE, SHE, held_kind,
                    held_name)

PLACES = [  # with its preposition, and by its short name
    ("in a small village by the sea", "village"), ("at the edge of a green forest", "forest"), ("in a tall house on a hill", "hill"),
    ("near a wide river", "river"), ("on a quiet farm", "farm"), ("in a busy town", "town"), ("in a deep valley", "valley"),
    ("beside a blue lake", "lake"), ("high up in the mountains", "mountain"), ("on a little island", "island"),
    ("in an old castle", "castle"), ("next to a sunny meadow", "meadow"), ("in a garden full of flowers", "garden"),
    ("by a narrow stream", "stream"), ("near the big market", "market"), ("in a land of snow", "land"), ("among the plum trees", "orchard")]
FOODS = listed("bread, soup, honey, cheese, berries, nuts, plums, porridge, pears, pancakes, carrots, jam")
WEATHER = ["the sun was warm", "the sky was grey", "a soft rain was falling", "the wind was cold", "snow lay on the ground", "the birds were singing"]
FEEL_GOOD = listed("happy, glad, proud, cheerful, thankful, full of joy, very pleased")
FEEL_BAD = listed("sad, worried, afraid, lonely, upset, cross, tired, unhappy")
PRONOUNS = {True: ("she", "her", "her", "herself", "hers"), False: ("he", "him", "his", "himself", "his")}


def pick_hero(r):
    """(kind, name): a name decides between she and he, and some kinds ask for one of the two."""
    x = r.random()
    kind = r.choice(["girl", "boy"]) if x < 0.25 else r.choice(ANIMALS) if x < 0.7 else r.choice(PEOPLE) if x < 0.85 else r.choice(FANTASY)
    she = kind in KINDS_SHE or kind not in KINDS_HE and r.random() < 0.5
    if kind in ANIMALS and r.random() < 0.65 or kind in ("robot", "dragon", "ghost"):
        return kind, r.choice([n for n in PETS if (n in PETS_SHE) == she])
    return kind, r.choice(GIRLS if she else BOYS)


def hero_and_thing(r, split):
    """A combination that belongs to the split: of training neither the name nor the kind is held out with the thing, of the test at least one."""
    while True:
        k, n = pick_hero(r)
        o = r.choice(OBJECTS)
        if (held_kind(k, o) or held_name(n, o)) == (split == "test"):
            return k, n, o


def story(r, k, n, o, asked=()):
    """A story about n, a k, and a thing o. Names, kinds and things that were asked for or told before are marked as having one right form."""
    while True:
        fk, fn = pick_hero(r)
        if fn != n and fk != k and fn.lower() not in (k, o) and fk != o:
            break
    he, him, his, himself, hers = PRONOUNS[n in SHE]
    fhe, fhim, fhis, _, _ = PRONOUNS[fn in SHE]
    place, adj = r.choice(PLACES), r.choice(ADJ_OBJ)
    hadj = r.choice(ADJ_OLD if k in PEOPLE else ADJ_HERO)
    fadj = r.choice(ADJ_OLD if fk in PEOPLE else ADJ_HERO)
    intro = r.choice([f"a@ {hadj} {k} named {n}", f"a@ {hadj} {k} named {n}", f"a@ {k} named {n}"])
    slots = dict(N=n, F=fn, kind=k, Kind=k.title(), fkind=fk, hadj=hadj, fadj=fadj, he=he, him=him, his=his, himself=himself, hers=hers, fhe=fhe, fhim=fhim, fhis=fhis,
                 obj=o, Obj=o.title(), adj=adj, place=place[1], inplace=place[0], intro=intro, food=r.choice(FOODS), weather=r.choice(WEATHER), good=r.choice(FEEL_GOOD),
                 bad=r.choice(FEEL_BAD), daytime=r.choice(DAYTIMES))
    tell = lambda template: pick(r, template, slots)
    plot, skill = PLOTS[r.choice(list(PLOTS))], r.choice(SKILLS)
    begin = [tell(r.choice(OPEN_ONCE if r.random() < 0.6 else OPEN_OTHER))] + [tell(e) for e in r.sample(EXTRA, r.choice([0, 0, 0, 1, 1]))]
    steps = [tell(step.replace("[skill]", skill)) for step in plot]
    if r.random() < 0.4:
        steps.append(tell(r.choice(CLOSE)))
    cut = len(plot) // 2 + r.choice([-1, 0, 1])
    paragraphs = [begin, steps[:cut], steps[cut:]]
    text = ("\n\n" if r.random() < 0.4 else " ").join(" ".join(p) for p in paragraphs)
    if r.random() < 0.05:
        text = tell(TITLE) + "\n\n" + text
    words = [n, fn, k, fk, o]
    return mark(text, words, new=[w for w in words if w not in asked])


def q_story(r, split):
    k, n, o = hero_and_thing(r, split)
    ask = "[Tell me|Write|Please tell me|Tell me|Please write] a [story|short story] about"
    x, asked = r.random(), ()
    if x < 0.6:
        q, asked = f"{ask} a@ {k} and a@ {o}.", (k, o)
    elif x < 0.8:
        q, asked = f"{ask} a@ {k} named {n} and a@ {o}.", (k, n, o)
    elif x < 0.88:
        q, asked = f"{ask} {n} and a@ {o}.", (n, o)
    elif x < 0.94:
        q, asked = f"{ask} a@ {k}.", (k,)
    else:
        q = "[Tell me a story.|Write a story.|Please tell me a story.|Can you tell me a story?|Write a short story.|I would like to hear a story.|Tell me a bedtime story.]"
    return pick(r, q), story(r, k, n, o, asked), "The user wants a story. I will tell a short one.", None


def begin_of_story(r, answer):
    """The answer up to a sentence between its second and its sixth: the things that were asked for are told there, at a quarter of the cost of a whole story."""
    ends = [m.end() for m in re.finditer(r"[.!?]\"?(?= )", answer)]
    return answer[:ends[min(r.randrange(1, 6), len(ends) - 1)]]
