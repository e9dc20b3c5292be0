#!/usr/bin/env python3
"""Kill conversions of a few hundred megabytes at random moments, go on with them, and compare the bytes with an undisturbed run.

  kill_and_resume.py --fathom build/fathom [--folder DIR] [--megabytes 600] [--kills 6] [--type q6_k] [--split 150M] [--seed 1]

A checkpoint of random BF16 weights is made in DIR (default: a temporary folder), converted once, then converted with SIGKILL after
random times until it ends, and the same with `fathom quantize` of its BF16 file. Needs nothing but Python 3.
"""
import argparse, hashlib, json, pathlib, random, shutil, signal, struct, subprocess, sys, tempfile, time

SOURCE = pathlib.Path(__file__).resolve().parents[2]
WIDTH, WIDE, VOCAB = 1024, 8192, 2048
LAYER_BYTES = 2 * (3 * WIDTH * WIDE + 4 * WIDTH * WIDTH)


def weights_of_layer(i):
    p = f"model.layers.{i}."
    return ({p + n + ".weight": s for n, s in (("input_layernorm", [WIDTH]), ("post_attention_layernorm", [WIDTH]), ("mlp.gate_proj", [WIDE, WIDTH]), ("mlp.up_proj", [WIDE, WIDTH]),
                                               ("mlp.down_proj", [WIDTH, WIDE]), *((f"self_attn.{x}_proj", [WIDTH, WIDTH]) for x in "qkvo"))})


def make_checkpoint(folder, megabytes, rng):
    """V1 with dense layers alone."""
    folder.mkdir()
    n_layers = max(1, megabytes * 1_000_000 // LAYER_BYTES)
    tensors = {"model.embed_tokens.weight": [VOCAB, WIDTH], "model.norm.weight": [WIDTH], "lm_head.weight": [VOCAB, WIDTH]}
    for i in range(n_layers):
        tensors.update(weights_of_layer(i))
    header, end = {}, 0
    for name, shape in tensors.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    # Random mantissas under exponents of some hundredths, in a block that repeats at odd distances.
    block = bytearray(rng.randbytes(999_998))
    block[1::2] = bytes(b & 0x80 | 0x3C for b in block[1::2])
    with open(folder / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for at in range(0, end, len(block)):
            f.write(block[:end - at])
    (folder / "config.json").write_text(json.dumps({
        "model_type": "deepseek", "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": n_layers, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": WIDE, "first_k_dense_replace": n_layers, "n_routed_experts": 2, "num_experts_per_tok": 1,
        "moe_intermediate_size": 32, "n_shared_experts": 1}))
    shutil.copy(SOURCE / "tests/fixtures/tokenizers/deepseek-llm/tokenizer.json", folder)


def digest(paths):
    found = {}
    for path in sorted(paths):
        h = hashlib.blake2b()
        with open(path, "rb") as f:
            while piece := f.read(1 << 24):
                h.update(piece)
        found[path.name] = h.hexdigest()
    return found


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"exit code {done.returncode}: {done.stderr.strip()}")


def go(args, folder, command, rng):
    """Undisturbed, then disturbed; the results must be alike."""
    whole, cut = folder / "whole", folder / "cut"
    for path in (whole, cut):
        path.mkdir()
    begin = time.monotonic()
    run(args.fathom, *command(whole / "m.gguf"))
    took = time.monotonic() - begin
    resumed = []
    for kill in range(args.kills + 1):
        program = subprocess.Popen([args.fathom, *command(cut / "m.gguf"), "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            out, _ = program.communicate(timeout=None if kill == args.kills else took * rng.uniform(0.05, 0.95))
        except subprocess.TimeoutExpired:
            program.send_signal(signal.SIGKILL)
            program.communicate()
            on_disk = sum(p.stat().st_size for p in cut.iterdir())
            print(f"  killed with {on_disk / 1e6:.0f} MB on the disk", flush=True)
            continue
        if program.returncode != 0:
            sys.exit(f"exit code {program.returncode}")
        report = json.loads(out)
        resumed.append(report["resumed_bytes"])
        print(f"  ended, {report['resumed_bytes'] / 1e6:.0f} of {report['to_bytes'] / 1e6:.0f} MB were there", flush=True)
        break
    alike = digest(whole.iterdir()) == digest(p for p in cut.iterdir() if ".tmp-" not in p.name)
    for path in (*whole.iterdir(), *cut.iterdir()):
        path.unlink()
    whole.rmdir(), cut.rmdir()
    if not alike:
        sys.exit("the bytes differ from those of the undisturbed run")
    print(f"  the bytes are those of an undisturbed run ({took:.1f} s)")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--fathom", default="build/fathom")
    a.add_argument("--folder", help="where to work (default: a temporary folder)")
    a.add_argument("--megabytes", type=int, default=600, help="of the checkpoint")
    a.add_argument("--kills", type=int, default=6, help="at most, for each command")
    a.add_argument("--type", default="q6_k")
    a.add_argument("--split", help="--split-max-size of the results")
    a.add_argument("--threads", default="1")
    a.add_argument("--seed", type=int, default=1)
    args = a.parse_args()
    rng = random.Random(args.seed)
    more = ["--type", args.type, "-t", args.threads] + (["--split-max-size", args.split] if args.split else [])
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = pathlib.Path(name)
        make_checkpoint(folder / "hf", args.megabytes, rng)
        print("convert:")
        go(args, folder, lambda out: ["convert", folder / "hf", "-o", out, "--name", "m", *more], rng)
        print("quantize:")
        run(args.fathom, "convert", folder / "hf", "-o", folder / "bf16.gguf", "--type", "bf16")
        go(args, folder, lambda out: ["quantize", folder / "bf16.gguf", out, *more], rng)


if __name__ == "__main__":
    main()
