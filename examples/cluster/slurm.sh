#!/bin/bash
# A scene in 8 shards on SLURM: bash slurm.sh submits an array of jobs, and one that assembles the output after them.
# The folder of the output is on a disk that all nodes share. Give --threads and, on mixed nodes, --constraint: shards
# are refused where threads, processor, model or versions differ, since bits would.
set -euo pipefail

shards=8
threads=8
refine=(deeplight-infer --ntl viirs.tif --dmo landsat.tif --dem srtm.tif --out lights.tif --threads "$threads")

array=$(sbatch --parsable --job-name=deeplight --array="0-$((shards - 1))" --cpus-per-task="$threads" --mem=8G \
    --requeue --wrap="$(printf '%q ' "${refine[@]}") --shard \$SLURM_ARRAY_TASK_ID/$shards")
# afterany: packs of shards that failed are computed by this one
sbatch --job-name=deeplight-assemble --dependency="afterany:$array" --cpus-per-task="$threads" --mem=8G \
    --wrap="$(printf '%q ' "${refine[@]}") --resume"
