# Sourced by the launch scripts, in the repository's root: makes .venv and installs the package.

# A training step on CPUs allocates its intermediate results anew; glibc asks for large pages, which
# Linux clears in a fraction of the time. Other C libraries ignore this.
case "${GLIBC_TUNABLES:-}" in
  *glibc.malloc.hugetlb*) ;;
  *) export GLIBC_TUNABLES="${GLIBC_TUNABLES:+$GLIBC_TUNABLES:}glibc.malloc.hugetlb=1" ;;
esac

# install_once EXTRAS: installs the package with the comma-separated extras. Does nothing where the
# same pyproject.toml has been installed with these extras before.
install_once() {
  local extras="$1" wanted have=""
  local stamp=.venv/.ddistill-installed
  wanted="$(sha256sum pyproject.toml | cut -d' ' -f1)"
  if [ -f "$stamp" ]; then have="$(cat "$stamp")"; fi
  if [ "${have%% *}" != "$wanted" ]; then have="$wanted"; fi
  local missing=""
  local extra
  for extra in core ${extras//,/ }; do
    case " $have " in *" $extra "*) ;; *) missing="$missing $extra" ;; esac
  done
  [ -z "$missing" ] && return 0
  if [ ! -x .venv/bin/python ]; then
    local python="${PYTHON:-python3}"
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "error: $python is not Python 3.11 or newer; set PYTHON to one that is." >&2
      return 1
    fi
    echo "Making .venv with $("$python" --version)" >&2
    "$python" -m venv .venv
  fi
  echo "Installing ddistill${extras:+ with $extras} into .venv (first use)" >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${extras:+[$extras]}"
  echo "$have$missing" >"$stamp"
}
