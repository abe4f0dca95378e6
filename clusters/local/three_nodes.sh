#!/usr/bin/env bash
# A Ray cluster of several nodes on one machine: to see a run cross node borders before it goes to
# real ones. Every node is a raylet of its own, with its own object store and workers.
#
# nodes   1 head without CPUs (no work is placed on it) and 2 workers
# GPUs    none
# image   none: the active virtual environment
# edit    CPUS_PER_NODE and PORT may come from the environment
# run     clusters/local/three_nodes.sh expo-ray run pipelines/recipes/quickstart.yaml
#         The command finds the cluster by RAY_ADDRESS; the nodes stop when it ends.
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: $0 COMMAND [ARGUMENT...]" >&2
    exit 2
fi

PORT=${PORT:-6399}
CPUS_PER_NODE=${CPUS_PER_NODE:-2}
ADDRESS=127.0.0.1:$PORT
WORK=$(mktemp -d)
NODES=()

# Only those who know the token may use this cluster, and it ends with it.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$WORK/token
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")

start_node() {
    ray start --block --disable-usage-stats --object-store-memory=100000000 "$@" \
        >"$WORK/node-${#NODES[@]}.log" 2>&1 &
    NODES+=($!)
}

stop_nodes() {
    # Only the nodes started here; another Ray on this machine goes on. The head goes last.
    for ((i = ${#NODES[@]} - 1; i >= 0; i--)); do
        kill "${NODES[i]}" 2>/dev/null || true
        wait "${NODES[i]}" 2>/dev/null || true
    done
    rm -rf "$WORK"
}
trap stop_nodes EXIT

wait_for_nodes() {
    for ((try = 0; try < 60; try++)); do
        for node in "${NODES[@]}"; do
            if ! kill -0 "$node" 2>/dev/null; then
                cat "$WORK"/node-*.log >&2
                echo "$0: a node did not start; is port $PORT in use? (PORT=... chooses another)" >&2
                exit 1
            fi
        done
        if [ "$(ray status --address "$ADDRESS" 2>/dev/null | grep -c '^ 1 node_')" -ge "$1" ]; then
            return
        fi
        sleep 1
    done
    echo "$0: the nodes did not meet within a minute" >&2
    exit 1
}

# A folder of its own: `ray.init()` elsewhere on this machine shall not find this cluster.
start_node --head --port="$PORT" --num-cpus=0 --include-dashboard=false --temp-dir="$WORK/ray"
wait_for_nodes 1
# One after the other: on a busy machine nodes that start together time out.
for number in 2 3; do
    start_node --address="$ADDRESS" --num-cpus="$CPUS_PER_NODE"
    wait_for_nodes "$number"
done

RAY_ADDRESS=$ADDRESS "$@"
