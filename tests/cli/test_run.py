"""`emu86 run`, the real command in a process of its own, on a fake machine."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from support.places import TESTS

FAKE = [sys.executable, str(TESTS / "support" / "fake_emu86.py")]
CTRL_A = b"\x01"
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"  # of the guest's screen
PATIENCE = 30


def emu86(*arguments, typed="", **options):
    return subprocess.run(
        [*FAKE, *arguments],
        input=typed,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **options,
    )


def run(script, *arguments, **options):
    return emu86("run", "--append", script, *arguments, **options)


class Terminal:
    """The command in a terminal of its own, and somebody sitting at it."""

    def __init__(self, *arguments):
        self.keyboard, self.line = pty.openpty()
        self.before = termios.tcgetattr(self.line)
        self.process = subprocess.Popen(
            [*FAKE, *arguments],
            stdin=self.line,
            stdout=self.line,
            stderr=self.line,
            start_new_session=True,
            env=os.environ | {"TERM": "xterm"},
        )
        self.screen = b""

    def wait_for(self, text):
        end = time.monotonic() + PATIENCE
        while text not in self.screen:
            ready, _, _ = select.select([self.keyboard], [], [], end - time.monotonic())
            assert ready, self.screen
            self.screen += os.read(self.keyboard, 4096)

    def type(self, data):
        os.write(self.keyboard, data)

    def paste(self, data):
        """Type what may be more than the terminal has room for."""
        end = time.monotonic() + PATIENCE
        while data:
            _, room, _ = select.select([], [self.keyboard], [], end - time.monotonic())
            assert room, "the keyboard is not read"
            data = data[os.write(self.keyboard, data[:1024]) :]

    def end(self):
        status = self.process.wait(PATIENCE)
        while select.select([self.keyboard], [], [], 0.05)[0]:
            self.screen += os.read(self.keyboard, 4096)
        return status

    def modes(self):
        return termios.tcgetattr(self.line)


@contextmanager
def terminal(script, *arguments):
    at = Terminal("run", "--append", script, *arguments)
    try:
        yield at
    finally:
        at.process.kill()
        at.process.wait()
        for end in (at.keyboard, at.line):
            with suppress(OSError):
                os.close(end)


@pytest.mark.parametrize(
    ("script", "status", "how"),
    [
        ("poweroff", 0, "the guest powered off"),
        ("halted", 0, "the guest halted"),
        ("reset", 0, "the guest reset the machine"),
        ("triple-fault", 4, "the guest reset the machine by a triple fault"),
        ("panic", 4, "the guest's kernel panicked"),
        ("code:0", 0, "the guest ended with code 0"),
        ("code:33", 33, "the guest ended with code 33"),
        ("code:260", 4, "the guest ended with code 260, which is status 4"),
        ("unsupported", 1, "the guest did what emu86 cannot do"),
        ("timeout", 3, "the time is over"),
    ],
)
def test_how_a_run_ends(script, status, how):
    result = run(f"say:hello\\n {script}")
    assert result.stdout == "hello\n"
    died = script in ("triple-fault", "panic", "unsupported")
    report = "0 → 3\nall of it\n" if died else ""
    if script == "triple-fault":
        report = "why: a walk\n" + report
    assert result.stderr == f"{report}emu86: {how}, after 0.5 s and 1,000 exits\n"
    assert result.returncode == status


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("say:login: poweroff", 0),
        ("say:logi poweroff", 3),
        ("say:logi timeout", 3),
        ("say:logi code:0", 3),
        ("say:logi triple-fault", 4),
        ("say:logi panic", 4),
        ("say:logi unsupported", 1),
    ],
)
def test_until(script, status):
    result = run(script, "--until", "login:")
    assert result.returncode == status
    never = "neither console nor screen has shown 'login:'" in result.stderr
    assert never == (status == 3)


@pytest.mark.parametrize(
    ("code", "status"), [(0, 1), (1, 3), (0x10, 33), (0x80, 1), (0x1234, 105)]
)
def test_qemus_debug_exit(code, status):
    result = run(f"code:{code}", "--debug-exit-qemu")
    assert result.returncode == status
    assert f"with code {code}, which is status {status}, after" in result.stderr


def test_a_reset_ends_the_run_or_starts_the_kernel_anew():
    script = "say:a reset say:b triple-fault say:c poweroff"
    assert run(script).stdout == "a"
    result = run(script, "--on-reset", "reboot")
    assert result.stdout == "aagain\nbagain\nc"
    assert result.returncode == 0
    assert result.stderr.startswith("emu86: the guest powered off, after")


ON_SCREEN = (
    "emu86: the guest has shown something on its screen alone: --display terminal shows"
    " that, and --screenshot FILE keeps it"
)


@pytest.mark.parametrize("screen", ["draw:hello", "draw:"])
def test_what_is_on_the_screen_alone_is_told_of(screen):
    first, second = run(f"{screen} halted").stderr.splitlines()
    assert "halted" in first
    assert second == ON_SCREEN
    for script in ("halted", f"{screen} say:x halted"):
        assert "screen" not in run(script).stderr


def test_a_screenshot_is_text_or_a_picture_by_its_name(tmp_path):
    text, picture = tmp_path / "a.txt", tmp_path / "a.PNG"
    result = run("draw:░hello halted", "--screenshot", text)
    assert text.read_text("utf-8") == "░hello\n" + 24 * "\n"
    assert ON_SCREEN not in result.stderr
    assert run("draw:hello halted", "--screenshot", picture).returncode == 0
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert run("draw:hello halted", "--screenshot", "-").stdout == "hello" + 25 * "\n"


def test_graphics_have_no_text(tmp_path):
    result = run("draw: halted", "--screenshot", tmp_path / "a.txt")
    assert result.returncode == 0
    assert "emu86: the screen shows graphics" in result.stderr
    assert run("draw: halted", "--screenshot", tmp_path / "a.png").returncode == 0
    assert (tmp_path / "a.png").stat().st_size


def test_keys_that_were_never_typed_are_told_of():
    told = "--keys: nothing has shown 'never', so what follows is not typed"
    assert told in run("halted", "--keys", "never=>x").stderr
    assert "--keys" not in run("halted", "--keys", "x").stderr


def test_keys_are_typed_at_once_or_when_something_is_shown():
    keys = ("--keys", r"dir\n", "--keys", r"login: =>ab\\\<ctrl-alt-delete>c\e")
    result = run("tell halted", *keys)
    expected = [
        (None, "dir"), (None, "\n"), (b"login: ", "ab"), (None, "\\"),
        (None, "<ctrl-alt-delete>"), (None, "c"), (None, "\x1b"),
    ]  # fmt: skip
    assert repr(expected) in result.stdout


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (r"a\q", r"\q is no key: \n, \t, \b, \e, \\ and \<f1> are"),
        ("a\\", r"\ is no key: \n, \t, \b, \e, \\ and \<f1> are"),
        ("ä", "there is no key for 'ä' on a US keyboard"),
        (r"\<f13>", "no 'f13' (did you mean 'f3'? there are spc, ret,"),
        ("", "'' has no keys to type"),
        ("login:=>", "'login:=>' has no keys to type"),
    ],
)
def test_keys_that_are_none(keys, message):
    result = run("say:x halted", "--keys", keys)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.parametrize("name", ["", "nowhere/a.png"])
def test_a_screenshot_that_cannot_be_written(name):
    result = run("say:hello halted", "--screenshot", name)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("emu86: --screenshot: ")
    assert len(result.stderr.splitlines()) == 1


def test_page_tables_are_text_a_page_or_a_picture_by_the_name(tmp_path):
    text, page, picture = (tmp_path / name for name in ("a.txt", "a.HTML", "a.svg"))
    for path in (text, page, picture):
        assert run("halted", "--pages", path).returncode == 0
    assert "dirty bit watched" in text.read_text()
    assert text.read_text().endswith("\n\nno GDT\n\n")
    assert page.read_text().startswith("<!doctype html>")
    assert "no GDT" in page.read_text()
    assert picture.read_text().startswith("<svg ")
    assert "00400000" in run("halted", "--pages", "-").stdout


@pytest.mark.parametrize(
    ("key", "option", "name", "guest", "told", "content"),
    [
        (b"g", "--pages", "now.svg", "say:ready wait", b"the page tables are in",
         "<svg .*"),
        (b"p", "--screenshot", "now.txt", "draw:early say:ready wait",
         b"the screen is in", "early"),
    ],
)  # fmt: skip
def test_a_file_at_any_time(tmp_path, key, option, name, guest, told, content):
    file = tmp_path / name
    with terminal(guest, option, file) as at:
        at.wait_for(b"ready")
        at.type(CTRL_A + key)
        at.wait_for(told)
        text = file.read_text("utf-8")
        assert re.fullmatch(content, text.strip(), re.DOTALL)
        at.type(CTRL_A + b"x")
        assert at.end() == 0
    with terminal("say:ready wait") as at:
        at.wait_for(b"ready")
        at.type(CTRL_A + key)
        at.wait_for(f"start with {option} FILE".encode())
        at.type(CTRL_A + b"x")
        assert at.end() == 0


def test_the_timeout_is_over_loading_too():
    result = run("load:0.3 tell timeout", "--timeout", "0.2")
    assert "('timeout', 0)" in result.stdout
    assert result.returncode == 3


def test_all_reboots_together_have_the_timeout():
    script = "reset wait reset wait reset wait"
    result = run(script, "--on-reset", "reboot", "--timeout", "0.2")
    assert result.returncode == 3


@pytest.mark.parametrize(
    ("options", "panics"),
    [((), True), (("--until", "x"), True), (("--keep-going",), False)],
)
def test_a_panic_ends_a_run_that_nobody_watches(options, panics):
    assert f"('panics', {panics})" in run("tell timeout", *options).stdout


@pytest.mark.parametrize(("options", "panics"), [((), False), (("--until", "x"), True)])
def test_at_a_terminal_a_panic_ends_a_run_that_has_an_aim(options, panics):
    with terminal("tell timeout", *options) as at:
        at.end()
        assert f"('panics', {panics})".encode() in at.screen


def test_a_report_on_a_terminal_without_arrows():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = run("panic", env=environment)
    assert result.stderr.startswith("0 -> 3\nall of it\nemu86: ")


def test_a_pipe_is_fed_to_the_guest_as_it_is():
    result = run("echo poweroff", typed="a\x01xb\x03.")
    assert result.stdout == "a\x01xb\x03."
    assert result.returncode == 0


def test_the_end_of_a_pipe_ends_nothing():
    assert run("echo poweroff", "--timeout", "1", typed=".").returncode == 0


def test_much_input_is_not_read_before_the_guest_takes_it():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    command = [*FAKE, "run", "--append", "say:ready wait"]
    with subprocess.Popen(command, stdin=reading, stdout=subprocess.PIPE) as process:
        os.close(reading)
        written = 0
        try:
            assert process.stdout.read(5) == b"ready"
            for _ in range(30):
                time.sleep(0.02)
                with suppress(BlockingIOError):
                    written += os.write(writing, bytes(65536))
        finally:
            process.terminate()
            os.close(writing)
        assert written <= 65536 + 3 * 4096
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_standard_input_may_be_closed():
    result = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *FAKE, "run", "--append", "poweroff"],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 0
    assert result.stderr.count(b"\n") == 1


def test_without_a_terminal_the_teaching_kernel_runs_its_script():
    result = emu86("run", "--timeout", "1")
    assert "script" in result.stderr, "the fake machine does not know that word"


def test_options_reach_the_machine(tmp_path):
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"x")
    result = run(
        "tell poweroff",
        *("--memory", "64M", "--cpu", "pentium", "--technique", "iopl", "--debug-exit"),
        *("--rtc", "2001-09-09T03:46:40.5+02:00"),
        *("--initrd", str(initrd), "--disk", "a", "--disk", "b", "--cdrom", "c"),
        *("--floppy", "f", "--floppy", ""),
        *("--kernel", __file__, "--no-native", "--read-only"),
    )
    assert dict(eval(result.stdout)) == {
        "memory": 64 << 20,
        "cpu": "pentium",
        "technique": "iopl",
        "debug_exit": True,
        "realtime": False,
        "native": False,
        "rtc": 1_000_000_000.5,
        "panics": True,
        "timeout": None,
        "initrd": str(initrd),
        "bios": None,
        "disks": ("a", "b"),
        "cdrom": "c",
        "floppies": ("f", ""),
        "boot": "",
        "writes": "refuse",
        "serial": True,
        "parallel": False,
        "debug_console": False,
    }


@pytest.mark.parametrize(
    ("size", "bytes_"),
    [("1M", 1 << 20), ("3g", 3 << 30), ("4096K", 4 << 20), ("1052672", 1052672)],
)
def test_memory_sizes(size, bytes_):
    result = run("tell poweroff", "--memory", size)
    assert f"('memory', {bytes_})" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        (["run", "--memory", "1000000"], "memory: 1000000 is not a multiple of 4 KiB"),
        (["run", "--memory", "4096"], "from 1M to 63G"),
        (["run", "--memory", "64G"], "from 1M to 63G"),
        (["run", "--memory", "99999999999999G"], "no size like"),
        (["run", "--memory", "-1"], "no size like"),
        (["run", "--memory", "much"], "no size like"),
        (["run", "--technique", "magic"], "no 'magic' (there are patch, trap"),
        (["run", "--timeout", "nan"], "no positive number"),
        (["run", "--timeout", "0"], "no positive number"),
        (["run", "--until", ""], "no text to wait for"),
        (["run", "--rtc", "now"], "'now' is neither utc, localtime, nor a date like"),
        (["run", "--rtc", "1969-12-31"], "'1969-12-31' is before 1970"),
        (["run", "--on-reset", "pause"], "no 'pause' (there are exit, reboot)"),
        (["run", "--kernel"], "requires an argument"),
        (["run", "--no-such-option"], "No such option"),
        (["run", "file", "other"], "unexpected extra argument"),
        (["walk"], "no 'walk' (there are "),
        (["rnu"], "no 'rnu' (did you mean 'run'? there are "),
        ([__file__], f"(to boot it: emu86 run {__file__})"),
        (["run", "a", "--kernel", "b"], "is given twice: 'a' and --kernel 'b'"),
        (["run", "/nonexistent"], "kernel: /nonexistent: No such file"),
        (["run", "--technique", "ptach"], "did you mean 'patch'"),
        (["run", "--kernle", "x"], "--kernel"),
        # An empty value is a mistake, or means something; it is never overlooked.
        (["run", ""], "kernel: the name of its file is empty"),
        (["run", "--kernel", ""], "kernel: the name of its file is empty"),
        (["run", "--memory", ""], "memory: '' is no size"),
        (["run", "--cpu", ""], "no '' (there are pentium"),
        (["run", "--technique", ""], "no '' (there are patch"),
        (["run", "--timeout", ""], "'' is no positive number"),
        (["run", "--stats-json", ""], "--stats-json: the name of its file is empty"),
        ([""], "no '' (there are "),
        (["lab", ""], "lab: no ''"),
        (["classify", ""], "classify: no ''"),
        (["run", "--cpu", "z80"], "no 'z80' (there are pentium"),
        (["run", "--kernel", "/nonexistent"], "kernel: /nonexistent: No such file"),
        (["run", "--stats-json", "/nonexistent/x"], "/nonexistent/x: "),
        (["run", "--profile", ""], "--profile: the name of its file is empty"),
        (["run", "--profile", "/nonexistent/x"], "--profile: /nonexistent/x: "),
        (["run", "--symbols", "/dev/null"], "give one, too"),
        (["run", "--pages", ""], "--pages: the name of its file is empty"),
        (["run", "--pages", "x", "--technique", "bare"], "bare has no shadow tables"),
        (["run", "--trace", ""], "--trace: the name is empty"),
        (["run", "--trace-last", "5"], "need --trace FILE"),
        (["run", "--trace", "x", "--trace-last", "0"], "0 is not in the range x>=1"),
        (["run", "--trace", "x", "--profile", "y"], "exclude each other"),
        (["trace", "/nonexistent/x"], "/nonexistent/x: No such file"),
        (["trace", "/dev/null"], "/dev/null: it is no trace of emu86"),
        (["trace", "--summary", "--html", "x", "/dev/null"], "exclude each other"),
        (
            ["run", "--profile", "/dev/null", "--symbols", "/nonexistent/x"],
            "symbols: /nonexistent/x: No such file",
        ),
        (
            ["run", "--profile", "/dev/null", "--symbols", "/dev/null"],
            "symbols: /dev/null: neither an ELF file nor lines as System.map has",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, mistake):
    result = emu86(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("emu86: ")
    assert result.stderr.count("\n") == 1
    assert mistake in result.stderr


def test_a_mistake_leaves_no_empty_file(tmp_path):
    files = ["--stats-json", str(tmp_path / "s"), "--profile", str(tmp_path / "p")]
    for mistake in (["--kernel", "/nonexistent/x"], ["--symbols", "/nonexistent/x"]):
        assert emu86("run", *files, *mistake).returncode == 2
        assert not list(tmp_path.iterdir())


def test_stats():
    result = run("poweroff", "--stats")
    text = result.stderr
    assert "CLI" in text
    assert "HLT" not in text, "what never happened is not listed"
    assert "1,000" in text
    assert "61,000 blocks scanned; sites patched: PUSHF 150, POPF 12" in text
    assert "10 filled, 20 dropped, 30 resynchronised" in text
    assert "the guest itself ran 60% of 0.50 s, on the CPU model pentium3" in text


def test_stats_as_json(tmp_path):
    run("code:4", "--stats-json", str(tmp_path / "stats"))
    expected = {
        "status": 4,
        "stop": "debug exit",
        "code": 4,
        "detail": "",
        "wall_s": 0.5,
    }
    assert json.loads((tmp_path / "stats").read_text()) == expected
    result = run("poweroff", "--stats-json", "-")
    assert json.loads(result.stdout)["stop"] == "poweroff"


PROFILE = """\
The guest ran 0.002 s of virtual time. Halted time is left out.
Python took 0.01 s of the host's 0.50 s for exits.

  virtual ms   share       exits    host ms  by exit reason
       1.000   50.0%       1,000        8.0  IN, Python
       0.750   37.5%           -          -  the guest's own code
       0.250   12.5%         250          -  CLI, compiled

  virtual ms   share       exits    host ms  by function, 2 of 2
       1.750   87.5%       1,000        8.0  ring 0  do_idle
       0.250   12.5%         250          -  ring 3  page 08048000h
"""


def test_profile(tmp_path):
    path, names = tmp_path / "stacks", tmp_path / "System.map"
    names.write_text("c1000000 T do_idle\n")
    result = run("poweroff", "--profile", str(path), "--symbols", str(names))
    assert result.stderr.partition("exits\n")[2] == PROFILE
    assert path.read_text() == "ring 0;do_idle 30\n"
    result = run("say:ready", "--profile", "-")
    assert result.stdout.endswith("ring 0;do_idle 30\n")
    assert "--symbols takes a file that does" in result.stderr


def test_stats_that_nobody_reads():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*FAKE, "run", "--append", "poweroff", "--stats-json", "-"],
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=PATIENCE,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 128 + signal.SIGPIPE
    assert b"Broken pipe" not in done.stderr


def test_stats_onto_a_full_disk():
    result = run("poweroff", "--stats-json", "/dev/full")
    assert result.returncode == 2
    assert "No space left" in result.stderr


@pytest.mark.parametrize("command", [("run", "--append", "say:a wait"), ("exits",)])
def test_the_output_onto_a_full_disk(command):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*FAKE, *command],
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "emu86: standard output: No space left on device\n"


def test_text_that_is_no_utf_8():
    assert run("say:a poweroff", "--until", b"caf\xe9").returncode == 3


@pytest.mark.parametrize("stats", ["file", "-"])
def test_the_reader_of_the_output_may_leave(stats, tmp_path):
    process = subprocess.Popen(
        [
            *FAKE,
            "run",
            "--append",
            "say:a echo say:b say:c wait",
            "--stats-json",
            stats,
        ],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.read(1) == b"a"
    process.stdout.close()
    process.stdin.write(b".")
    process.stdin.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(PATIENCE) == 128 + signal.SIGPIPE
    if stats == "file":
        found = json.loads((tmp_path / "file").read_text())
        assert found["status"] == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    ("number", "told"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "interrupted"), (1, "")],
)
def test_signals_end_the_run(number, told):
    process = subprocess.Popen(
        [*FAKE, "run", "--append", "say:a wait"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.read(1) == b"a"
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (out, process.returncode) == (b"", 128 + number)
    assert told in err.decode()
    assert err.count(b"\n") == (1 if told else 0)


@pytest.mark.parametrize(
    ("number", "shown"), [(signal.SIGINT, b"b"), (signal.SIGTERM, b"b"), (1, b"")]
)
def test_what_was_sent_before_a_signal_and_is_told_of_later(number, shown):
    process = subprocess.Popen(
        [*FAKE, "run", "--append", "late:ab"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.read(1) == b"a"
    process.send_signal(number)
    out, _ = process.communicate(timeout=PATIENCE)
    assert (out, process.returncode) == (shown, 128 + number)


def test_a_terminal_is_raw_while_it_runs_and_as_before_afterwards():
    with terminal("say:ready echo poweroff") as at:
        at.wait_for(b"ready")
        assert at.modes() != at.before
        at.type(b"\x03\x1a\r.")
        at.wait_for(b"\x03\x1a\r.")
        assert at.end() == 0
        assert at.modes() == at.before
        assert b"emu86: the guest powered off" in at.screen


def test_ctrl_a():
    with terminal("say:ready echo wait") as at:
        at.wait_for(b"ready")
        at.type(CTRL_A + CTRL_A + b"q" + CTRL_A + b"h")
        at.wait_for(b"this help\r\nCtrl-A Ctrl-A  send Ctrl-A to the guest\r\n")
        at.type(CTRL_A + b"dy.")
        at.wait_for(b"y.")
        at.type(CTRL_A)
        at.type(b"x")
        assert at.end() == 0
        assert at.modes() == at.before
        assert b"emu86: quit" in at.screen


@pytest.mark.parametrize(
    ("key", "told"),
    [
        (b"h", b"Ctrl-A Ctrl-A  send Ctrl-A to the guest"),
        (b"?", b"Ctrl-A Ctrl-A  send Ctrl-A to the guest"),
        (b"i", b"emu86: 1.5 s of guest time, 1,000 exits, at 0010:c0100000, halted"),
    ],
)
def test_what_emu86_says_is_followed_by_the_guests_line_again(key, told):
    with terminal("say:one\\r\\nready> echo poweroff") as at:
        at.wait_for(b"ready>")
        at.type(b"ab")
        at.wait_for(b"ready>ab")
        at.type(CTRL_A + key)
        at.wait_for(told + b"\r\nready>ab")
        assert b"ready>ab\r\n" in at.screen
        at.type(b"c.")
        at.wait_for(b"ready>abc.")
        assert at.end() == 0


def test_a_pause():
    with terminal("say:ready echo poweroff", "--timeout", "20") as at:
        at.wait_for(b"ready")
        at.type(CTRL_A + b"z")
        at.wait_for(b"emu86: paused; Ctrl-A z goes on\r\n")
        at.type(b"typed" + CTRL_A + b"i")
        at.wait_for(b"1,000 exits")
        assert b"typed" not in at.screen, "the guest does not run"
        at.type(CTRL_A + b"z")
        at.wait_for(b"emu86: going on\r\n")
        at.wait_for(b"typed")
        at.type(b".")
        assert at.end() == 0


@pytest.mark.parametrize(
    ("end", "status"), [("quit", 0), ("signal", 128 + 15), ("hang up", 128 + 1)]
)
def test_the_end_of_a_pause(end, status):
    with terminal("say:ready wait") as at:
        at.wait_for(b"ready")
        at.type(CTRL_A + b"z")
        at.wait_for(b"paused")
        if end == "quit":
            at.type(CTRL_A + b"x")
        elif end == "signal":
            at.process.send_signal(signal.SIGTERM)
        else:
            os.close(at.line)
            os.close(at.keyboard)
        assert at.process.wait(PATIENCE) == status


@pytest.mark.parametrize("paused", [True, False])
def test_emu86s_keys_behind_a_long_paste(paused):
    with terminal("say:ready wait") as at:
        at.wait_for(b"ready")
        if paused:
            at.type(CTRL_A + b"z")
            at.wait_for(b"paused")
        at.paste(b"x" * 20_000 + CTRL_A + b"i")
        at.wait_for(b"1,000 exits")
        at.type(CTRL_A + b"x")
        assert at.end() == 0
        assert b"lost" not in at.screen


def test_what_finds_no_room_is_lost_and_that_is_told_once():
    with terminal("deaf:1048576 say:ready wait") as at:
        at.wait_for(b"ready")
        told = b"the guest does not take what is typed: the rest is lost"
        at.paste(b"y")
        at.wait_for(told)
        at.paste(b"z" * 20_000 + CTRL_A + b"x")
        assert at.end() == 0
        assert at.screen.count(told) == 1


def test_a_reset_by_ctrl_a():
    with terminal("say:ready> wait") as at:
        at.wait_for(b"ready>")
        at.type(CTRL_A + b"r")
        at.wait_for(b"ready>\r\nemu86: reset\r\nagain")
        at.type(CTRL_A + b"x")
        assert at.end() == 0


def test_quitting_before_the_text_was_shown():
    with terminal("say:ready wait", "--until", "never") as at:
        at.wait_for(b"ready")
        at.type(CTRL_A + b"x")
        assert at.end() == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_sane(number):
    with terminal("say:ready wait") as at:
        at.wait_for(b"ready")
        at.process.send_signal(number)
        assert at.end() == 128 + number
        assert at.modes() == at.before


def test_a_closed_terminal_ends_the_run():
    with terminal("say:ready echo wait") as at:
        at.wait_for(b"ready")
        os.close(at.line)
        os.close(at.keyboard)
        assert at.process.wait(PATIENCE) == 128 + signal.SIGHUP


def test_silence_is_filled_until_the_guest_speaks():
    with terminal("echo say:ready poweroff") as at:
        at.wait_for(b"nothing shown yet")
        at.type(b".")
        at.wait_for(b"ready")
        assert at.end() == 0


def told(result):
    return dict(eval(result.stdout))


def test_without_a_terminal_the_date_is_always_the_same():
    assert told(run("tell poweroff"))["rtc"] == 1_767_225_600


@pytest.mark.parametrize("zone", ["UTC0", "XYZ-5:30"])
def test_the_hosts_date(zone):
    ahead = 5.5 * 3600 if zone != "UTC0" else 0
    environment = os.environ | {"TZ": zone}
    before = time.time()
    utc = told(run("tell poweroff", "--rtc", "utc", env=environment))["rtc"]
    local = told(run("tell poweroff", "--rtc", "localtime", env=environment))["rtc"]
    after = time.time()
    assert before <= utc <= local - ahead <= after


def test_on_a_terminal_the_date_is_the_hosts():
    before = time.time()
    with terminal("tell poweroff") as at:
        at.wait_for(b"('rtc', ")
        assert at.end() == 0
    rtc = at.screen.partition(b"('rtc', ")[2].partition(b")")[0]
    assert before <= float(rtc) <= time.time()


# -- disks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "writes"),
    [((), "keep"), (("--discard-writes",), "discard"), (("--read-only",), "refuse")],
)
def test_disks(option, writes):
    disks = ("--disk", "a.img", "--disk", "b.img")
    out = run("tell", "--kernel", __file__, *disks, *option).stdout
    assert "('disks', ('a.img', 'b.img'))" in out
    assert f"('writes', '{writes}')" in out


def test_writes_are_either_discarded_or_refused():
    result = run("tell", "--discard-writes", "--read-only")
    assert result.returncode == 2
    assert "--discard-writes and --read-only exclude each other" in result.stderr


def test_an_error_of_an_image_is_one_line():
    result = run("say:begun media:a.img:no_space say:on")
    assert result.stdout == "begunon"
    assert result.stderr.startswith("emu86: a.img:no_space\n")
    with terminal("say:begun media:a.img:no_space say:on wait") as at:
        at.wait_for(b"begun\r\nemu86: a.img:no_space\r\nbegunon")
        at.type(CTRL_A + b"x")
        assert at.end() == 0


def test_a_cd_is_changed_by_ctrl_a():
    cd = ("--kernel", __file__, "--cdrom", "a.iso")
    with terminal("say:ready> wait", *cd) as at:
        at.wait_for(b"ready>")
        for typed, told in (
            (b"c.iso\x7f\x7f\x7f\x7f\x7fb\xc3\xa4.iso\r", b"cdrom: b\xc3\xa4.iso"),
            (b"cdrom d.iso\r", b"cdrom: d.iso"),
            (b"wrong\r", b"cdrom: wrong: it is wrong"),
            (b"x\x1b", b"all stays as it is"),
            (b"\r", b"all stays as it is"),
            (b"cdrom\r", b"cdrom: empty"),
        ):
            at.screen = b""
            at.type(CTRL_A + b"d" + typed)
            at.wait_for(b"emu86: " + told + b"\r\nready>")
        at.type(CTRL_A + b"x")
        assert at.end() == 0


def test_the_screen_is_shown_again_behind_ctrl_a_d():
    options = ("--kernel", __file__, "--cdrom", "a.iso", "--display", "terminal")
    with terminal("draw:hello wait", *options) as at:
        at.wait_for(b"hello")
        at.type(CTRL_A + b"d")
        at.wait_for(LEAVE)
        at.wait_for(b"\r\n> ")
        at.screen = b""
        at.type(b"b.iso\r")
        at.wait_for(ENTER)
        at.wait_for(b" emu86: cdrom: b.iso ")
        at.type(CTRL_A + b"x")
        assert at.end() == 0


@pytest.mark.parametrize("keys", [b"z", b"d", b"da.i"])
def test_the_timeout_ends_a_pause_and_a_question(keys):
    cd = ("--kernel", __file__, "--cdrom", "a.iso", "--timeout", "2")
    with terminal("say:ready wait", *cd) as at:
        at.wait_for(b"ready")
        at.type(CTRL_A + keys)
        at.wait_for(b"emu86: the time is over")
        assert at.end() == 3


def test_without_a_drive_ctrl_a_d_says_so():
    with terminal("say:ready> wait") as at:
        at.wait_for(b"ready>")
        at.type(CTRL_A + b"d")
        at.wait_for(b"emu86: there is no drive whose medium can be changed\r\nready>")
        at.type(CTRL_A + b"x")
        assert at.end() == 0


# -- the guest's screen on the terminal ------------------------------------------------


def test_the_screen_is_shown_and_its_keys_go_to_the_keyboard():
    with terminal("draw:hello say:serial wait", "--display", "terminal") as at:
        at.wait_for(b"hello")
        assert ENTER in at.screen
        assert b"serial" not in at.screen
        at.type(b"ab\x1b[A\r")
        at.wait_for(b"ab<up>")
        at.type(CTRL_A + b"x")
        at.wait_for(LEAVE + b"serial\r\nab<up>")
        assert at.end() == 0
        assert at.modes() == at.before


def test_ctrl_a_t_changes_between_screen_and_serial_line():
    with terminal("draw:hello say:serial echo") as at:
        at.wait_for(b"serial")
        at.type(CTRL_A + b"t")
        at.wait_for(b"hello")
        at.type(CTRL_A + b"i")
        at.wait_for(b"s of guest time")
        at.type(b"k")
        at.wait_for(b"1;1H\x1b[0;37;40mkello")
        at.type(CTRL_A + b"t")
        at.wait_for(LEAVE)
        at.type(b"typed.")
        at.wait_for(b"typed.")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_given_back_after_a_signal(number):
    with terminal("draw:hello wait", "--display", "terminal") as at:
        at.wait_for(b"hello")
        at.process.send_signal(number)
        assert at.end() == 128 + number
        assert LEAVE in at.screen
        assert at.modes() == at.before


@pytest.mark.parametrize(
    ("options", "shown"), [((), True), (("--display", "none"), False)]
)
def test_a_bios_has_the_screen(options, shown):
    at = Terminal("run", "--bios", "rom.bin", *options)
    at.wait_for(b"the time is over")
    assert at.end() == 3
    assert (ENTER in at.screen) == shown
    for end in (at.keyboard, at.line):
        os.close(end)


def test_a_screen_needs_a_terminal():
    result = run("halted", "--display", "terminal")
    assert result.returncode == 2
    assert "standard output is no terminal that can show a screen" in result.stderr
    assert run("halted", "--display", "sdl").returncode == 2


# -- the serial line and the debug console ---------------------------------------------


def test_a_serial_line_in_a_file(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"of the last run, which was longer")
    result = run("say:one\\r\\n say:two", "--serial", log, "--until", "two")
    assert log.read_bytes() == b"one\r\ntwo"
    assert result.stdout == ""
    assert result.returncode == 0


def test_a_serial_line_in_a_file_leaves_standard_input_alone(tmp_path):
    end, typist = os.pipe()
    os.write(typist, b"typed")
    command = [*FAKE, "run", "--append", "poweroff", "--serial", tmp_path / "log"]
    subprocess.run(command, stdin=end, capture_output=True, check=True, timeout=60)
    assert os.read(end, 100) == b"typed"
    os.close(typist)
    os.close(end)


def test_no_serial_port():
    result = run("debugtell poweroff", "--serial", "none", "--debugcon", "-")
    assert "('serial', False)" in result.stdout
    assert "('debug_console', True)" in result.stdout


def test_the_debug_console_in_a_file_and_here(tmp_path):
    log = tmp_path / "log"
    result = run("debug:of_the_BIOS say:on poweroff", "--debugcon", log)
    assert (result.stdout, log.read_text()) == ("on", "of_the_BIOS")
    assert run("debug:a\\n say:b poweroff", "--debugcon", "-").stdout == "a\nb"


@pytest.mark.parametrize("option", ["--serial", "--debugcon"])
def test_a_log_that_cannot_be_written(option):
    result = run("say:x", option, "/none/log")
    assert result.returncode == 2
    assert result.stderr == f"emu86: {option}: /none/log: No such file or directory\n"
    word = "say:x" if option == "--serial" else "debug:x"
    result = run(f"{word} {word} poweroff", option, "/dev/full")
    assert result.stderr.count(f"emu86: {option}: /dev/full: No space left") == 1
    assert result.returncode == 0


# -- the printer -----------------------------------------------------------------------


def test_what_is_printed_is_in_the_file(tmp_path):
    paper = tmp_path / "paper"
    paper.write_bytes(b"before ")
    assert "('parallel', True)" in run("tell", "--parallel", paper).stdout
    assert run("print:one", "--parallel", "-").stdout == "one"
    run("print:one print:two", "--parallel", paper)
    assert paper.read_bytes() == b"before onetwo"
    assert "('parallel', False)" in run("tell").stdout


def test_a_file_that_cannot_be_printed_to():
    result = run("say:on", "--parallel", "/none/paper")
    assert result.returncode == 2
    told = "emu86: --parallel: /none/paper: No such file or directory\n"
    assert result.stderr == told
    result = run("print:x say:on", "--parallel", "/dev/full")
    assert result.stdout == "on"
    told = "emu86: --parallel: /dev/full: No space left on device\n"
    assert result.stderr.startswith(told)
