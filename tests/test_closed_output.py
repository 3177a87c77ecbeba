"""Programs whose output nobody reads any more, as in `ddistill.main ... | head`."""

import io
import os
import subprocess
import sys

import pytest

from ddistill.runtime import ending


@pytest.fixture
def unread():
    """Runs code that ends as our programs do, with an output whose reader has ended before."""

    def run(code: str) -> subprocess.CompletedProcess:
        read, write = os.pipe()
        os.close(read)
        begin = "import sys; from ddistill.runtime import ending as e; from ddistill.command_line"
        whole = f"{begin} import one_line_ending\n{code}"
        try:
            return subprocess.run(
                [sys.executable, "-c", whole],
                stdout=write,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                # Buffered, as is usual: the end of a program finds that nobody reads.
                env={**os.environ, "PYTHONUNBUFFERED": "", "JAX_PLATFORMS": "cpu"},
            )
        finally:
            os.close(write)

    return run


ENDINGS = {
    "little output": ("print('x')", 141, ""),
    "much output": ("print('x' * 100_000)", 141, ""),
    "help": ("print('x'); sys.exit(0)", 141, ""),
    "an error": ("print('x'); sys.exit(2)", 2, ""),
    "an error in words": ("print('x'); sys.exit('error: no')", 1, "error: no\n"),
    "no output": ("pass", 0, ""),
}


@pytest.mark.parametrize("code, status, said", ENDINGS.values(), ids=ENDINGS)
def test_programs_whose_output_is_not_read_end_without_a_traceback(unread, code, status, said):
    found = unread(f"with e.answer_closed_output(): {code}")
    assert (found.returncode, found.stderr) == (status, said)
    found = unread(f"@one_line_ending()\ndef main(): {code}\nmain()")
    assert (found.returncode, found.stderr) == (status, said)


# A pipe to another program, such as a worker process, breaks.
OTHER_PIPE = """
import os
def break_pipe(*_):
    read, write = os.pipe()
    os.close(read)
    os.write(write, b"x")
"""


def run_ending(code: str) -> subprocess.CompletedProcess:
    """Runs code with an output that is read."""
    whole = f"import sys; from ddistill.runtime import ending as e\n{OTHER_PIPE}\n{code}"
    return subprocess.run(
        [sys.executable, "-c", whole], capture_output=True, text=True, check=False
    )


def test_another_broken_pipe_is_an_error_of_the_program():
    code = "from ddistill.command_line import one_line_ending\nprint('x')\n"
    found = run_ending(f"{code}one_line_ending()(break_pipe)()")
    assert (found.returncode, found.stdout) == (1, "x\n")
    assert found.stderr == "error: Broken pipe\n"
    found = run_ending("with e.answer_closed_output(): break_pipe()")
    assert found.returncode == 1
    assert "BrokenPipeError" in found.stderr


def test_another_broken_pipe_is_an_error_of_a_run():
    code = "from ddistill import main\nmain._main = break_pipe\nprint('x')\n"
    found = run_ending(f"{code}with e.answer_closed_output(): main.main([''])")
    assert (found.returncode, found.stdout) == (1, "x\n")
    assert found.stderr == (
        "error: [Errno 32] Broken pipe; another program or host has closed its end.\n"
    )


def test_a_run_whose_output_is_not_read(unread):
    code = "from ddistill import main\nmain._main = lambda *_: print('x' * 100_000)\n"
    found = unread(f"{code}with e.answer_closed_output(): main.main([''])")
    assert (found.returncode, found.stderr) == (141, "")


def test_an_output_without_a_descriptor_is_not_closed(monkeypatch):
    for output in (io.StringIO(), None, object()):
        monkeypatch.setattr(sys, "stdout", output)
        assert not ending.is_output_closed()


def test_a_training_goes_on_when_its_output_is_not_read(unread, tmp_path):
    """Only what it says is lost."""
    code = (
        "from ddistill.runtime.console import Reporter\n"
        "with e.answer_closed_output():\n"
        "    reporter = Reporter()\n"
        "    for i in range(3): reporter.say('x' * 100_000)\n"
        f"    open({str(tmp_path / 'done')!r}, 'w').close()\n"
    )
    found = unread(code)
    assert (found.returncode, found.stderr) == (141, "")
    assert (tmp_path / "done").exists()


def test_an_ending_is_what_it_was_where_output_is_read():
    for status in (None, 0, 3, "text"):
        with pytest.raises(SystemExit) as caught, ending.answer_closed_output():
            sys.exit(status)
        assert caught.value.code == status
    with ending.answer_closed_output():
        pass
