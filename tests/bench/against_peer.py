#!/usr/bin/env python3
"""Run `fathom bench` and a llama-bench alternately on one file and print the ratios.

  against_peer.py --fathom build/fathom --peer PATH/llama-bench -m MODEL.gguf [-p 512] [-n 64] [-d 0,4096] [-t 2] [-r 5] [--peer-args "-fa 1"]

Each round runs the peer and then fathom, one repetition each, so that a machine that changes its pace does so for both. Printed
for each test: both medians, the median of the rounds' ratios and their range. A peer without -d (ik_llama.cpp) gets its depths as
-gp, which has no prefill there. Needs nothing but Python 3.
"""
import argparse, json, shlex, statistics, subprocess, sys


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"against_peer: {' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def has_depth_flag(peer):
    """llama.cpp's llama-bench has -d; ik_llama.cpp's has only -gp (decode after a prompt, the prompt not counted)."""
    return "--n-depth" in subprocess.run([peer, "--help"], capture_output=True, text=True).stdout


def peer_rows(args, prefill, decode, depth):
    """-> {test: tok/s}; llama-bench prints a JSON list. Without "prefill" where the peer cannot begin one at a depth."""
    command = [args.peer, "-m", args.model, "-t", str(args.threads), "-r", "1", "-o", "json", *shlex.split(args.peer_args)]
    if depth and not has_depth_flag(args.peer):
        command += ["-p", "0", "-n", "0", "-gp", f"{depth},{decode}"]
    else:
        command += ["-p", str(prefill), "-n", str(decode)] + (["-d", str(depth)] if depth else [])
    rows = json.loads(run(command))
    return {"decode" if r["n_gen"] else "prefill": r["avg_ts"] for r in rows}


def fathom_rows(args, prefill, decode, depth):
    """-> {test: (tok/s, percent of the bound)}"""
    command = [args.fathom, "bench", "-m", args.model, "-p", str(prefill), "-n", str(decode), "-t", str(args.threads), "-d", str(depth), "-r", "1", "--json"]
    out = json.loads(run(command))
    return {r["test"]: (r["tok_s_median"], r["percent_of_bound"]) for r in out["rows"]}


def numbers(text):
    return [int(x) for x in text.split(",")]


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--fathom", default="build/fathom")
    a.add_argument("--peer", required=True, help="a llama-bench")
    a.add_argument("-m", "--model", required=True)
    a.add_argument("-p", "--prefill", type=numbers, default=[512])
    a.add_argument("-n", "--decode", type=int, default=64)
    a.add_argument("-d", "--depth", type=numbers, default=[0])
    a.add_argument("-t", "--threads", type=int, default=2)
    a.add_argument("-r", "--rounds", type=int, default=5)
    a.add_argument("--peer-args", default="-fa 1", help="further options of the peer")
    args = a.parse_args()
    with open(args.model, "rb") as f:  # both shall find the file in memory
        while f.read(1 << 24):
            pass
    print("test     tokens   depth     fathom       peer   ratio (min .. max)   % of bound")
    for depth in args.depth:
        for prefill in args.prefill:
            seen = {"prefill": [], "decode": []}
            for _ in range(args.rounds):
                peer = peer_rows(args, prefill, args.decode, depth)
                mine = fathom_rows(args, prefill if "prefill" in peer else 0, args.decode, depth)
                for test in peer:
                    seen[test].append((mine[test][0], peer[test], mine[test][1]))
            for test, rows in seen.items():
                if not rows:
                    continue
                ratios = sorted(m / p for m, p, _ in rows)
                print(f"{test:8s} {prefill if test == 'prefill' else args.decode:6d}  {depth:6d}  {statistics.median(m for m, _, _ in rows):9.2f}  {statistics.median(p for _, p, _ in rows):9.2f}"
                      f"   {statistics.median(ratios):.2f} ({ratios[0]:.2f} .. {ratios[-1]:.2f})     {statistics.median(b for _, _, b in rows):6.1f}", flush=True)


if __name__ == "__main__":
    main()
