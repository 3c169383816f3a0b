#!/usr/bin/env bash
# What the cloud tasks do, on made-up data and this machine's processors, in a few minutes:
#
#   cloud/dry-run.sh FOLDER [STEPS [STAGE ...]]
#
# The stages, by default all of them in this order: `shards` of the drawn world; `stop`, a run in
# two processes that gets SIGTERM (75); `go-on`, the same run by two machines of one process each,
# both of them this one (0); `evaluate`.
# Every command is printed. `longclip-lab` and `python` are those of the PATH.
set -euo pipefail

folder=${1:?"a folder for shards and run: cloud/dry-run.sh FOLDER [STEPS [STAGE ...]]"}
steps=${2:-20}
stages=("${@:3}")
here=$(dirname "$0")
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
MASTER_PORT=${MASTER_PORT:-$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
export MASTER_PORT

say() {
  echo "+ $*" >&2
  "$@"
}
fail() {
  echo "error: $*" >&2
  exit 1
}

train=(train longclip --data shards --root "$folder/shards" --steps "$steps" --warmup-steps 2
  --batch-size 16 --hard-negative-group 1 --checkpoint-every 1000 --out "$folder/run" --resume)

shards() {
  say longclip-lab data shard "$folder/shards" --data world --pairs 64 --tokenizer world
  say longclip-lab data check "$folder/shards"
}

# One machine with two "GPUs", stopped once it has taken a few steps.
# (Started without a shell around it, so that the signal reaches the script.)
stop() {
  echo "+ $here/launch.sh --cpu ${train[*]}" >&2
  SKYPILOT_NUM_GPUS_PER_NODE=2 "$here/launch.sh" --cpu "${train[@]}" &
  local running=$! code
  until [ "$(cat "$folder/run/log.jsonl" 2>/dev/null | wc -l)" -ge 2 ]; do
    kill -0 "$running" 2>/dev/null || fail "the run has ended before it could be stopped"
    sleep 0.1
  done
  kill -TERM "$running"
  wait "$running" && code=0 || code=$?
  echo "stopped: exit code $code"
  [ "$code" -eq 75 ] || fail "expected the exit code 75"
}

machine() {
  SKYPILOT_NUM_NODES=2 SKYPILOT_NODE_RANK=$1 SKYPILOT_NODE_IPS=$'127.0.0.1\n127.0.0.1' \
    SKYPILOT_NUM_GPUS_PER_NODE=1 say "$here/launch.sh" --cpu "${train[@]}"
}

# Two machines with one "GPU" each.
go-on() {
  machine 1 &
  local second=$!
  machine 0
  wait "$second"
  echo "gone on with: exit codes 0 and 0"
}

evaluate() {
  say longclip-lab eval "$folder/run/model" --benchmark world/short-retrieval \
    --out "$folder/scores" --no-progress
}

((${#stages[@]})) || stages=(shards stop go-on evaluate)
for stage in "${stages[@]}"; do
  case $stage in
  shards | stop | go-on | evaluate) "$stage" ;;
  *) fail "There is no stage '$stage'; expected shards, stop, go-on or evaluate." ;;
  esac
done
