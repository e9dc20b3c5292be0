#!/usr/bin/env python3
"""Prints documents of the generator.

  generate.py --seed 1 --count 20                 20 training documents
  generate.py --seed 1 --count 20 --split test    made of held-out combinations
  generate.py --seed 1 --count 20 --kind chat     of one kind: story, story_chat, chat, bare_sum, repetition"""
import argparse

from generator import DOCUMENTS, plain, stream

if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--count", type=int, default=10)
    ap.add_argument("--split", default="train", choices=["train", "test"])
    ap.add_argument("--kind", choices=list(DOCUMENTS))
    a = ap.parse_args()
    for _, d in zip(range(a.count), stream(a.seed, a.split, a.kind)):
        print(plain(d) + "\n")
