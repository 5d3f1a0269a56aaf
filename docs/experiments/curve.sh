#!/usr/bin/env bash
# One student, evaluated at several lengths of its training: quality against cost.
#
#   curve.sh OUT RECIPE SEED "LENGTHS" [distill options]
#   curve.sh curves/flash-0 shapes-4step 0 "40 80 120" --set gan.weight=0.5
#
# Leaves OUT/student, and for each length OUT/<length>/metrics.json and a copy of the manifest, which has the cost
# (seconds, pictures, updates); OUT/<length>/raw/metrics.json has the figures of the student that is not averaged. The
# same command continues where it stopped. DATA is a folder of `prepare-data shapes`;
# SUITE is shapes-val, so that nothing is chosen on the captions that judge.
set -euo pipefail
out=$1 recipe=$2 seed=$3 lengths=$4
shift 4
data=${DATA:-curves/data}
measure() { flashdmd eval --suite "${SUITE:-shapes-val}" --limit 256 --from "$1" --out "$2" --quiet; }
[ -f "$data/manifest.json" ] || flashdmd prepare-data shapes --num 2000 --out "$data" --quiet
for length in $lengths; do
    [ -f "$out/$length/student.json" ] && continue
    flashdmd distill --recipe "$recipe" --data "$data" --out "$out/student" --iterations "$length" --seed "$seed" \
        --set train.save_every=1000 --set train.preview_every=1000 "$@" --quiet
    measure "$out/student" "$out/$length"
    python "$(dirname "$0")/raw.py" "$out/student" "$out/raw"
    measure "$out/raw" "$out/$length/raw"
    rm -r "$out/raw"
    cp "$out/student/manifest.json" "$out/$length/student.json"
done
