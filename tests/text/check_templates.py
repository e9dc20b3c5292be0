#!/usr/bin/env python3
"""Render the chat templates that `fathom convert` adds with Jinja2 and compare with the prompts of tests/fixtures/chat.

  check_templates.py [--fathom build/fathom] v4=V4.gguf v3.2=V32.gguf

Run by hand, as it needs Jinja2. The files are converted checkpoints (or their heads). Tool results in another order than their
calls are the one thing that the templates leave as it is; everything else must agree.
"""
import argparse, json, pathlib, subprocess, sys

from jinja2.sandbox import ImmutableSandboxedEnvironment

FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "fixtures/chat"


def environment():
    """As Hugging Face's transformers set it up, with the filter that llama.cpp adds."""
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    env.filters["from_json"] = json.loads
    return env


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--fathom", default="build/fathom")
    a.add_argument("files", nargs="+", metavar="GENERATION=FILE")
    args = a.parse_args()
    n_wrong = 0
    for generation, path in (f.split("=", 1) for f in args.files):
        told = subprocess.run([args.fathom, "inspect", "-m", path, "--json"], check=True, capture_output=True).stdout
        template = environment().from_string(json.loads(told)["chat_template"])
        cases = json.loads((FIXTURES / f"prompt_{generation}.json").read_text())["cases"]
        wrong = []
        for case in cases:
            options = case["options"]
            got = template.render(messages=case["messages"], tools=case.get("tools") or options.get("tools"), thinking=options["thinking"],
                                  add_generation_prompt=options["add_generation_prompt"], reasoning_effort=options.get("effort"),
                                  response_format=options.get("response_schema"))
            if got != case["prompt"] and "tool-results-swapped" not in case["id"]:
                wrong.append(case["id"])
        print(f"{generation}: {len(cases) - len(wrong)} of {len(cases)} as they should be" + "".join(f"\n  not {name}" for name in wrong))
        n_wrong += len(wrong)
    return n_wrong > 0


if __name__ == "__main__":
    sys.exit(main())
