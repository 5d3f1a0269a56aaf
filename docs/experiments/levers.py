"""Measure the levers on speed and memory of a training step, one after another, on random SDXL weights of true size.

    python docs/experiments/levers.py OUT [--small] [--seconds 200] [--only NAME ...]

Writes OUT/levers.json after every case, so that a machine that is taken away leaves what was measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import traceback
from pathlib import Path

import torch

from flashdmd_cli.runs.device import resolve
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.workflows import bench as module
from flashdmd_cli.workflows.bench import bench

LORA, FULL, DMD2 = "sdxl-4step-lora", "sdxl-4step", "sdxl-4step-dmd2"
CHECKPOINTED, COMPILED = ["model.checkpointing=true"], ["model.compile=true"]


def sizes(batch: int, micro_batch: int) -> list[str]:
    return [f"train.batch={batch}", f"train.micro_batch={micro_batch}"]


def channels_last(family, state) -> None:
    for base in {id(role.net.base): role.net.base for role in (state.student, state.fake)}.values():
        base.net.to(memory_format=torch.channels_last)
    family.base.net.to(memory_format=torch.channels_last)
    family.vae.to(memory_format=torch.channels_last)


def cudnn_benchmark(family, state) -> None:
    torch.backends.cudnn.benchmark = True


CASES = {
    # name: (recipe, settings, change of the networks, number formats of DMD2's script)
    "adapters, checkpointed": (LORA, [*sizes(2, 1), *CHECKPOINTED], None, False),
    "DMD2 as its authors run it": (DMD2, sizes(2, 2), None, True),
    "adapters, micro-batch 4, compiled": (LORA, [*sizes(8, 4), *COMPILED], None, False),
    "full, micro-batch 4, checkpointed": (FULL, [*sizes(4, 4), *CHECKPOINTED], None, False),
    "adapters, micro-batch 8, checkpointed": (LORA, [*sizes(8, 8), *CHECKPOINTED], None, False),
    "adapters": (LORA, sizes(4, 1), None, False),
    "DMD2 in our number formats": (DMD2, sizes(2, 2), None, False),
    "adapters, float32 weights": (LORA, [*sizes(4, 1), "model.weights=fp32"], None, False),
    "adapters, channels last": (LORA, sizes(4, 1), channels_last, False),
    "adapters, cudnn benchmark": (LORA, sizes(4, 1), cudnn_benchmark, False),
    "profile": None,  # of "adapters", by kernel
}


def profile(out: Path, small: bool, resolution: int, extra: list[str]) -> None:
    """Where the time of one adapter iteration goes, by kernel."""
    from flashdmd_cli.training import distill

    plain, done = module.iteration, []

    def profiled(*args):
        if len(done) != 1:
            done.append(0)
            return plain(*args)
        done.append(0)
        with torch.profiler.profile() as found:
            result = plain(*args)
        key = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = found.key_averages().table(sort_by=key, row_limit=45, max_name_column_width=90)
        (out / "profile.txt").write_text(table)
        return result

    module.iteration = profiled
    try:
        bench(load_recipe(LORA, [*sizes(4, 1), *extra]), resolution, 1, small=small)
    finally:
        module.iteration = distill.iteration


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seconds", type=float, default=1e9, help="Begin no case after so many.")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--tflop", type=json.loads, default={}, help='Known TFLOP per sample: {"RECIPE": number}.')
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    resolution, extra = (128, ["gan.crop_px=64"]) if options.small else (1024, [])
    rows, began = {}, time.monotonic()
    place = resolve()
    print(json.dumps({"device": module.device_name(torch.device(place.device)), "torch": torch.__version__,
                      "matrix_tflops": module.matrix_tflops(place)}), flush=True)  # fmt: skip
    cases = {name: case for name, case in CASES.items() if not options.only or name in options.only}
    new = module.State.new
    for name, case in cases.items():
        if time.monotonic() - began > options.seconds:
            rows[name] = {"error": "no time left"}
            continue
        start = time.monotonic()
        try:
            if case is None:
                profile(options.out, options.small, resolution, extra)
                rows[name] = {"wall_seconds": time.monotonic() - start}
            else:
                recipe, sets, change, authors = case
                if change is not None:

                    def changed(recipe, family, change=change):
                        state = new(recipe, family)
                        change(family, state)
                        return state

                    module.State.new = changed
                settings = load_recipe(recipe, [*sets, *extra])
                known = options.tflop.get(recipe)
                found = bench(settings, resolution, 1, small=options.small, authors=authors, tflop_per_sample=known)
                rows[name] = found.as_dict() | {"wall_seconds": time.monotonic() - start}
                print(
                    f"{name}: {found.samples_per_second:.3f} samples/s, {found.tflop / found.batch:.1f} TFLOP/sample, "
                    f"{found.utilisation:.1%} of {found.ceiling_tflops:.0f} TFLOP/s, peak {found.peak_gb:.1f} GB, "
                    f"loaded {found.load_gb:.1f} GB, took {time.monotonic() - start:.0f} s",
                    flush=True,
                )
                print("   ", {k: f"{p.seconds:.3f} s, {p.tflop:.0f} TF" for k, p in found.parts.items()}, flush=True)
        except Exception as error:
            traceback.print_exc()
            rows[name] = {"error": str(error).splitlines()[:1]}
        finally:
            module.State.new, torch.backends.cudnn.benchmark = new, False
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            (options.out / "levers.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
