"""What clients do wrong or by force: limits, keys, hosts, disconnects, overload, signals."""
import http.client
import json
import re
import signal
import socket
import subprocess
import tempfile
import threading
import unittest

from running_server import CHAT, MODEL, PROGRAM, Server, chat, parse_events

LONG = chat("Tell me a story.", max_tokens=3900, ignore_eos=True, temperature=1)  # some seconds, where the context is 4096


def head(*lines):
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def status_of(raw):
    return int(raw.split(b" ", 2)[1]) if raw.startswith(b"HTTP/1.1 ") else None


def open_stream(server, body=LONG, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", CHAT, json.dumps({**body, "stream": True}), headers or {})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    response.readline()
    return connection, response


def cut(connection, response):
    response.close()
    connection.close()


class Transport(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(ctx=4096)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def test_malformed_and_ambiguous_requests_are_refused(self):
        post = f"POST {CHAT} HTTP/1.1"
        for expected, data in [
            (400, head(post, "Host: localhost", "Content-Length: 2", "Content-Length: 3") + b"{}"),
            (411, head(post, "Host: localhost", "Content-Length: 2", "Transfer-Encoding: chunked") + b"{}"),
            (411, head(post, "Host: localhost", "Transfer-Encoding: chunked") + b"-2\r\n{}\r\n0\r\n\r\n"),
            (411, head(post, "Host: localhost")),
            (400, head(post, "Host: localhost", "Content-Length: 5abc") + b"{}"),
            (400, head(post, "Host: localhost", "Content-Length: -1")),
            (400, head(post, "Host: localhost", "Content-Length:")),
            (413, head(post, "Host: localhost", "Content-Length: 99999999999999999999999")),
            (413, head(post, "Host: localhost", "Content-Length: 9999999999") + b"{}"),
            (415, head(post, "Host: localhost", "Content-Length: 2", "Content-Encoding: gzip") + b"{}"),
            (414, head("GET /" + "a" * 9000 + " HTTP/1.1", "Host: localhost")),
            (431, head("GET / HTTP/1.1", "Host: localhost", "X: " + "a" * 9000)),
            (431, head("GET / HTTP/1.1", "Host: localhost", *[f"X{i}: a" for i in range(300)])),
            (400, head("GET / HTTP/1.1")),
            (400, head("GET / HTTP/1.1", "Host: localhost", "Host: localhost")),
            (400, head("GET / HTTP/1.1", "Host: localhost", " folded: x")),
            (400, head("GET / HTTP/1.1", "Host: localhost", "a b: x")),
            (400, head("GET relative HTTP/1.1", "Host: localhost")),
            (505, head("GET / HTTP/2.0", "Host: localhost")),
            (400, b"garbage\r\n\r\n"),
            (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
            (405, head(f"DELETE {CHAT} HTTP/1.1", "Host: localhost", "Connection: close")),
            (404, head("GET /none?beta=true HTTP/1.1", "Host: localhost", "Connection: close")),
        ]:
            with self.subTest(expected=expected, data=data[:90]):
                self.assertEqual(status_of(self.server.raw(data)), expected)

    def test_a_flood_of_headers_is_cut_off(self):
        raw = self.server.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 300000)
        self.assertIn(status_of(raw), (431, None))
        self.assertEqual(self.server.request("GET", "/health")[0], 200)

    def test_too_large_a_body_is_refused_before_it_is_sent(self):
        self.assertEqual(self.server.post(CHAT, b"[" + b"0," * 20_000_000 + b"0]")[0], 413)

    def test_head_and_options(self):
        status, headers, body = self.server.request("HEAD", "/health")
        self.assertEqual((status, body), (200, ""))
        self.assertGreater(int(headers["Content-Length"]), 0)
        status, headers, _ = self.server.request("OPTIONS", CHAT)
        self.assertEqual(status, 204)
        self.assertNotIn("Access-Control-Allow-Origin", headers)

    def test_foreign_hosts_and_origins_are_refused(self):
        self.assertEqual(self.server.request("GET", "/v1/models", headers={"Host": "evil.example"})[0], 403)
        self.assertEqual(self.server.request("GET", "/v1/models", headers={"Host": "localhost:1234"})[0], 200)
        self.assertEqual(self.server.post(CHAT, chat(), headers={"Origin": "https://evil.example"})[0], 403)
        status, headers, _ = self.server.post(CHAT, chat(max_tokens=1), headers={"Origin": self.server.url})
        self.assertEqual(status, 200)
        self.assertNotIn("Access-Control-Allow-Origin", headers)

    def test_one_connection_takes_several_requests_in_order(self):
        data = head("GET /health HTTP/1.1", "Host: localhost") + head("GET /none HTTP/1.1", "Host: localhost", "Connection: close")
        raw = self.server.raw(data)
        self.assertEqual([raw.count(b"HTTP/1.1 200"), raw.count(b"HTTP/1.1 404")], [1, 1])
        self.assertLess(raw.index(b" 200 "), raw.index(b" 404 "))

    def test_expect_continue_is_answered(self):
        body = json.dumps(chat(max_tokens=1)).encode()
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as s:
            s.sendall(head(f"POST {CHAT} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", "Expect: 100-continue", "Connection: close"))
            self.assertTrue(s.recv(100).startswith(b"HTTP/1.1 100"))
            s.sendall(body)
            self.assertTrue(s.recv(100).startswith(b"HTTP/1.1 200"))

    def test_http_1_0_gets_a_stream_that_ends_with_the_connection(self):
        body = json.dumps(chat(max_tokens=3, stream=True)).encode()
        raw = self.server.raw(head(f"POST {CHAT} HTTP/1.0", "Host: localhost", f"Content-Length: {len(body)}") + body)
        self.assertNotIn(b"chunked", raw)
        self.assertTrue(raw.endswith(b"data: [DONE]\n\n"))

    def test_half_open_connections_do_not_keep_health_waiting(self):
        sockets = [socket.create_connection(("127.0.0.1", self.server.port)) for _ in range(64)]
        for s in sockets:
            s.sendall(b"GET / HT")
        self.assertEqual(self.server.request("GET", "/health", timeout=5)[0], 200)
        for s in sockets:
            s.close()

    def test_a_client_that_goes_away_frees_its_pages(self):
        for _ in range(5):
            cut(*open_stream(self.server))
        # One that goes before its answer begins: no stream, nothing written yet.
        with socket.create_connection(("127.0.0.1", self.server.port)) as s:
            body = json.dumps(LONG).encode()
            s.sendall(head(f"POST {CHAT} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}") + body)
        def is_idle():
            return (self.server.metric("fathom:requests_cancelled_total") >= 5 and self.server.metric("llamacpp:requests_processing") == 0
                    and self.server.metric("fathom:cache_pages_used") == 0)
        self.assertTrue(self.server.wait_for(is_idle, 10))

    def test_readers_that_stop_reading_do_not_hold_up_others(self):
        slow = [open_stream(self.server) for _ in range(2)]
        self.assertEqual(self.server.post(CHAT, chat())[0], 200)
        for connection, response in slow:
            cut(connection, response)


class LongPrompt(unittest.TestCase):
    """A prompt that takes many seconds: plain loops, and steps so small that there is news of it all the time."""
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--isa", "reference", "--batch", "8", "--keep-alive", "1", ctx=4096)
        cls.body = chat("A fox went to the river with a lamp. " * 300, max_tokens=4)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def test_comments_come_by_the_clock_and_a_client_that_leaves_ends_it(self):
        for path in (CHAT, "/v1/messages", "/v1/responses", "/v1/completions"):
            body = {"/v1/responses": {"input": self.body["messages"][0]["content"]}, "/v1/completions": {"prompt": self.body["messages"][0]["content"]}}.get(path, self.body)
            with self.subTest(path=path):
                cancelled = self.server.metric("fathom:requests_cancelled_total")
                connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=120)
                connection.request("POST", path, json.dumps({**body, "stream": True}))
                response = connection.getresponse()
                while (line := response.readline()) != b": keep-alive\n":
                    self.assertNotIn(b"delta", line.replace(b'"delta":{"role"', b""))
                self.assertEqual(self.server.metric("llamacpp:requests_processing"), 1)
                self.assertEqual(self.server.metric("llamacpp:tokens_predicted_total"), 0)
                self.assertGreater(self.server.metric("fathom:cache_pages_used"), 0)
                cut(connection, response)
                self.assertTrue(self.server.wait_for(lambda: self.server.metric("fathom:cache_pages_used") == 0, 10))
                self.assertEqual(self.server.metric("fathom:requests_cancelled_total"), cancelled + 1)

    def test_a_client_that_waits_for_a_whole_answer_may_leave_too(self):
        with socket.create_connection(("127.0.0.1", self.server.port)) as s:
            body = json.dumps(self.body).encode()
            s.sendall(head(f"POST {CHAT} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}") + body)
            self.assertTrue(self.server.wait_for(lambda: self.server.metric("fathom:cache_pages_used") > 0, 10))
        self.assertTrue(self.server.wait_for(lambda: self.server.metric("fathom:cache_pages_used") == 0, 10))
        self.assertEqual(self.server.metric("llamacpp:tokens_predicted_total"), 0)


class Overload(unittest.TestCase):
    def test_health_answers_while_every_place_is_taken_and_nobody_reads(self):
        with Server("--parallel", "8", "--queue", "56", ctx=4096) as server:
            streams = [open_stream(server) for _ in range(64)]
            for _ in range(20):
                self.assertEqual(server.request("GET", "/health", timeout=5)[0], 200)
            for connection, response in streams:
                cut(connection, response)
            self.assertTrue(server.wait_for(lambda: server.metric("llamacpp:requests_processing") + server.metric("llamacpp:requests_deferred") == 0, 10))

    def test_a_full_queue_is_told_and_health_still_answers(self):
        with Server("--parallel", "2", "--queue", "1", ctx=4096) as server:
            streams = [open_stream(server) for _ in range(2)]
            waiting = threading.Thread(target=lambda: open_stream(server), daemon=True)
            waiting.start()
            self.assertTrue(server.wait_for(lambda: server.metric("llamacpp:requests_deferred") == 1, 10))
            status, headers, answer = server.post(CHAT, chat())
            self.assertEqual(status, 429)
            self.assertEqual(answer["error"]["type"], "rate_limit_error")
            self.assertGreater(int(headers["Retry-After"]), 0)
            self.assertIn("busy", answer["error"]["message"])
            self.assertEqual(server.post("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": "a"}]})[2]["error"]["type"], "rate_limit_error")
            self.assertEqual(server.request("GET", "/health", timeout=5)[0], 200)
            for connection, response in streams:
                cut(connection, response)

    def test_comments_come_while_a_request_waits(self):
        with Server("--parallel", "1", "--keep-alive", "1", ctx=4096) as server:
            first = open_stream(server)
            text = []
            def read():
                connection, response = open_stream(server, chat(max_tokens=1))
                text.append(response.read().decode())
            thread = threading.Thread(target=read)
            thread.start()
            thread.join(2.6) if thread.is_alive() else None
            cut(*first)
            thread.join(30)
            events = parse_events(text[0])
            # The story may end by itself before a second has passed; then there is nothing to see.
            if server.metric("fathom:requests_cancelled_total") > 0:
                self.assertIn((":", "keep-alive"), events)
            self.assertEqual(events[-1], ("", "[DONE]"))


class Keys(unittest.TestCase):
    def test_keys_are_asked_for(self):
        with Server("--api-key", "secret-1", "--api-key", "secret-2") as server:
            self.assertEqual(server.request("GET", "/health")[0], 200)
            self.assertEqual(server.request("GET", "/v1/models")[0], 200)
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}, {"X-Api-Key": "secret-1 "[:-2]}, {"Authorization": "Basic secret-1"}):
                status, _, answer = server.post(CHAT, chat(), headers=headers)
                self.assertEqual(status, 401)
                self.assertEqual(answer["error"]["type"], "authentication_error")
            self.assertEqual(server.request("GET", "/metrics")[0], 401)
            self.assertEqual(server.request("GET", "/none")[0], 401)
            for headers in ({"Authorization": "Bearer secret-1"}, {"X-Api-Key": "secret-2"}):
                self.assertEqual(server.post(CHAT, chat(max_tokens=1), headers=headers)[0], 200)
            raw = server.raw(head("GET /props HTTP/1.1", "Host: localhost", "X-Api-Key: " + "x" * 1000000))
            self.assertEqual(status_of(raw), 431)

    def test_a_key_of_higher_priority_takes_the_place_of_another_and_both_answers_are_whole(self):
        with tempfile.NamedTemporaryFile("w") as keys:
            keys.write("important 5\nplain\n")
            keys.flush()
            with Server("--api-key-file", keys.name, "--parallel", "1", "--isa", "reference") as server:  # some seconds for an answer
                plain, important = ({"Authorization": "Bearer " + key} for key in ("plain", "important"))
                body = chat("Tell me a story.", max_tokens=300, ignore_eos=True)
                connection, response = open_stream(server, body, plain)
                self.assertEqual(server.post(CHAT, chat(max_tokens=4), headers=important)[0], 200)
                self.assertFalse(response.isclosed())
                interrupted = parse_events(response.read().decode())
                text = "".join(json.loads(d)["choices"][0]["delta"].get("content") or "" for name, d in interrupted if name == "" and d != "[DONE]")
                self.assertEqual(text, server.post(CHAT, body, headers=plain)[2]["choices"][0]["message"]["content"])
                metrics = server.request("GET", "/metrics", headers=plain)[2]
                self.assertTrue(re.search(r"vllm:num_preemptions_total\{[^}]*\} [1-9]", metrics))

    def test_keys_take_turns_whatever_users_their_requests_name(self):
        with Server("--api-key", "many", "--api-key", "few", "--parallel", "1", "--queue", "40", "--isa", "reference") as server:
            ended = []
            def ask(key, user):
                server.post(CHAT, chat("Tell me a story.", max_tokens=15, ignore_eos=True, user=user), headers={"X-Api-Key": key})
                ended.append(key)
            threads = [threading.Thread(target=ask, args=("many", f"user {i}")) for i in range(12)]
            for thread in threads:
                thread.start()
            waiting = lambda: server.request("GET", "/metrics", headers={"X-Api-Key": "few"})[2]
            self.assertTrue(server.wait_for(lambda: re.search(r"num_requests_waiting\{[^}]*\} ([6-9]|1\d)", waiting()), 10))
            ask("few", "user 99")
            for thread in threads:
                thread.join()
            self.assertLess(ended.index("few"), 11)  # not behind those who came first

    def test_priorities_that_are_none_are_told(self):
        for line in ("key five", "key 5 5", "key 1001"):
            with tempfile.NamedTemporaryFile("w") as keys:
                keys.write(line + "\n")
                keys.flush()
                done = subprocess.run([PROGRAM, "serve", "-m", MODEL, "--port", "0", "--api-key-file", keys.name], capture_output=True, text=True, timeout=60)
                self.assertEqual(done.returncode, 2)
                self.assertIn("priority", done.stderr)
                self.assertNotIn("key five", done.stderr)

    def test_other_addresses_need_a_key(self):
        done = subprocess.run([PROGRAM, "serve", "-m", MODEL, "--host", "0.0.0.0", "--port", "0"], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 2)
        self.assertIn("--api-key", done.stderr)

    def test_cors_is_given_to_those_named(self):
        with Server("--cors-origin", "https://good.example") as server:
            status, headers, _ = server.request("OPTIONS", CHAT, headers={"Origin": "https://good.example"})
            self.assertEqual((status, headers["Access-Control-Allow-Origin"]), (204, "https://good.example"))
            self.assertNotIn("Access-Control-Allow-Credentials", headers)
            self.assertEqual(server.post(CHAT, chat(), headers={"Origin": "https://evil.example"})[0], 403)


class Life(unittest.TestCase):
    def test_a_port_in_use_is_told(self):
        with Server() as server:
            done = subprocess.run([PROGRAM, "serve", "-m", MODEL, "--port", str(server.port)], capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, 1)
            self.assertIn("in use", done.stderr)

    def test_sigterm_lets_running_answers_finish(self):
        with Server() as server:
            connection, response = open_stream(server, chat("Tell me a story.", max_tokens=300, ignore_eos=True))
            server.process.send_signal(signal.SIGTERM)
            text = response.read().decode()
            self.assertIn('"finish_reason":"length"', text)
            self.assertTrue(text.rstrip().endswith("data: [DONE]"))
            self.assertEqual(server.process.wait(20), 0)

    def test_sigterm_cuts_off_what_does_not_finish_in_time(self):
        with Server("--drain", "0", ctx=4096) as server:
            connection, response = open_stream(server)
            server.process.send_signal(signal.SIGTERM)
            self.assertIn("error", response.read().decode())
            self.assertEqual(server.process.wait(20), 0)

    def test_a_model_that_is_missing_ends_with_3(self):
        done = subprocess.run([PROGRAM, "serve", "-m", "/nonexistent.gguf", "--port", "0"], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 3)


if __name__ == "__main__":
    unittest.main()
