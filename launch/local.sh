#!/usr/bin/env bash
# Runs ddistill on this machine: makes .venv and installs on first use, then passes its arguments on.
#   ./launch/local.sh --config=configs/sfddm_digits.py
# DDISTILL_EXTRAS (for example "cuda12" or "tpu,tensorboard") names further extras to install;
# PYTHON names the interpreter that makes .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
install_once "${DDISTILL_EXTRAS:-}"
exec .venv/bin/python -m ddistill.main "$@"
