"""What the tests of the program share: running it, and driving it in a terminal. Python's standard library only."""
import fcntl
import json
import os
import pathlib
import pty
import re
import select
import signal
import struct
import subprocess
import tempfile
import termios
import time
import unittest

PROGRAM = os.environ["FATHOM_PROGRAM"]
SOURCE = pathlib.Path(__file__).resolve().parents[2]
TINY = str(SOURCE / "models/tiny/tiny-q8_0.gguf")
FIXTURES = SOURCE / "tests/fixtures"
VOCAB = str(FIXTURES / "tokenizers/deepseek-v3/vocab.gguf")


def environment(extra=None):
    """The test's own: none of the user's FATHOM_ variables, no state of theirs."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FATHOM_") and k not in ("NO_COLOR", "EDITOR", "VISUAL")}
    return {**kept, "TERM": "xterm", **(extra or {})}


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def text(self):
        return self.out.decode("utf-8")

    @property
    def json(self):
        return json.loads(self.out)


def fathom(*args, stdin=b"", env=None, timeout=120, cwd=None):
    p = subprocess.run([PROGRAM, *map(str, args)], input=stdin, capture_output=True, env=environment(env), timeout=timeout, cwd=cwd)
    return Result(p.returncode, p.stdout, p.stderr.decode("utf-8", "replace"))


class ProgramTest(unittest.TestCase):
    maxDiff = 2000

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def file(self, name, content):
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def run_ok(self, *args, **options):
        result = fathom(*args, **options)
        self.assertEqual(result.code, 0, result.err)
        return result

    def assert_refused(self, code, *args, says="", **options):
        """The documented exit code, nothing on standard output, one line that begins with fathom: and says what."""
        result = fathom(*args, **options)
        self.assertEqual(result.code, code, result.err)
        self.assertEqual(result.out, b"")
        lines = [line for line in result.err.splitlines() if line.startswith("fathom: ")]
        self.assertEqual(len(lines), 1, result.err)
        self.assertIn(says, lines[0])
        return lines[0]


class Terminal:
    """The program in a terminal of its own."""

    def __init__(self, *args, env=None, columns=80, rows=24):
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(PROGRAM, [PROGRAM, *map(str, args)], environment(env))
        self.resize(columns, rows)

    def resize(self, columns, rows):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, text):
        os.write(self.fd, text.encode() if isinstance(text, str) else text)

    def paste(self, text):
        self.send("\x1b[200~" + text.replace("\n", "\r") + "\x1b[201~")

    def read_some(self, wait):
        if select.select([self.fd], [], [], wait)[0]:
            try:
                got = os.read(self.fd, 65536)
            except OSError:  # Linux says EIO when the program is gone
                got = b""
            self.seen += got.decode("utf-8", "replace")
            return bool(got)
        return None

    def wait_for(self, text, timeout=60):
        """Everything up to and including `text`, which is then used up."""
        end = time.monotonic() + timeout
        while text not in self.seen:
            left = end - time.monotonic()
            if left <= 0 or self.read_some(left) is False:
                raise AssertionError(f"waited for {text!r}, saw {self.seen[-800:]!r}")
        at = self.seen.index(text) + len(text)
        before, self.seen = self.seen[:at], self.seen[at:]
        return before

    def wait_for_prompt(self, timeout=60):
        return self.wait_for("\x1b[?2004h", timeout) + self.wait_for(">>> ", timeout)

    def say(self, text, timeout=60):
        """Types a line; what the program shows until it asks again."""
        self.send(text + "\r")
        self.wait_for("\x1b[?2004l")
        return plain(self.wait_for_prompt(timeout))

    def end(self, timeout=60):
        """The exit code, once the program ends by itself."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.read_some(0.05) is False:
                break
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        raise AssertionError(f"still running; saw {self.seen[-800:]!r}")

    def close(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.fd)
            self.pid = 0


def plain(text):
    """Without escape sequences and carriage returns."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")
