#!/usr/bin/env bash
# Runs ddistill on all hosts of a Cloud TPU slice. docs/launch.md describes each step.
#   ./launch/tpu_vm.sh auto ARGS...      create, run, and again after every preemption until complete
#   ./launch/tpu_vm.sh create            request the TPU, replace a preempted one, wait for it
#   ./launch/tpu_vm.sh run ARGS...       install, start on all hosts, show the output to the end
#   ./launch/tpu_vm.sh status | logs | delete
#   ./launch/tpu_vm.sh --dry-run ...     print the commands and run none (also: DRY_RUN=1)
# ARGS are those of ddistill.main, without --workdir. Settings are environment variables:
#   NAME, PROJECT, ZONE   of the TPU
#   TYPE, VERSION         accelerator and runtime (v5litepod-16, v2-alpha-tpuv5-lite)
#   SPOT                  1 = spot, may be preempted (default); 0 = on demand
#   WORKDIR               the run's folder: gs://BUCKET/PATH, or a path that all hosts share
#   REPO, REF             git repository, and the tag or full hash that the hosts install
#   SETUP                 a command for every host before each start, such as a mount if missing
#   RESTARTS, POLL        of auto: most restarts (100); seconds between two checks (30)
#   DELETE                1 = auto deletes the TPU when the run is complete
#   WORKER, LOG_LINES     of logs: which host (0), how many lines (100)
#   CREATE_FLAGS, SSH_FLAGS, GCSFUSE_FLAGS, PYTHON_VERSION, DDISTILL_EXTRAS   see the defaults below
set -euo pipefail

SELF="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/tpu_vm.sh"
DRY_RUN="${DRY_RUN:-}"
if [ "$DRY_RUN" = 0 ]; then DRY_RUN=""; fi
TYPE="${TYPE:-v5litepod-16}"
VERSION="${VERSION:-v2-alpha-tpuv5-lite}"
SPOT="${SPOT:-1}"
RESTARTS="${RESTARTS:-100}"
POLL="${POLL:-30}"
PYTHON_VERSION="${PYTHON_VERSION:-3.12}"
DDISTILL_EXTRAS="${DDISTILL_EXTRAS:-tpu}"
# Orbax renames folders, and all hosts must see a new file at once.
GCSFUSE_FLAGS="${GCSFUSE_FLAGS:---implicit-dirs --rename-dir-limit=200000 \
--metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0}"

# Exit statuses; any other one is an error of gcloud, which may be temporary.
readonly WRONG_SETTING=2 RUN_FAILED=3 REQUEST_FAILED=4 STOPPED=75
readonly TROUBLES=5

say() {
  if [ -z "$DRY_RUN" ]; then echo "tpu_vm: $*" >&2; fi
}

fail() {
  echo "error: $1" >&2
  exit "${2:-$WRONG_SETTING}"
}

# need VARIABLE MEANING EXAMPLE
need() {
  if [ -z "${!1:-}" ]; then fail "$1 is not set ($2), for example $1=$3"; fi
}

# quote WORD...: the words as a line that a shell reads back unchanged.
quote() {
  local word separator="" mark="'\\''"
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then word="'${word//\'/$mark}'"; fi
    printf '%s%s' "$separator" "$word"
    separator=" "
  done
}

# Runs a command or, in a dry run, prints it to descriptor 3, because some outputs are captured.
call() {
  if [ -n "$DRY_RUN" ]; then
    printf '%s\n' "$(quote "$@")" >&3
  else
    "$@"
  fi
}

# ---- where the script is called: gcloud --------------------------------------------------------

tpu_settings() {
  exec 3>&1 # for call
  need NAME "the name of the TPU" my-run
  need PROJECT "the Google Cloud project" my-project
  need ZONE "the zone of the TPU" us-west4-a
  if [[ ! $NAME =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]]; then
    fail "NAME=$NAME is not a name for a TPU: small letters, digits and hyphens, for example NAME=my-run"
  fi
  PLACE=("--project=$PROJECT" "--zone=$ZONE")
  if [ -z "$DRY_RUN" ] && ! command -v gcloud >/dev/null; then
    fail "gcloud is not on the PATH; install the Google Cloud CLI, or add --dry-run to see the commands"
  fi
}

# run_settings ARGS...
run_settings() {
  need WORKDIR "the run's folder, which must outlive the TPU" gs://my-bucket/runs/my-run
  need REPO "the git repository that the hosts install" https://github.com/me/ddistill
  need REF "the tag or full hash to install, so that every host and every restart has the same code" \
    "\$(git rev-parse HEAD)"
  case "$WORKDIR" in
    gs://?*/?* | /*) ;;
    *) fail "WORKDIR=$WORKDIR is neither a bucket nor an absolute path, for example WORKDIR=gs://my-bucket/runs/my-run" ;;
  esac
  if [ $# = 0 ]; then
    fail "run needs the arguments of ddistill.main, for example --config=configs/sfddm_cifar.py"
  fi
  local word
  for word in "$@"; do
    case "$word" in
      --workdir* | -workdir*) fail "--workdir is set by the variable WORKDIR, for example WORKDIR=$WORKDIR" ;;
    esac
  done
}

# `list` distinguishes "there is none" (no output) from "gcloud failed" (an error).
queue_state() {
  call gcloud compute tpus queued-resources list "${PLACE[@]}" \
    --filter="name~/$NAME\$" "--format=value(state.state)"
}

node_state() {
  call gcloud compute tpus tpu-vm list "${PLACE[@]}" --filter="name~/$NAME\$" "--format=value(state)"
}

# Prints absent, ready, lost (preempted), failed, or the state of a request that is still moving.
situation() {
  local queue node
  queue="$(queue_state)" || return
  node="$(node_state)" || return
  if [ -n "$DRY_RUN" ]; then
    queue="${ASSUME_STATE:-}"
    node="${queue:+READY}"
  fi
  case "$queue/$node" in
    SUSPENDED/* | ACTIVE/PREEMPTED | ACTIVE/TERMINATED | /PREEMPTED | /TERMINATED) echo lost ;;
    FAILED/*) echo failed ;;
    ACTIVE/READY) echo ready ;;
    /READY) echo ready ;; # made without a queued resource
    /) echo absent ;;
    *) echo "${queue:-no request}, TPU ${node:-not there}" ;;
  esac
}

request() {
  local flags=()
  if [ "$SPOT" = 1 ]; then flags+=(--spot); fi
  # Split into words on purpose: it holds several flags.
  # shellcheck disable=SC2206
  flags+=(${CREATE_FLAGS:-})
  say "requesting $NAME ($TYPE)"
  call gcloud compute tpus queued-resources create "$NAME" "--node-id=$NAME" "${PLACE[@]}" \
    "--accelerator-type=$TYPE" "--runtime-version=$VERSION" ${flags[@]+"${flags[@]}"}
  ASSUME_STATE=ACTIVE
}

remove() {
  local queue node
  queue="$(queue_state)"
  if [ -n "$DRY_RUN$queue" ]; then
    say "deleting $NAME"
    call gcloud compute tpus queued-resources delete "$NAME" "${PLACE[@]}" --force --quiet
    ASSUME_STATE=""
    return
  fi
  node="$(node_state)"
  if [ -z "$node" ]; then
    say "there is no TPU $NAME in $ZONE"
    return
  fi
  say "deleting $NAME"
  call gcloud compute tpus tpu-vm delete "$NAME" "${PLACE[@]}" --quiet
}

pause() {
  if [ -n "$DRY_RUN" ]; then return; fi
  say "$NAME: $1; next look in $POLL s"
  sleep "$POLL"
}

# A preempted spot TPU cannot be started again and its request stays suspended: both are replaced.
create() {
  local now asked=""
  while true; do
    now="$(situation)"
    case "$now" in
      ready)
        say "$NAME is ready"
        return
        ;;
      absent)
        request
        asked=yes
        ;;
      lost) remove ;;
      failed)
        if [ -n "$asked" ]; then
          fail "the request for $NAME failed; gcloud compute tpus queued-resources describe $NAME $(quote "${PLACE[@]}") says why" "$REQUEST_FAILED"
        fi
        remove
        ;;
      *) pause "$now" ;;
    esac
  done
}

# on_hosts WORKER COMMAND
on_hosts() {
  # Split into words on purpose: it holds several flags.
  # shellcheck disable=SC2206
  local flags=(${SSH_FLAGS:-})
  call gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" "--worker=$1" \
    ${flags[@]+"${flags[@]}"} "--command=$2"
}

# The folder as a word for the shells of the hosts, where a bucket is mounted at ~/buckets/BUCKET.
host_workdir() {
  case "$WORKDIR" in
    gs://*)
      # The host's home, not ours.
      # shellcheck disable=SC2016
      printf '"$HOME"/buckets/%s' "$(quote "${WORKDIR#gs://}")"
      ;;
    *) quote "$WORKDIR" ;;
  esac
}

# If the folder of a run is in a bucket, its shared stages are in it too, because buckets have no file
# locks. A --cache among the arguments comes later and overrides this one.
host_cache() {
  case "$WORKDIR" in
    gs://*) printf -- '--cache=%s/shared ' "$(host_workdir)" ;;
  esac
}

# While a run is active, its code is not changed.
install_on_hosts() {
  if [ -n "${SETUP:-}" ]; then on_hosts all "$SETUP"; fi
  on_hosts all "if [ -f ddistill/build/launch/lock ] && ! flock --nonblock ddistill/build/launch/lock true; \
then exit 0; fi; git init --quiet ddistill && cd ddistill \
&& git fetch --quiet --depth=1 $(quote "$REPO" "$REF") \
&& git checkout --quiet --force --detach FETCH_HEAD \
&& bash launch/tpu_vm.sh host-install $(quote "$PYTHON_VERSION" "$DDISTILL_EXTRAS")"
  local bucket="${WORKDIR#gs://}"
  if [ "$bucket" != "$WORKDIR" ]; then
    on_hosts all "bash ddistill/launch/tpu_vm.sh host-mount $(quote "${bucket%%/*}") $GCSFUSE_FLAGS"
  fi
}

# Starting and watching are two commands: gcloud repeats a command whose connection broke, and
# either of these may be repeated.
run_everywhere() {
  install_on_hosts
  on_hosts all "bash ddistill/launch/tpu_vm.sh host-start $(quote "$REF") \
.venv/bin/python -m ddistill.main $(host_cache)$(quote "$@") --workdir=$(host_workdir) --distributed"
  on_hosts all "bash ddistill/launch/tpu_vm.sh host-watch"
}

once() { bash "$SELF" create && bash "$SELF" run "$@"; }

# If one host is preempted, the others fail, and this looks like a failed run until gcloud reports the
# loss of the TPU. So the state is read after a pause; the run has failed only if the TPU still exists.
auto() {
  local restart status now troubles=0
  export DRY_RUN
  for ((restart = 0; restart <= RESTARTS; restart++)); do
    status=0
    once "$@" || status=$?
    case "$status" in
      0)
        finish
        return
        ;;
      "$WRONG_SETTING" | "$REQUEST_FAILED") exit "$status" ;;
    esac
    pause "stopped with status $status"
    now="$(situation)" || now=ready
    case "$now/$status" in
      "ready/$RUN_FAILED") exit "$status" ;;
      "ready/$STOPPED") troubles=0 ;;
      ready/* | absent/*) troubles=$((troubles + 1)) ;;
      *) troubles=0 ;;
    esac
    if [ "$troubles" -ge "$TROUBLES" ]; then
      fail "gcloud failed $troubles times in a row; the same command goes on" "$status"
    fi
  done
  fail "the run is not complete after $RESTARTS restarts; the same command goes on" "$RUN_FAILED"
}

finish() {
  if [ "${DELETE:-0}" = 1 ]; then
    remove
  else
    say "complete; the TPU is still there and is paid for until: $(quote "$SELF" delete)"
  fi
}

status() {
  local now
  now="$(situation)"
  if [ -z "$DRY_RUN" ]; then echo "$NAME: $now"; fi
  if [ -n "$DRY_RUN" ] || [ "$now" = ready ]; then
    on_hosts all "bash ddistill/launch/tpu_vm.sh host-status"
  fi
}

logs() {
  on_hosts "${WORKER:-0}" "tail -n $(quote "${LOG_LINES:-100}") -F ddistill/build/launch/log"
}

# ---- on the hosts ------------------------------------------------------------------------------

# The run's output, process and exit status; git ignores the folder.
enter_host_folder() {
  cd "$(dirname "$SELF")/.."
  mkdir -p build/launch
}

host_install() {
  # The runtimes' own Python may be older than 3.11.
  if [ ! -x .venv/bin/python ]; then
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --seed --python "$1" .venv
  fi
  # shellcheck source=launch/environment.sh
  source launch/environment.sh
  install_once "$2"
}

# host_mount BUCKET FLAGS...
host_mount() {
  local bucket="$1" folder="$HOME/buckets/$1"
  shift
  if mountpoint --quiet "$folder"; then return; fi
  if ! command -v gcsfuse >/dev/null; then
    fail "gcsfuse is not on $(hostname); let SETUP install it, or set WORKDIR to a path that all hosts share"
  fi
  mkdir -p "$folder"
  gcsfuse "$@" "$bucket" "$folder"
}

# host_start REF COMMAND...
# Detached, so that a broken connection does not end the run. The lock is held as long as it lives.
host_start() {
  local wanted
  wanted="$(quote "$@")"
  shift
  exec 9>build/launch/lock
  if ! flock --nonblock 9; then
    if [ "$(cat build/launch/command)" != "$wanted" ]; then
      fail "another run is going on $(hostname): $(cat build/launch/command). Let it end, or delete the TPU"
    fi
    say "the run is already going on $(hostname)"
    return
  fi
  echo "$wanted" >build/launch/command
  rm -f build/launch/status
  if [ -f build/launch/log ]; then mv build/launch/log build/launch/log.before; fi
  setsid nohup bash "$SELF" host-run "$@" </dev/null >build/launch/log 2>&1 &
  echo $! >build/launch/pid
}

# Python answers SIGTERM by saving and exiting with 143, and SIGINT with 130. Before it is ready to
# answer, SIGTERM ends it with 143 too.
host_run() {
  local status=0
  trap : TERM # this shell stays to write down how the run ended
  "$@" || status=$?
  case "$status" in 130 | 143) status=$STOPPED ;; esac
  echo "$status" >build/launch/status
}

# Waits until the lock is free; another process may have the process number by now.
host_watch() {
  local status=$STOPPED # a host that went down has left no status
  if [ ! -f build/launch/pid ]; then fail "no run was started on $(hostname)" "$RUN_FAILED"; fi
  flock build/launch/lock true &
  tail -n 100 -f -s 0.2 --pid=$! build/launch/log | sed -u "s/^/[${HOSTNAME##*-w-}] /"
  if [ -f build/launch/status ]; then status="$(cat build/launch/status)"; fi
  case "$status" in
    0 | "$STOPPED") exit "$status" ;;
    *) fail "the run failed on $(hostname) with status $status" "$RUN_FAILED" ;;
  esac
}

host_status() {
  local state="no run"
  if [ -f build/launch/status ]; then
    state="ended with status $(cat build/launch/status)"
  elif [ -f build/launch/lock ] && ! flock --nonblock build/launch/lock true; then
    state="running"
  elif [ -f build/launch/pid ]; then
    state="gone without a status"
  fi
  echo "$(hostname): $state; $(tail -n 1 build/launch/log 2>/dev/null || true)"
}

# ------------------------------------------------------------------------------------------------

usage() { sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p;}' "$SELF"; }

main() {
  if [ "${1:-}" = --dry-run ]; then
    DRY_RUN=1
    shift
  fi
  local task="${1:-}"
  if [ $# -gt 0 ]; then shift; fi
  if [ "${1:-}" = --dry-run ]; then
    DRY_RUN=1
    shift
  fi
  case "$task" in
    run | auto)
      tpu_settings
      run_settings "$@"
      ;;
    create | status | logs | delete)
      tpu_settings
      if [ $# -gt 0 ]; then fail "$task takes no arguments; given: $(quote "$@")"; fi
      ;;
    host-*) enter_host_folder ;;
  esac
  case "$task" in
    create) create ;;
    run) run_everywhere "$@" ;;
    auto) auto "$@" ;;
    status) status ;;
    logs) logs ;;
    delete) remove ;;
    host-install) host_install "$@" ;;
    host-mount) host_mount "$@" ;;
    host-start) host_start "$@" ;;
    host-run) host_run "$@" ;;
    host-watch) host_watch ;;
    host-status) host_status ;;
    "" | help | --help | -h) usage ;;
    *) fail "$task is not a subcommand: create, run, status, logs, delete, auto" ;;
  esac
}

main "$@"
