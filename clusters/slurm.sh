#!/bin/bash
# One SLURM job: Ray on its nodes, and on them a command of this package. From the project's top folder:
#
#   sbatch --nodes 4 clusters/slurm.sh --folds 5 --data DATA --out RUN            # cv
#   sbatch --nodes 2 --gpus-per-node 4 clusters/slurm.sh sweep --trials 20 --data DATA --out SWEEP
#
# DATA and RUN are in a bucket or on a file system shared by all nodes, as is this folder with its .venv (`make setup`).
# The job is requeued before its time limit, and when a node fails; the run then continues from what it has kept.
#SBATCH --job-name=setibl
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
set -euo pipefail

command=cv
case ${1:-} in cv | sweep | predict | search) command=$1; shift;; esac
out=
for ((i = 1; i <= $#; i++)); do
  case ${!i} in --out=*) out=${!i#--out=};; --out) next=$((i + 1)); out=${!next:-};; esac
done
[ -n "$out" ] || { echo "slurm.sh: expected --out, the folder from which a requeued job continues" >&2; exit 2; }

# The Python environment. For one other than .venv: VENV=… sbatch clusters/slurm.sh …
. "${VENV:-$SLURM_SUBMIT_DIR/.venv}/bin/activate"

# A password for this job alone. Its processes inherit it, and only their owner can read their environment.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
RAY_ADDRESS=$(python -c 'import ray; print(ray.util.get_node_ip_address())'):6379

# Ray's own folder, /tmp/ray, may be another user's. The path is short, as Ray's sockets lie in it.
folder=/tmp/ray-$SLURM_JOB_ID
started=()
run=
limit=
stop() { [ -z "$run" ] || kill -TERM "$run"; }
trap 'limit=near; stop' USR1  # what --signal above sends
trap stop TERM
end() {
  [ ${#started[@]} -eq 0 ] || kill "${started[@]}" 2>/dev/null || true  # `ray start --block` ends what it started
  wait
  srun --overlap --ntasks="$SLURM_JOB_NUM_NODES" rm -rf "$folder" || true
  # SLURM then ends this script; if it ended by itself meanwhile, its exit code would make the job a failed one.
  if [ -n "$limit" ]; then scontrol requeue "$SLURM_JOB_ID" && sleep 300; fi
}
trap end EXIT

# ray_on N [options of srun] -- [options of ray start]: start Ray on N nodes.
ray_on() {
  local nodes=$1 where=()
  while shift; [ "$1" != -- ]; do where+=("$1"); done
  srun --overlap --cpu-bind=none --nodes="$nodes" --ntasks="$nodes" "${where[@]}" \
    ray start --block --temp-dir="$folder" --disable-usage-stats --log-color=false "${@:2}" &
  started+=($!)
}
# joined N: wait until N nodes have joined.
joined() {
  until [ "$(ray status 2>/dev/null | grep -c ' node_')" -ge "$1" ]; do
    kill -0 "${started[-1]}" 2>/dev/null && [ $SECONDS -lt 600 ] ||
      { echo "slurm.sh: expected $1 nodes to join Ray within 10 minutes" >&2; exit 1; }
    sleep 2
  done
}
export RAY_ADDRESS
ray_on 1 --nodelist="$SLURMD_NODENAME" -- --head --port=6379 --include-dashboard=false
joined 1
# Wait for all nodes before the run: they decide a fold's share of the cores, and with it the bytes of the result.
others=$((SLURM_JOB_NUM_NODES - 1))
if [ $others -gt 0 ]; then
  ray_on $others --exclude="$SLURMD_NODENAME" -- --address="$RAY_ADDRESS"
  joined "$SLURM_JOB_NUM_NODES"
fi

python - "$out" <<'END' && set -- "$@" --resume  # if there is something to continue from
import sys
from setibl_ray.core.run.folder import RunFolder
sys.exit(not any(map(RunFolder(sys.argv[1]).exists, ("manifest.json", "sweep.json", "plan.json"))))
END
python -m "setibl_ray.$command" "$@" &
run=$!
# A signal ends `wait` early; the run is still saving its state.
code=0
wait "$run" || code=$?
while kill -0 "$run" 2>/dev/null; do code=0; wait "$run" || code=$?; done
[ $code -eq 130 ] || limit=  # the run was over before the signal came
exit $code
