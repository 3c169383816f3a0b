#!/usr/bin/env bash
# A command on every GPU of every machine that SkyPilot has started, or of one machine without it:
#
#   cloud/launch.sh [--cpu] COMMAND OPTIONS        as longclip-lab COMMAND OPTIONS, many times over
#
# It is started on each machine. One process a GPU; with --cpu so many as SKYPILOT_NUM_GPUS_PER_NODE
# says.
# SIGTERM is passed on to the processes, which save their state first. Exit codes:
#
#   0    the run has ended
#   75   it was asked to stop and has saved its state: the same command with --resume goes on
#   69   a process of another machine is gone
#   else as longclip-lab, or the launcher's 1 if a process has died without a word
set -euo pipefail

machines=${SKYPILOT_NUM_NODES:-1}
rank=${SKYPILOT_NODE_RANK:-0}
first=$(head -n 1 <<<"${SKYPILOT_NODE_IPS:-127.0.0.1}")
processes=${SKYPILOT_NUM_GPUS_PER_NODE:-1}

if [ "${1:-}" = --cpu ]; then
  shift
  export ACCELERATE_USE_CPU=true
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fi
if [ "$processes" -lt 1 ]; then
  processes=1
fi

LONGCLIP_LAB_NOTES=$(mktemp -d)
export LONGCLIP_LAB_NOTES
trap 'rm -rf "$LONGCLIP_LAB_NOTES"' EXIT

# In a process group of its own: it would give the processes 30 seconds after a signal to the group.
set -m
python -m torch.distributed.run \
  --nnodes "$machines" --node-rank "$rank" --nproc-per-node "$processes" \
  --master-addr "$first" --master-port "${MASTER_PORT:-29500}" --max-restarts 0 \
  "$(dirname "$0")/worker.py" "$@" &
launcher=$!
set +m

asked=no
pass_on() {
  asked=yes
  if compgen -G "$LONGCLIP_LAB_NOTES/*.pid" >/dev/null; then
    cat "$LONGCLIP_LAB_NOTES"/*.pid | xargs kill -TERM 2>/dev/null || true
  else
    kill -TERM "$launcher" 2>/dev/null || true
  fi
}
trap pass_on TERM INT

# A signal interrupts `wait`, which then answers with a code above 128 though nothing has ended.
code=0
while true; do
  wait "$launcher" && code=0 || code=$?
  kill -0 "$launcher" 2>/dev/null || break
done

# What the processes said counts for more than the launcher's 1, and a failure more than a stop.
outcome() {
  local started codes failures
  started=$(find "$LONGCLIP_LAB_NOTES" -name '*.pid' | wc -l)
  codes=$(find "$LONGCLIP_LAB_NOTES" -name '*.code' -exec cat {} +)
  failures=$(grep -vxE '0|75|' <<<"$codes" || true)
  if [ -n "$failures" ]; then
    head -n 1 <<<"$failures"
  elif [ "$asked" = yes ] || { [ -n "$codes" ] && [ "$(wc -l <<<"$codes")" -eq "$started" ]; }; then
    echo 75
  else
    echo "$code"
  fi
}
if [ "$code" -ne 0 ]; then
  code=$(outcome)
fi
exit "$code"
