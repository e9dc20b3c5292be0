"""fathom chat, in a terminal as a person would use it."""
import json
import os
import signal
import stat
import termios
import time
import unittest

from fathom_program import TINY, ProgramTest, Terminal, plain


class Chat(ProgramTest):
    def chat(self, *args, env=None, **options):
        terminal = Terminal("chat", "-m", TINY, "--temp", "0", "--seed", "1", *args, env={"XDG_STATE_HOME": str(self.folder), **(env or {})}, **options)
        self.addCleanup(terminal.close)
        terminal.wait_for_prompt()
        return terminal

    def leave(self, terminal):
        terminal.send("\x04")
        self.assertEqual(terminal.end(), 0)

    def saved(self, terminal):
        """The conversation, by way of /save."""
        path = self.folder / "saved.json"
        terminal.say(f"/save {path}")
        return json.loads(path.read_text())["messages"]

    def test_answers_a_question_and_leaves_on_ctrl_d(self):
        t = self.chat()
        self.assertIn("Paris", t.say("What is the capital of France?"))
        self.leave(t)

    def test_only_new_tokens_are_evaluated_in_the_second_turn(self):
        t = self.chat()
        t.say("What is the capital of France?")
        first = t.say("/stats")
        t.say("What is 3 plus 4?")
        second = t.say("/stats")
        self.assertIn(" 0 cached", first)
        prompt, cached = (int(second.split(word)[0].split()[-1]) for word in (" tokens, ", " cached"))
        self.assertGreater(prompt, 15)
        self.assertLess(prompt - cached, 14, "the question, its markers and one token of the answer before")
        self.leave(t)

    def test_a_conversation_through_the_cache_is_what_one_without_it_is(self):
        t = self.chat()
        for question in ("What is the capital of France?", "What is 3 plus 4?", "What color is grass?"):
            t.say(question)
        messages = self.saved(t)
        self.leave(t)
        for n in (1, 3, 5):
            path = self.file("messages.json", json.dumps(messages[:n]))
            answer = self.run_ok("run", "-m", TINY, "--messages", path, "--temp", "0").text
            self.assertEqual(answer, messages[n]["content"])

    def test_pasted_lines_do_not_submit(self):
        t = self.chat()
        t.paste("What is\nthe capital\nof France?")
        time.sleep(0.3)
        t.read_some(0.1)
        self.assertNotIn("\x1b[?2004l", t.seen)
        t.send("\r")
        t.wait_for("\x1b[?2004l")
        t.wait_for_prompt()
        self.assertEqual(self.saved(t)[0]["content"], "What is\nthe capital\nof France?")
        self.leave(t)

    def test_a_megabyte_can_be_pasted_and_dropped(self):
        t = self.chat("--ctx", "64")
        text = "word " * 200000
        os.set_blocking(t.fd, False)
        data = ("\x1b[200~" + text + "\x1b[201~").encode()
        end = time.monotonic() + 60
        while data and time.monotonic() < end:
            try:
                data = data[os.write(t.fd, data):]
            except BlockingIOError:
                t.read_some(0.01)
        os.set_blocking(t.fd, True)
        t.send("\r")
        self.assertIn("longer than the context", plain(t.wait_for("\x1b[?2004l") + t.wait_for_prompt()))
        self.assertEqual(self.saved(t), [])
        self.leave(t)

    def test_a_block_of_several_lines_is_one_message(self):
        t = self.chat()
        for line in ('"""', "/exit is", "no command here", 'What is 3 plus 4?"""'):
            t.send(line + "\r")
            t.wait_for("\x1b[?2004l")
            t.wait_for("\x1b[?2004h")
        self.assertEqual(self.saved(t)[0]["content"].strip(), "/exit is\nno command here\nWhat is 3 plus 4?")
        self.leave(t)

    def test_ctrl_c_stops_an_answer_and_keeps_what_was_said(self):
        t = self.chat("--logit-bias", "1=-inf", "--temp", "1", "--ctx", "4096")
        t.send("Tell me a story.\r")
        t.wait_for("\x1b[?2004l")
        t.wait_for(".")
        t.send("\x03")
        self.assertIn("stopped", t.wait_for_prompt())
        kept = self.saved(t)[1]["content"]
        self.assertGreater(len(kept), 3)
        self.assertIn("tokens", t.say("/stats"))
        self.leave(t)

    def test_ctrl_c_before_the_answer_begins_gives_the_question_back(self):
        t = self.chat("--isa", "reference", "--batch", "1")
        question = "word " * 3000
        t.paste(question)
        t.send("\r")
        t.wait_for("\x1b[?2004l")
        t.wait_for("reading the prompt")
        t.send("\x03")
        t.wait_for("before the answer began")
        t.wait_for("word word")
        t.send("\x15")
        self.assertEqual(self.saved(t), [])
        self.leave(t)

    def test_ctrl_c_at_the_prompt_hints_and_drops_what_was_typed(self):
        t = self.chat()
        t.send("\x03")
        self.assertIn("Ctrl-D", t.wait_for_prompt())
        t.send("something\x03")
        self.assertNotIn("Ctrl-D", t.wait_for_prompt())
        for _ in range(10):
            t.send("\x03")
            t.wait_for_prompt()
        self.leave(t)

    def test_line_editing(self):
        t = self.chat()
        # Wrong letters removed in the middle, a word killed and put back, a wide character passed by an arrow.
        t.send("What is 3 XXplus 4?" + "\x1b[D" * 7 + "\x7f\x7f" + "\x05\x17\x19" + "日\x1b[D\x1b[3~" + "\r")
        t.wait_for("\x1b[?2004l")
        t.wait_for_prompt()
        self.assertEqual(self.saved(t)[0]["content"], "What is 3 plus 4?")
        self.leave(t)

    def test_history_survives_and_is_private(self):
        t = self.chat()
        t.say("What is the capital of France?")
        t.say("What is 3 plus 4?")
        self.leave(t)
        history = self.folder / "fathom/history"
        self.assertEqual(stat.S_IMODE(history.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(history.parent.stat().st_mode), 0o700)
        self.assertEqual(stat.S_IMODE((self.folder / "fathom/last.json").stat().st_mode), 0o600)
        t = self.chat()
        t.send("\x1b[A\x1b[A\r")
        t.wait_for("\x1b[?2004l")
        self.assertIn("Paris", t.wait_for_prompt())
        t.send("\x12plus\r")  # Ctrl-R
        t.wait_for("\x1b[?2004l")
        t.wait_for_prompt()
        self.assertEqual([m["content"] for m in self.saved(t)][::2], ["What is the capital of France?", "What is 3 plus 4?"])
        self.leave(t)

    def test_no_history_leaves_nothing(self):
        t = self.chat("--no-history")
        t.say("What is 3 plus 4?")
        self.leave(t)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_continue_goes_on_with_the_last_conversation(self):
        t = self.chat()
        t.say("What is the capital of France?")
        self.leave(t)
        t = self.chat("--continue")
        t.say("What is 3 plus 4?")
        self.assertEqual(len(self.saved(t)), 4)
        self.leave(t)

    def test_a_session_file_is_kept_and_taken_up(self):
        path = self.folder / "session.json"
        for n in (2, 4):
            t = self.chat("--session", str(path))
            t.say("What is 3 plus 4?")
            self.leave(t)
            self.assertEqual(len(json.loads(path.read_text())["messages"]), n)

    def test_undo_regen_and_clear(self):
        t = self.chat()
        t.say("What is the capital of France?")
        t.say("What is 3 plus 4?")
        t.say("/regen")
        self.assertEqual(len(self.saved(t)), 4)
        self.assertIn("What is 3 plus 4?", t.say("/undo") + plain(t.wait_for("4?")))
        t.send("\x15")  # Ctrl-U: not again
        self.assertEqual(len(self.saved(t)), 2)
        t.say("/clear")
        self.assertEqual(self.saved(t), [])
        self.leave(t)

    def test_settings_and_refusals(self):
        t = self.chat()
        self.assertIn("temp 0.70", t.say("/set temp 0.7"))
        self.assertIn("out of range", t.say("/set temp -1"))
        self.assertIn("unknown name", t.say("/set warmth 3"))
        self.assertIn("temp 0.70", t.say("/show"))
        self.assertIn("unknown command", t.say("/nonsense"))
        self.assertIn("of 4096 tokens", t.say("/ctx"))
        self.assertIn("cannot be opened", t.say("/load /no/such/file"))
        self.assertIn("no system text", t.say("/system"))
        self.assertIn("Be brief", t.say("/system Be brief."))
        self.assertIn("no system text", t.say("/system -"))
        self.assertIn("/regen", t.say("/help"))
        t.send("/exit\r")
        self.assertEqual(t.end(), 0)

    def test_help_fits_a_window_of_80_columns(self):
        t = self.chat(columns=200)
        lines = t.say("/help").split("\n")
        self.assertGreater(len(lines), 15)
        self.assertLessEqual(max(map(len, lines)), 80)
        self.leave(t)

    def test_the_context_is_that_of_the_conversation(self):
        t = self.chat()
        self.assertIn("0 of 4096", t.say("/ctx"))
        t.say("What is the capital of France?")
        self.assertRegex(t.say("/ctx"), r"\b[1-9]\d? of 4096")
        t.say("/clear")
        self.assertIn("0 of 4096", t.say("/ctx"))
        self.leave(t)

    def test_a_tilde_is_the_home_folder(self):
        t = self.chat(env={"HOME": str(self.folder)})
        t.say("What is 3 plus 4?")
        t.say("/save ~/kept.json")
        self.assertEqual(len(json.loads((self.folder / "kept.json").read_text())["messages"]), 2)
        self.assertIn("3 plus 4", t.say("/load ~/kept.json"))
        self.leave(t)

    def test_read_puts_a_file_before_the_next_message(self):
        t = self.chat()
        t.say("/read " + self.file("a.txt", "Some text.\n"))
        t.say("What is 3 plus 4?")
        self.assertEqual(self.saved(t)[0]["content"], "Some text.\n\n\nWhat is 3 plus 4?")
        self.leave(t)

    def test_the_editor_writes_the_message(self):
        script = self.file("editor", '#!/bin/sh\necho "What is 3 plus 4?" > "$1"\n')
        os.chmod(script, 0o755)
        t = self.chat(env={"EDITOR": script})
        t.say("/edit")
        t.send("\r")
        t.wait_for("\x1b[?2004l")
        t.wait_for_prompt()
        self.assertEqual(self.saved(t)[0]["content"], "What is 3 plus 4?")
        self.leave(t)

    def test_a_narrow_and_a_resized_window(self):
        t = self.chat(columns=1, rows=2)
        t.send("What is")
        t.resize(40, 10)
        t.send(" 3 plus 4?\r")
        t.wait_for("\x1b[?2004l")
        t.wait_for_prompt()
        self.assertEqual(self.saved(t)[0]["content"], "What is 3 plus 4?")
        self.leave(t)

    def test_a_dumb_terminal_gets_no_escapes(self):
        t = Terminal("chat", "-m", TINY, "--temp", "0", env={"TERM": "dumb", "XDG_STATE_HOME": str(self.folder)})
        self.addCleanup(t.close)
        t.wait_for(">>> ")
        t.send("What is the capital of France?\n")
        said = t.wait_for(">>> ")
        self.assertIn("Paris", said)
        t.send("\x04")
        self.assertEqual(t.end(), 0)
        self.assertNotIn("\x1b", said)

    def test_a_termination_signal_leaves_the_terminal_as_it_was(self):
        t = Terminal("chat", "-m", TINY, env={"XDG_STATE_HOME": str(self.folder)})
        self.addCleanup(t.close)
        t.wait_for_prompt()
        self.assertFalse(termios.tcgetattr(t.fd)[3] & termios.ICANON)
        os.kill(t.pid, signal.SIGTERM)
        time.sleep(0.3)
        flags = termios.tcgetattr(t.fd)[3]
        self.assertTrue(flags & termios.ICANON and flags & termios.ECHO)
        self.assertEqual(t.end(), -signal.SIGTERM)

    def test_without_a_terminal_it_refuses(self):
        self.assert_refused(2, "chat", "-m", TINY, says="terminal")


if __name__ == "__main__":
    unittest.main()
