"""Programs whose output nobody reads any more, as in `ddistill.main ... | head`."""

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
                env={**os.environ, "PYTHONUNBUFFERED": ""},
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


def test_a_training_goes_on_when_its_output_is_not_read(unread, tmp_path):
    """Only what it says is lost."""
    code = (
        "from ddistill.training.progress import Reporter\n"
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
