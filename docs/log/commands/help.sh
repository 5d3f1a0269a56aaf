#!/usr/bin/env bash
# Seconds that `--help` of every command takes, best of five.
set -euo pipefail
for words in "" demo prepare-data distill align "reward train" "reward score" sample eval export inspect \
    "recipes list" "recipes show" "recipes copy" doctor "shapes build"; do
    best=99
    for _ in 1 2 3 4 5; do
        begun=$(date +%s.%N)
        # shellcheck disable=SC2086
        flashdmd $words --help >/dev/null
        best=$(python3 -c "print(min($best, $(date +%s.%N) - $begun))")
    done
    printf '%-14s %.2f\n' "${words:-flashdmd}" "$best"
done
