"""Documents as rows of tokens. A row holds whole documents one after the other; each token is a uint16 with two marks in its highest bits."""
import multiprocessing
import os

import numpy as np

import generator as G
from generator.grammar import HEAVY, LEARN, MARKS, READ

ROW = 449        # tokens of a row: 448 inputs and the next token of each
ONLY_READ = 0x8000  # context: never a target of the loss
WEIGHTY = 0x4000    # the one right form: counts more
TOKEN = 0x3FFF
BITS = {READ: ONLY_READ, LEARN: 0, HEAVY: WEIGHTY}
PER_SHARD = 1000    # rows


def split_marks(document):
    """The text without marks, and for every character the bits of its token."""
    text, bits, now = [], [], ONLY_READ
    for c in document:
        if MARKS.match(c):
            now = BITS[c]
        else:
            text.append(c)
            bits.append(now)
    return "".join(text), bits


def encode(tok, documents):
    """Token lists with bits. A token's bits are those of its last character: a space before a marked word belongs to the word's token."""
    parts = [split_marks(d) for d in documents]
    for e, (_, bits) in zip(tok.encode_batch([t for t, _ in parts], add_special_tokens=False), parts):
        yield [i | bits[end - 1] for i, (_, end) in zip(e.ids, e.offsets)]


def rows(tok, stream):
    """Packs documents into rows, the largest that fits first; the last one of a row may be cut."""
    pool = []
    while True:
        if len(pool) < 96:  # more than the shortest documents fill a row with
            pool += [d for d in encode(tok, [next(stream) for _ in range(256)]) if len(d) <= ROW]
        row = pool.pop(0)
        while len(row) < ROW and pool:
            room = ROW - len(row)
            best = max((d for d in pool if len(d) <= room), key=len, default=None)
            if best is None:
                row = row + pool[0][:room]
            else:
                pool.remove(best)
                row = row + best
        yield row


def load_tokenizer(folder):
    from tokenizers import Tokenizer
    return Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))


def write_shard(folder, seed, i, mix):
    path = os.path.join(folder, f"shard_{i:03d}.npy")
    if os.path.exists(path):
        return
    g = rows(load_tokenizer(folder), G.stream(seed + i, mix=mix))
    np.save(path + ".part.npy", np.array([next(g) for _ in range(PER_SHARD)], np.uint16))
    os.rename(path + ".part.npy", path)


def write(folder, shards, first_shards, seed, processes=1):
    """Held-out rows, then the shards 0 to shards - 1, `first_shards` of them of the generator's FIRST_MIX; those that exist are kept."""
    tok = load_tokenizer(folder)
    for kind in ("story", "chat"):
        g = rows(tok, G.stream(seed + 9000, "test", kind))
        np.save(os.path.join(folder, f"test_{kind}.npy"), np.array([next(g) for _ in range(24)], np.uint16))
    with multiprocessing.Pool(processes) as pool:
        pool.starmap(write_shard, [(folder, seed, i, G.FIRST_MIX if i < first_shards else G.MIX) for i in range(shards)], chunksize=1)


def shard_count(folder):
    n = 0
    while os.path.exists(os.path.join(folder, f"shard_{n:03d}.npy")):
        n += 1
    return n


def batches(folder, size, skip):
    """Batches [size, ROW] from the shards in order, again from the first after the last, without the first `skip` batches."""
    i = 0
    while True:
        if i >= shard_count(folder):
            i = 0
        a = np.load(os.path.join(folder, f"shard_{i:03d}.npy"))
        n = len(a) // size
        for b in range(min(skip, n), n):
            yield a[b * size:(b + 1) * size].astype(np.int64)
        skip -= min(skip, n)
        i += 1
