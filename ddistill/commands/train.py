"""`ddistill train CONFIG [FLAG ...]`: the program of `python -m ddistill.main`."""

from collections.abc import Sequence

from ddistill import main as program_of_runs

ABOUT = """\
Trains, distils, samples, scores and reports. The same command resumes a stopped run.
CONFIG is a config file, or the name of one here, in configs/ or of ddistill
(`ddistill list configs`). The variant 'smoke' trains for seconds.
--config.KEY=VALUE changes a setting, such as --config.seed=1; --print_config lists all."""


def main(argv: Sequence[str], program: str = "ddistill train") -> None:
    """Runs a config; errors and exit statuses as of `ddistill.main.main`."""
    program_of_runs.start(argv, program, ABOUT)
