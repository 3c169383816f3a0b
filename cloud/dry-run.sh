#!/usr/bin/env bash
# What the cloud tasks do, on made-up data and this machine's processors, in a few minutes:
#
#   cloud/dry-run.sh FOLDER [STEPS]
#
# Shards of the drawn world; a run in two processes that is stopped by SIGTERM (75); the same run
# gone on with by two machines of one process each, both of them this one (0); its evaluation.
# Every command is printed. `longclip-lab` and `python` are those of the PATH.
set -euo pipefail

folder=${1:?"a folder for shards and run: cloud/dry-run.sh FOLDER [STEPS]"}
steps=${2:-20}
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

say longclip-lab data shard "$folder/shards" --data world --pairs 64 --tokenizer world
say longclip-lab data check "$folder/shards"

train=(train longclip --data shards --root "$folder/shards" --steps "$steps" --warmup-steps 2
  --batch-size 16 --hard-negative-group 1 --checkpoint-every 1000 --out "$folder/run" --resume)

# One machine with two "GPUs", stopped once it has taken a few steps.
# (Started without a shell around it, so that the signal reaches the script.)
echo "+ $here/launch.sh --cpu ${train[*]}" >&2
SKYPILOT_NUM_GPUS_PER_NODE=2 "$here/launch.sh" --cpu "${train[@]}" &
running=$!
until [ "$(cat "$folder/run/log.jsonl" 2>/dev/null | wc -l)" -ge 2 ]; do
  kill -0 "$running" 2>/dev/null || fail "the run has ended before it could be stopped"
  sleep 0.1
done
kill -TERM "$running"
wait "$running" && code=0 || code=$?
echo "stopped: exit code $code"
[ "$code" -eq 75 ] || fail "expected the exit code 75"

# Two machines with one "GPU" each go on.
machine() {
  SKYPILOT_NUM_NODES=2 SKYPILOT_NODE_RANK=$1 SKYPILOT_NODE_IPS=$'127.0.0.1\n127.0.0.1' \
    SKYPILOT_NUM_GPUS_PER_NODE=1 say "$here/launch.sh" --cpu "${train[@]}"
}
machine 1 &
second=$!
machine 0
wait "$second"
echo "gone on with: exit codes 0 and 0"

say longclip-lab eval "$folder/run/model" --benchmark world/short-retrieval \
  --out "$folder/scores" --no-progress
