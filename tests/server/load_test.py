"""Many clients, bad ones among them, on one server: nothing is lost, nobody is harmed, nothing stays behind.

`load_test.py` is the short form, some seconds long. `load_test.py --requests 10000` is the soak. What one server answers to a
request when it has no other is what it must answer in every storm, to the letter."""
import argparse
import collections
import http.client
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

from running_server import CHAT, MODEL, PROGRAM, Server, chat, parse_events

CLIENTS = 64
FOX = "A fox went to the river with a lamp, and met a bear who had lost his hat on the bridge. "
LONG_PROMPT = chat(FOX * 130, max_tokens=4)  # some 3,000 tokens
LONG_ANSWER = chat("Tell me a story.", max_tokens=3000, ignore_eos=True, temperature=1, seed=1)


def questions():
    """Requests whose answers are compared: short and long, with common beginnings, greedy and drawn, of every endpoint."""
    asked = []
    for i in range(12):
        how = {"temperature": 0} if i % 3 else {"temperature": 1.0, "seed": i}
        asked.append((CHAT, chat(FOX * (1 + 4 * i) + f"What is {i} + 4?", max_tokens=8 + 4 * i, ignore_eos=i % 2 == 0, **how)))
    asked.append((CHAT, chat("Tell me a story.", max_tokens=40, n=3, temperature=1.2, seed=5)))
    asked.append((CHAT, chat("Tell me a story.", max_tokens=150, ignore_eos=True, logprobs=True, top_logprobs=20)))  # 0.3 MB of answer
    asked.append((CHAT, chat("Describe a shirt.", max_tokens=100, temperature=1, seed=3, response_format={
        "type": "json_schema", "json_schema": {"schema": {"type": "object", "properties": {"size": {"type": "integer"}}, "required": ["size"]}}})))
    asked.append(("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 60, "temperature": 0}))
    asked.append(("/v1/messages", {"max_tokens": 30, "temperature": 0, "messages": [{"role": "user", "content": FOX * 8}]}))
    return asked


def answer_of(body):
    """What a whole answer says."""
    if body.get("type") == "message":
        return [block["text"] for block in body["content"]]
    return [choice["message"]["content"] if "message" in choice else choice["text"] for choice in body["choices"]]


def streamed_answer_of(events, n):
    texts = [""] * n
    for name, data in events:
        if name == ":" or data == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event:
            raise AssertionError(f"an error in a stream: {data}")
        if event.get("type") == "content_block_delta":
            texts[0] += event["delta"]["text"]
        for choice in event.get("choices", []):
            texts[choice["index"]] += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
    return texts


class Storm:
    """Clients that ask until so many requests have been made. `server` may be killed and replaced meanwhile."""

    def __init__(self, server, answers, n_requests, seed):
        self.server, self.answers, self.left = server, answers, n_requests
        self.counts, self.failures, self.lock = collections.Counter(), [], threading.Lock()
        self.killed = None  # a server that is gone or about to go
        self.clients = [threading.Thread(target=self.run_client, args=(random.Random(seed * 1000 + i),)) for i in range(CLIENTS)]

    def run(self, meanwhile=lambda: None):
        probe = threading.Thread(target=self.probe_health)
        for thread in self.clients + [probe]:
            thread.start()
        meanwhile()
        for thread in self.clients + [probe]:
            thread.join()
        assert not self.failures, self.failures[:5]

    def take(self):
        with self.lock:
            self.left -= 1
            return self.left >= 0

    def run_client(self, rng):
        deeds = [self.ask] * 8 + [self.read_stream] * 5 + [self.read_slowly] * 2 + [self.leave_prefill] * 2 + [self.leave_decode] * 2 + [self.leave_body, self.ask_wrongly]
        while self.take():
            deed, server = rng.choice(deeds), self.server
            try:
                deed(server, rng)
                self.count(deed.__name__)
            except (OSError, http.client.HTTPException) as e:
                if server is not self.killed:
                    self.fail(f"{deed.__name__}: {e!r}")
                    return
                self.count("cut off by the kill")
                while server is self.server:
                    time.sleep(0.05)
            except Exception as e:
                self.fail(f"{deed.__name__}: {e!r}")
                return

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def fail(self, what):
        with self.lock:
            self.failures.append(what)
            self.left = 0

    def probe_health(self):
        longest = 0.0
        while self.left > 0:
            server, start = self.server, time.monotonic()
            try:
                if server.request("GET", "/health", timeout=30)[0] != 200:
                    self.fail("/health is not 200")
                longest = max(longest, time.monotonic() - start)
            except OSError as e:
                if server is not self.killed:
                    self.fail(f"/health: {e!r}")
            time.sleep(0.2)
        self.longest_health_s = longest

    def open(self, server, path, body, stream=False, buffer_bytes=None):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
        connection.connect()
        if buffer_bytes:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        connection.request("POST", path, json.dumps({**body, "stream": True} if stream else body), {"Connection": "close"})
        return connection

    def ask(self, server, rng, stream=False, slow=False):
        i = rng.randrange(len(self.answers))
        (path, body), expected = self.answers[i]
        if slow:
            (path, body), expected = next(a for a in self.answers if "top_logprobs" in a[0][1])
        while True:
            connection = self.open(server, path, body, stream, 16384 if slow else None)
            try:
                response = connection.getresponse()
                raw = b""
                while piece := response.read(16384):
                    raw += piece
                    time.sleep(0.05 if slow else 0)
            finally:
                connection.close()
            if response.status != 429:
                break
            self.count("told to wait")
            time.sleep(rng.random() * float(response.getheader("Retry-After")) / 4)
        assert response.status == 200, raw
        got = streamed_answer_of(parse_events(raw.decode()), len(expected)) if stream else answer_of(json.loads(raw))
        assert got == expected, f"question {i} got {got!r}, alone {expected!r}"

    def read_stream(self, server, rng):
        return self.ask(server, rng, stream=True)

    def read_slowly(self, server, rng):
        return self.ask(server, rng, stream=True, slow=True)

    def leave_prefill(self, server, rng):
        connection = self.open(server, CHAT, {**LONG_PROMPT, "cache_prompt": rng.random() < 0.5}, stream=rng.random() < 0.5)
        time.sleep(rng.random() * 0.05)
        connection.close()

    def leave_decode(self, server, rng):
        connection = self.open(server, CHAT, LONG_ANSWER, stream=True)
        try:
            response = connection.getresponse()
            if response.status == 200:
                for _ in range(rng.randrange(12)):
                    response.readline()
        finally:
            connection.close()

    def leave_body(self, server, rng):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as s:
            s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n{\"messages\": [")

    def ask_wrongly(self, server, rng):
        connection = self.open(server, CHAT, chat(temperature=-1))
        try:
            assert connection.getresponse().status == 400
        finally:
            connection.close()


def is_idle(server):
    return all(server.metric(name) == 0 for name in ("llamacpp:requests_processing", "llamacpp:requests_deferred", "fathom:cache_pages_used"))


def footprint(server):
    """Memory of its own in KiB, open files and threads."""
    status = open(f"/proc/{server.process.pid}/status").read()
    number = lambda key: int(next(line for line in status.splitlines() if line.startswith(key)).split()[1])
    return number("RssAnon:"), len(os.listdir(f"/proc/{server.process.pid}/fd")), number("Threads:")


def check_idle(server, what):
    start = time.monotonic()
    assert server.wait_for(lambda: is_idle(server), 60), f"{what}: requests or pages are left"
    print(f"{what}: no request, no page in use {time.monotonic() - start:.2f} s after the last client")


def saved_files(folder):
    return [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".fkv")]


def storm_and_kill(answers, n_requests, folder):
    options = ("--parallel", "8", "--queue", "48", "--cache-dir", folder)
    server = Server(*options, ctx=4096, threads=2)
    storm = Storm(server, answers, n_requests, seed=1)

    def kill():
        deadline = time.monotonic() + 60
        while storm.left > n_requests // 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        storm.killed = server
        assert saved_files(folder), "a busy server saves nothing"
        server.process.send_signal(signal.SIGKILL)
        server.__exit__()
        storm.server = Server(*options, ctx=4096, threads=2)
    storm.run(kill)
    server = storm.server
    check_idle(server, "storm with kill -9")
    print("  ", dict(storm.counts), f"longest /health {storm.longest_health_s * 1000:.0f} ms")
    assert storm.counts["cut off by the kill"] > 0
    # Not all texts are saved yet; a polite end saves the rest.
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    server.__exit__()


def restart_with_damage(answers, folder):
    files = saved_files(folder)
    assert files, "nothing was saved"
    for i, name in enumerate(sorted(files, key=os.path.getsize)):
        if i % 2:
            continue
        with open(name, "r+b") as damaged:
            damaged.seek(-1000, os.SEEK_END)
            damaged.write(b"damage")
    with open(os.path.join(folder, "ab" * 16 + ".fkv"), "wb") as foreign:
        foreign.write(b"FATHOMKV, or so it says")
    with Server("--cache-dir", folder, ctx=4096) as server:
        for (path, body), expected in answers:
            assert answer_of(server.post(path, body)[2]) == expected
        found, refused = (int(server.metric(f"fathom:disk_cache_{what}_total")) for what in ("hits", "problems"))
        assert found > 0 and refused > 0, (found, refused, len(files))
        print(f"restart with every second of {len(files)} files damaged: {found} texts found on disk, {refused} refused, all answers right")


def full_disk(answers, what, folder, prefix=(), **popen):
    """Saving fails, answering does not; no part of a file is left."""
    with Server("--cache-dir", folder, ctx=4096, prefix=prefix, **popen) as server:
        for _ in range(2):
            for (path, body), expected in answers:
                assert answer_of(server.post(path, body)[2]) == expected
        assert server.wait_for(lambda: server.metric("fathom:disk_cache_problems_total") > 0, 30), "the disk was not full"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        assert any("cache folder: " in line for line in server.log), server.log
        print(f"{what}: {next(line.strip() for line in server.log if 'cache folder: ' in line)}")


def can_mount_tmpfs():
    probe = ["unshare", "--map-root-user", "--mount", "sh", "-c", "mount -t tmpfs -o size=1m none /mnt"]
    return shutil.which("unshare") is not None and subprocess.run(probe, capture_output=True).returncode == 0


def full_disks(answers, folder):
    # A limit on the size of files fails the same calls in the same places, and needs no right to mount anything.
    limited = os.path.join(folder, "limited")
    full_disk(answers, "files limited to 40 KB", limited, restore_signals=False,
              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)))
    assert all(os.path.getsize(f) <= 40_000 for f in saved_files(limited))
    assert not [f for f in os.listdir(limited) if ".tmp-" in f], "a part of a file is left"
    if can_mount_tmpfs():
        mounted = os.path.join(folder, "mounted")
        os.mkdir(mounted)
        full_disk(answers, "file system of 400 KB", mounted,
                  prefix=("unshare", "--map-root-user", "--mount", "sh", "-c", f"mount -t tmpfs -o size=400k,mode=700 none {mounted} && exec \"$@\"", "sh"))
    else:
        print("file system of 400 KB: none can be mounted here")


def soak(answers, n_requests):
    with Server("--parallel", "8", "--queue", "48", ctx=4096) as server:
        at_rest = footprint(server)[1:]
        Storm(server, answers, n_requests // 3, seed=2).run()
        check_idle(server, "soak, first third")
        before, _, _ = footprint(server)
        storm = Storm(server, answers, n_requests - n_requests // 3, seed=3)
        storm.run()
        check_idle(server, "soak")
        assert server.wait_for(lambda: footprint(server)[1:] == at_rest, 60), f"open files and threads at rest {at_rest}, now {footprint(server)[1:]}"
        after, files, threads = footprint(server)
        print("  ", dict(storm.counts), f"longest /health {storm.longest_health_s * 1000:.0f} ms")
        print(f"   {n_requests} requests: memory of its own {before} KiB after a third, {after} KiB at the end; {files} files, {threads} threads")
        # malloc keeps arenas of what threads had at the same time, which is never quite the same: 10,000 requests added 1 MiB.
        assert after - before < 16384, "memory grows"
        failed = server.metric("fathom:requests_failed_total")
        assert failed == 0, f"{failed} requests failed"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=400, help="of the soak; the storm with the kill has half as many (default: 400)")
    n_requests = parser.parse_args().requests
    start = time.monotonic()
    print(f"{CLIENTS} clients, {PROGRAM}, {MODEL}")
    with Server(ctx=4096) as server:
        answers = [((path, body), answer_of(server.post(path, body)[2])) for path, body in questions()]
    with tempfile.TemporaryDirectory() as folder:
        cache = os.path.join(folder, "cache")
        storm_and_kill(answers, n_requests // 2, cache)
        restart_with_damage(answers, cache)
        full_disks(answers, folder)
    soak(answers, n_requests)
    print(f"{time.monotonic() - start:.0f} s in all")


if __name__ == "__main__":
    main()
