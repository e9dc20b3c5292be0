"""Asking the program: one `fathom run` for each prompt."""
import concurrent.futures
import json
import os
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
FATHOM = os.path.join(HERE, "../../build/fathom")


class Program:
    def __init__(self, model, fathom=FATHOM, jobs=1):
        self.model, self.fathom, self.jobs = model, fathom, jobs

    def run(self, *options, conversation=None):
        """The object that `fathom run --json` prints; the conversation is one of generator.tools.as_messages."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FATHOM_")}
        asked = () if conversation is None else ("--messages", "-")
        p = subprocess.run([self.fathom, "run", "-m", self.model, "--json", "-t", "1", "-c", "1024", "--log-level", "quiet", *asked, *map(str, options)],
                           input=json.dumps(conversation).encode(), capture_output=True, env=environment, check=False)
        if p.returncode:
            raise RuntimeError(p.stderr.decode("utf-8", "replace"))
        return json.loads(p.stdout)

    def all(self, calls):
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(lambda options: self.run(*options), calls))

    def continued(self, conversations, *options):
        """The next message of each conversation."""
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(lambda c: self.run(*options, conversation=c), conversations))
