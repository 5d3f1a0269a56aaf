#!/usr/bin/env bash
# One alignment of a stage-1 student, evaluated at several lengths.
#
#   align.sh OUT STUDENT RECIPE SEED "LENGTHS" [align options]
#   align.sh aligned/joint-0 curves/flash-0/student align/shapes 0 "100 200" --set align.lr=2e-5
#
# RECIPE `none` measures the student as it is; `further` distils on from it for LENGTHS iterations in all. Leaves
# OUT/student, and for each length OUT/<length>/metrics.json and a copy of the manifest, which has the cost. The same
# command continues where it stopped. SUITE and LIMIT choose the captions; REWARD is `embedded` or a folder.
set -euo pipefail
out=$1 from=$2 recipe=$3 seed=$4 lengths=$5
shift 5
rare="--set train.save_every=1000 --set train.preview_every=1000"
measure() {
    flashdmd eval --suite "${SUITE:-shapes-val}" --limit "${LIMIT:-256}" --from "$1" --out "$out/$2" --quiet
    cp "$1/manifest.json" "$out/$2/student.json"
}
for length in $lengths; do
    [ -f "$out/$length/student.json" ] && continue
    student=$out/student
    case $recipe in
    none) student=$from ;;
    further)
        [ -d "$student" ] || { mkdir -p "$out" && cp -r "$from" "$student"; }
        flashdmd distill --recipe "$student/recipe.yaml" --data "${DATA:-curves/data}" --out "$student" \
            --iterations "$length" $rare "$@" --quiet
        ;;
    *)
        flashdmd align --from "$from" --recipe "$recipe" --data "${DATA:-curves/data}" --reward "${REWARD:-embedded}" \
            --out "$student" --iterations "$length" --seed "$seed" $rare "$@" --quiet
        ;;
    esac
    measure "$student" "$length"
done
