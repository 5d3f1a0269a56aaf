#!/usr/bin/env bash
# Everything that a GPU is wanted for, in at most 9 minutes: speed and memory of the recipes at SDXL's true size (random
# weights, nothing is downloaded), the plan against what was measured, the demo of both families, and a run that is
# killed and resumed, beside the same run under torchrun with NCCL.
#
#   OUT=results docs/experiments/gpu.sh
#
# Every part has its own time limit; one that fails or does not fit the GPU's memory does not keep the next from running.
# $OUT gets a JSON file for each part, and summary.json, which is written again after each. Variables: PYTHON (python),
# PARTS (all), SECONDS_IN_ALL (540), SMALL=1 (tiny networks and longer limits, for a dry run on a CPU), DEMO_LIMIT (130).
set -u
OUT=$(mkdir -p "${OUT:?the folder for the results}" && cd "$OUT" && pwd)
PYTHON=${PYTHON:-python} SMALL=${SMALL:-} END=$((SECONDS + ${SECONDS_IN_ALL:-540}))
PARTS=${PARTS:-plan adapters adapters-compiled int8 compiled demo-sdxl demo-sd3 resume full}
WORK=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$WORK"' EXIT
cd "$(dirname "$0")/../.." || exit 1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export WORK OUT SMALL PYTHON

# The settings of each measurement: recipe and changes. The plan is made for the same ones.
export ADAPTERS="sdxl-4step-24gb train.batch=2 train.micro_batch=2"
export ADAPTERS_COMPILED="$ADAPTERS model.compile=true"  # can the recompute of small passes be launched faster?
export INT8="sdxl-4step-24gb train.batch=2 train.micro_batch=1 model.weights=int8"
export COMPILED="sdxl-4step-80gb train.batch=4 train.micro_batch=4"
export FULL="sdxl-4step train.batch=4 train.micro_batch=2 model.checkpointing=true"
export DMD2="sdxl-4step-dmd2 train.batch=4 train.micro_batch=2"
FULL_GB=110  # what FULL and DMD2 need
LARGE="--size true --resolution 1024 --device cuda"
RUN="--set train.batch=8 --set train.micro_batch=8 --iterations 12"
DEMO="--device cuda"
if [[ $SMALL ]]; then
    tiny="gan.crop_px=64 model.lora_rank=2 model.compile=false train.batch=1 train.micro_batch=1"
    for name in ADAPTERS ADAPTERS_COMPILED INT8 COMPILED FULL DMD2; do export $name="${!name} $tiny"; done
    FULL_GB=0 LARGE="--size small --resolution 64 --device cpu"
    RUN="--set train.batch=2 --set train.micro_batch=2 --set train.preview_every=null --iterations 3 --device cpu"
    DEMO="--device cpu --iterations 1"
fi

# NAME LIMIT COMMAND...: run a part under its limit in seconds, keep its result, note how it went.
part() {
    local name=$1 limit=$2 began=$SECONDS code
    shift 2
    [[ " $PARTS " == *" $name "* ]] || return 0
    [[ $SMALL ]] && limit=$((4 * limit))  # of a processor that does other work as well
    ((limit > END - SECONDS)) && limit=$((END - SECONDS))
    if ((limit < 5)); then
        code=-1
        echo "no time left" >"$WORK/$name.log"
    else
        timeout --kill-after=5 "$limit" "$@" >"$WORK/$name.out" 2>"$WORK/$name.log"
        code=$?
        ((code == 0)) && cp "$WORK/$name.out" "$OUT/$name.json"
    fi
    echo "$name $code $((SECONDS - began)) $limit" >>"$WORK/parts"
    summary
}

# SETTINGS OPTIONS...: `flashdmd bench` of a recipe with its changes.
bench() {
    local words=($1) sets=()
    shift
    for change in "${words[@]:1}"; do
        if [[ $change == train.batch=* ]]; then sets+=(--batch "${change#*=}"); else sets+=(--set "$change"); fi
    done
    exec "$PYTHON" -m flashdmd_cli bench --recipe "${words[0]}" "${sets[@]}" $LARGE --json "$@"
}

# FAMILY: the whole demo.
demo() {
    "$PYTHON" -m flashdmd_cli demo --family "$1" --out "$WORK/demo-$1" --json --seed 0 $DEMO
}

# A run of the embedded world under torchrun, the same run killed after a state and resumed; their final states.
resume() {
    local run="-m flashdmd_cli distill --recipe shapes-4step --data $WORK/data --quiet --set train.save_every=1 $RUN"
    "$PYTHON" -m flashdmd_cli prepare-data shapes --num 64 --out "$WORK/data" --quiet >&2 || exit
    NCCL_DEBUG=VERSION "$PYTHON" -m torch.distributed.run --nproc-per-node 1 --rdzv-backend c10d \
        --rdzv-endpoint 127.0.0.1:0 $run --out "$WORK/whole" >&2 &
    local whole=$!
    "$PYTHON" $run --out "$WORK/killed" >&2 &
    local killed=$!
    until compgen -G "$WORK/killed/state/step-0000000[1-9]" >/dev/null || ! kill -0 $killed 2>/dev/null; do sleep 0.1; done
    kill -9 $killed
    wait $killed
    local code=$?
    wait $whole || exit
    "$PYTHON" $run --out "$WORK/killed" >&2 || exit
    "$PYTHON" - "$WORK" $code <<'PY'
import json, sys
from pathlib import Path
from safetensors.torch import load_file
work = Path(sys.argv[1])
one, other = (load_file(sorted((work / name / "state").glob("step-*"))[-1] / "tensors.safetensors")
              for name in ("whole", "killed"))
assert one.keys() == other.keys()
apart = {key: (one[key].float() - other[key].float()).abs().max().item() for key in one if one[key].numel()}
largest = max(apart, key=apart.get)
print(json.dumps({"exit code of the killed run": int(sys.argv[2]), "tensors": len(one),
                  "bit-identical": sum(value == 0 for value in apart.values()),
                  "largest difference": apart[largest], "of": largest}))
PY
}

# What is planned for the settings above.
plan() {
    "$PYTHON" - <<'PY'
import json, os
import torch
from flashdmd_cli.runs.randomness import generator
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.workflows.plan.gpus import gpu_named
from flashdmd_cli.workflows.plan.planning import plan
small = bool(os.environ["SMALL"])
rows = []
settings = (("ADAPTERS", 1), ("ADAPTERS_COMPILED", 1), ("INT8", 1), ("COMPILED", 2), ("FULL", 1), ("DMD2", 1))
for name, cycles in settings:
    recipe = load_recipe(*(lambda words: (words[0], [*words[1:], "train.preview_every=null"]))(os.environ[name].split()))
    steps = recipe.dm_step_indices
    drawn = [steps[int(torch.randint(len(steps), (1,), generator=generator(recipe.train.seed, 0, number, "grid step")))]
             for number in range(recipe.ttur, recipe.ttur * (1 + cycles))]
    found = plan(recipe, gpu_named(None), 64 if small else 1024, small=small, indices=drawn)
    rows.append({"settings": name} | found.as_dict())
print(json.dumps({"rows": rows}))
PY
}

# Everything so far, in one file, with planned beside measured values.
summary() {
    flock "$WORK/parts" "$PYTHON" - <<'PY' || echo "no summary" >&2
import json, os
from pathlib import Path
work, out = Path(os.environ["WORK"]), Path(os.environ["OUT"])
parts = {}
for line in (work / "parts").read_text().splitlines():
    name, code, seconds, limit = line.split()
    how = {"0": "ok", "-1": "not run", "124": "out of time", "137": "out of time"}.get(code, f"exit code {code}")
    parts[name] = {"result": how, "seconds": int(seconds), "limit": int(limit)}
    if code != "0":
        parts[name]["end of its messages"] = (work / f"{name}.log").read_text().splitlines()[-5:]
read = lambda name: json.loads((out / f"{name}.json").read_text()) if (out / f"{name}.json").is_file() else {}
planned = {row["settings"]: row for row in read("plan").get("rows", [])}
measurements = {"adapters": ["ADAPTERS"], "adapters-compiled": ["ADAPTERS_COMPILED"], "int8": ["INT8"],
                "compiled": ["COMPILED"], "full": ["FULL", "DMD2"]}
rows = []
for settings, measured in (pair for part, names in measurements.items()
                           for pair in zip(names, read(part).get("rows", []))):
    expected = planned.get(settings, {})
    per_sample = measured["tflop"] / measured["batch"]
    rows.append({
        "settings": settings, "recipe": measured["recipe"], "micro-batch": measured["micro_batch"],
        "samples/s": measured["samples_per_second"], "share of the ceiling": measured["utilisation"],
        "peak GB": measured["peak_gb"], "planned peak GB": expected.get("peak_gb"),
        "TFLOP a sample": per_sample, "planned TFLOP a sample": expected.get("tflop_per_sample"),
        "device": measured["device"],
    })
demos = {name: {row: values for row, values in read(name).items() if row not in ("page", "manifest")}
         for name in ("demo-sdxl", "demo-sd3")}
document = {"parts": parts, "measured": rows, "demos": demos, "resume": read("resume")}
temporary = out / "summary.json.partial"
temporary.write_text(json.dumps(document, indent=1))
temporary.replace(out / "summary.json")
PY
}

total_gb() {
    [[ $SMALL ]] && echo 0 && return
    nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -1 | awk '{print int($1 * 1.048576 / 1000)}'
}

export -f bench demo resume plan
export LARGE RUN DEMO
: >"$WORK/parts"
part plan 240 $([[ $SMALL ]] || echo nice) bash -c plan &  # on the processor, beside the measurements
planning=$!
part adapters 80 bash -c 'bench "$ADAPTERS" --cycles 1'
part adapters-compiled 100 bash -c 'bench "$ADAPTERS_COMPILED" --cycles 1'
part int8 60 bash -c 'bench "$INT8" --cycles 1'
part compiled 150 bash -c 'bench "$COMPILED" --cycles 2'
wait $planning
jobs=()  # small networks, which leave most of a GPU idle: all at once
part demo-sdxl ${DEMO_LIMIT:-130} bash -c 'demo sdxl' & jobs+=($!)
part demo-sd3 ${DEMO_LIMIT:-130} bash -c 'demo sd3' & jobs+=($!)
part resume 130 bash -c resume & jobs+=($!)
wait "${jobs[@]}"
if (($(total_gb) >= FULL_GB)); then
    part full 150 bash -c 'bench "$FULL" --cycles 1 --against dmd2'
elif [[ " $PARTS " == *" full "* ]]; then
    echo "needs $FULL_GB GB of GPU memory" >"$WORK/full.log"
    echo "full -1 0 0" >>"$WORK/parts"
    summary
fi
cat "$OUT/summary.json"
