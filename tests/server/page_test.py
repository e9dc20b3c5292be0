"""The chat page in a real browser: headless Chromium, driven over its debugging pipe. Not part of the default tests, as it needs the
package chromium: FATHOM_PROGRAM=build/fathom FATHOM_TEST_MODEL=models/tiny/tiny-q8_0.gguf python3 tests/server/page_test.py"""
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
import unittest

from running_server import CHAT, Server, chat

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One tab. Messages are JSON between zero bytes on the descriptors 3 (to Chromium) and 4 (from it)."""

    def __init__(self):
        assert CHROMIUM, "no chromium here; on Debian: apt-get install chromium"
        self.profile = tempfile.TemporaryDirectory()
        their_in, self.out = os.pipe()
        self.into, their_out = os.pipe()
        # Out of the way of 3 and 4, which dup2 overwrites.
        high_in, high_out = (fcntl.fcntl(fd, fcntl.F_DUPFD, 50) for fd in (their_in, their_out))

        def connect():
            os.dup2(high_in, 3)
            os.dup2(high_out, 4)
        self.process = subprocess.Popen(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
             "--user-data-dir=" + self.profile.name, "about:blank"],
            pass_fds=(3, 4), close_fds=False, preexec_fn=connect, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in (their_in, their_out, high_in, high_out):
            os.close(fd)
        self.received, self.n_sent, self.session = b"", 0, None
        self.urls, self.problems = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Network", "Page", "Log"):
            self.call(domain + ".enable")

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        os.close(self.into)
        self.profile.cleanup()

    def next_message(self):
        while b"\0" not in self.received:
            piece = os.read(self.into, 65536)
            assert piece, "the browser has ended"
            self.received += piece
        message, self.received = self.received.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **params):
        self.n_sent += 1
        message = {"id": self.n_sent, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.next_message()
            if answer.get("method") == "Network.requestWillBeSent":
                self.urls.append(answer["params"]["request"]["url"])
            elif answer.get("method") == "Runtime.exceptionThrown":
                self.problems.append(answer["params"]["exceptionDetails"]["exception"].get("description", ""))
            elif answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["source"] == "security":
                self.problems.append(answer["params"]["entry"]["text"])
            if answer.get("id") == self.n_sent:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script):
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && document.getElementById('model')?.textContent !== ''")

    def wait(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"not within {seconds} s: {condition}; the page says {self.run('document.body.innerText')!r}"
            time.sleep(0.02)

    def say(self, text):
        """As with a keyboard: into the field that has the focus, then Enter."""
        self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r" if kind == "keyDown" else "")

    def set(self, field, value):
        self.run(f"(() => {{ const f = document.getElementById({json.dumps(field)}); f.value = {json.dumps(value)}; f.onchange(); }})()")
        self.run("document.getElementById('input').focus()")

    def answers(self):
        return self.run("[...document.querySelectorAll('.turn.assistant')].map(t => t.children[1].textContent)")

    def notes(self):
        return self.run("[...document.querySelectorAll('.turn.assistant .note')].map(t => t.textContent)")

    def wait_for_end(self):
        self.wait("document.getElementById('send').textContent === 'Send'")
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


class PageTest(unittest.TestCase):
    def setUp(self):
        self.browser = Browser()

    def tearDown(self):
        self.browser.close()

    def start(self, *options, **more):
        server = Server(*options, **more)
        self.addCleanup(server.__exit__)
        self.browser.open(server.url + "/")
        return server

    def check_clean(self, server):
        self.assertEqual(self.browser.problems, [])
        elsewhere = [url for url in self.browser.urls if not url.startswith((server.url, "data:", "about:"))]
        self.assertEqual(elsewhere, [])

    def test_an_answer_comes_as_the_api_gives_it(self):
        server, b = self.start(), self.browser
        self.assertEqual(b.run("document.getElementById('model').textContent"), server.model)
        b.set("temperature", "0")
        b.say("What is the capital of France?")
        b.wait_for_end()
        self.assertEqual(b.answers(), [server.post(CHAT, chat())[2]["choices"][0]["message"]["content"]])
        self.assertRegex(b.notes()[0], r"^\d+ tokens, [\d.]+ per second$")
        self.assertTrue(b.run("document.querySelector('.turn.assistant details').hidden"))  # no thinking, no fold
        b.say("And of Spain?")
        b.wait_for_end()
        self.assertEqual(len(b.answers()), 2)
        self.assertEqual(len(b.run("[...document.querySelectorAll('.turn.user')].map(t => t.textContent)")), 2)
        self.check_clean(server)

    def test_text_grows_and_stop_ends_it_on_the_server_too(self):
        server, b = self.start("--isa", "reference", ctx=4096), self.browser  # slow enough to look at
        b.set("system", "You tell long stories.")
        b.run("""(() => { const ask = request_of; request_of = chat => ({ ...ask(chat), max_tokens: 3900, ignore_eos: true }); })()""")
        b.say("Tell me a story.")
        lengths = []
        while len(lengths) < 4:
            length = sum(map(len, b.answers()))
            if length > 0 and length not in lengths:
                lengths.append(length)
        self.assertEqual(lengths, sorted(lengths))
        self.assertEqual(b.run("document.getElementById('send').textContent"), "Stop")
        b.run("document.getElementById('send').click()")
        b.wait_for_end()
        self.assertEqual(b.notes(), ["stopped"])
        self.assertGreaterEqual(len(b.answers()[0]), lengths[-1])
        self.assertTrue(server.wait_for(lambda: server.metric("fathom:cache_pages_used") == 0, 10))
        self.check_clean(server)

    def test_thinking_is_folded(self):
        server, b = self.start("--chat-format", "v3.1"), self.browser
        b.set("thinking", "enabled")
        b.run("""(() => { const ask = request_of; request_of = chat => ({ ...ask(chat), max_tokens: 40, ignore_eos: true }); })()""")
        b.say("What is 2 + 3?")
        b.wait_for_end()
        fold = "document.querySelector('.turn.assistant details')"
        self.assertEqual((b.run(fold + ".hidden"), b.run(fold + ".open")), (False, False))
        self.assertTrue(b.run(fold + ".lastChild.textContent"))
        self.check_clean(server)

    def test_conversations_are_kept_over_a_reload_and_can_be_deleted(self):
        server, b = self.start(), self.browser
        titles = lambda: b.run("[...document.querySelectorAll('#list .item button:first-child')].map(t => t.textContent)")
        b.say("What is the capital of France?")
        b.wait_for_end()
        b.run("document.getElementById('new').click()")
        b.say("What is the opposite of hot?")
        b.wait_for_end()
        second = b.answers()
        b.open(server.url + "/")
        self.assertEqual(titles(), ["What is the opposite of hot?", "What is the capital of France?"])
        self.assertEqual(b.answers(), second)
        b.run("document.querySelectorAll('#list .item')[1].firstChild.click()")
        self.assertEqual(b.run("document.querySelector('.turn.user').textContent"), "What is the capital of France?")
        b.run("document.querySelectorAll('#list .item')[1].lastChild.click()")
        b.open(server.url + "/")
        self.assertEqual(titles(), ["What is the opposite of hot?"])
        self.check_clean(server)

    def test_markup_is_text(self):
        server, b = self.start(), self.browser
        b.say("<img src=x onerror=alert(1)><b>bold</b>")
        b.wait_for_end()
        b.run("show_message({ role: 'assistant', content: '<script>alert(1)</scr' + 'ipt> and\\n```html\\n<i>code</i>\\n```\\nend', note: '' })")
        self.assertEqual(b.run("document.querySelectorAll('#log img, #log b, #log i, #log script').length"), 0)
        self.assertEqual(b.run("document.querySelector('#log pre').textContent"), "<i>code</i>")
        self.check_clean(server)

    def test_a_missing_key_is_told_and_a_right_one_works(self):
        server, b = self.start("--api-key", "secret"), self.browser
        b.say("What is the capital of France?")
        b.wait_for_end()
        self.assertIn("api key", b.run("document.querySelector('.turn.error').textContent"))
        b.set("key", "secret")
        b.say("What is the capital of France?")
        b.wait_for_end()
        self.assertEqual(len(b.answers()), 1)
        self.check_clean(server)


if __name__ == "__main__":
    unittest.main()
