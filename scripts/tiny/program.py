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

    def run(self, *options):
        """The object that `fathom run --json` prints."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FATHOM_")}
        p = subprocess.run([self.fathom, "run", "-m", self.model, "--json", "-t", "1", "-c", "1024", "--log-level", "quiet", *map(str, options)],
                           capture_output=True, env=environment, check=False)
        if p.returncode:
            raise RuntimeError(p.stderr.decode("utf-8", "replace"))
        return json.loads(p.stdout)

    def all(self, calls):
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(lambda options: self.run(*options), calls))
