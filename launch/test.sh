#!/usr/bin/env bash
# Runs the tests: makes .venv and installs on first use, then passes its arguments on to pytest.
#   ./launch/test.sh                 everything, two processes
#   ./launch/test.sh -k sfddm        some of it
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
install_once "test${DDISTILL_EXTRAS:+,$DDISTILL_EXTRAS}"
# Threads of numpy's BLAS and of torch wait for one another busily, on cores that the other process
# of the tests needs. One each, unless the caller has set them.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-1}"
exec .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
