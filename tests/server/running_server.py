"""A `fathom serve` process for tests, and raw HTTP to it."""
import atexit
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

PROGRAM = os.environ["FATHOM_PROGRAM"]
MODEL = os.environ["FATHOM_TEST_MODEL"]


class Server:
    def __init__(self, *options, ctx=1024, threads=1, prefix=(), **popen):
        """`prefix`: a command that runs the program; `popen`: further arguments of subprocess.Popen."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FATHOM_")}
        self.process = subprocess.Popen(
            [*prefix, PROGRAM, "serve", "-m", MODEL, "--port", "0", "-t", str(threads), "--ctx", str(ctx), *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, **popen)
        atexit.register(self.__exit__)
        self.log = []
        self.port = None
        self.ready = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        if not self.ready.wait(60):
            raise RuntimeError("the server does not start: " + "".join(self.log))
        if self.port is None:
            raise RuntimeError("the server ended: " + "".join(self.log))

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)
            found = re.search(r"serving (\S+) at http://\S+:(\d+)", line)
            if found:
                self.model, self.port = found[1], int(found[2])
                self.ready.set()
        self.ready.set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.reader.join()
        self.process.stderr.close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def request(self, method, path, body=None, headers=None, timeout=60):
        """Status, headers and body (JSON where it is)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            if isinstance(body, (dict, list)):
                body = json.dumps(body)
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            raw = response.read()
            kind = response.getheader("Content-Type") or ""
            return response.status, dict(response.getheaders()), json.loads(raw) if kind.startswith("application/json") and raw else raw.decode()
        finally:
            connection.close()

    def post(self, path, body, **more):
        return self.request("POST", path, body, **more)

    def events(self, path, body, headers=None):
        """Every line block of an event stream as (event name, data text); comments as (':', text)."""
        status, _, text = self.post(path, body, headers=headers)
        assert status == 200, (status, text)
        return parse_events(text)

    def raw(self, data, timeout=10):
        """All that the server sends for these bytes until it closes or is silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as s:
            try:
                s.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                pass
            received = b""
            try:
                while piece := s.recv(65536):
                    received += piece
            except (TimeoutError, ConnectionResetError):
                pass
            return received

    def metric(self, name):
        _, _, text = self.request("GET", "/metrics")
        for line in text.splitlines():
            if re.match(re.escape(name) + r"(\{[^}]*\})? ", line):
                return float(line.rsplit(" ", 1)[1])
        raise KeyError(name)

    def wait_for(self, condition, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.02)
        return condition()


def parse_events(text):
    events = []
    for block in text.split("\n\n"):
        if not block.strip():
            continue
        name, data = "", []
        for line in block.split("\n"):
            if line.startswith(":"):
                events.append((":", line[1:].strip()))
            elif line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                data.append(line[6:])
        if data:
            events.append((name, "\n".join(data)))
    return events


CHAT = "/v1/chat/completions"


def chat(text="What is the capital of France?", **more):
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 24, **more}
