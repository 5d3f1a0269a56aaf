"""`plan`: operations as `bench` counts them while it trains, sizes of networks, memory, and the recipe for a device."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from flashdmd_cli.evaluation.preview import Preview
from flashdmd_cli.runs import device as device_module
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.randomness import generator
from flashdmd_cli.runs.recipe import dump_recipe, list_recipes, load_recipe
from flashdmd_cli.workflows import bench as benching
from flashdmd_cli.workflows.plan import counting, fitting, planning
from flashdmd_cli.workflows.plan.gpus import FRAGMENTATION, GPUS, RESERVE, Gpu, gpu_named
from flashdmd_cli.workflows.plan.meta import META, Meter
from flashdmd_cli.workflows.plan.planning import evaluations, plan
from tests.test_cli import fails, run

SMALL = ["train.batch=1", "gan.crop_px=64", "model.device=cpu", "model.lora_rank=4"]


@pytest.mark.parametrize(
    ("name", "sets"),
    [
        ("sdxl-4step-lora", []),
        ("sdxl-4step", ["model.checkpointing=true"]),
        ("sdxl-4step-lora", ["model.checkpointing=true", "fake.ttur=2", "gan.input=renoise", "gan.real=vae_roundtrip"]),
        ("sdxl-4step-dmd2", []),
        ("sd3-4step", ["model.checkpointing=true"]),
    ],
    ids=["adapters", "full-checkpointed", "adapters-checkpointed", "dmd2", "sd3"],
)
def test_operations_are_those_counted_in_training(name, sets, monkeypatch):
    monkeypatch.setattr(benching, "matrix_tflops", lambda place: 1.0)
    recipe = load_recipe(name, [*SMALL, *sets, "model.precision=fp32"])
    measured = benching.bench(recipe, 64, 1, small=True)
    drawn = [int(torch.randint(len(recipe.dm_step_indices), (1,), generator=generator(0, 0, number, "grid step")))
             for number in range(recipe.ttur, 2 * recipe.ttur)]  # fmt: skip
    # In whatever number format; bf16 is that of the other tests, which share what is counted.
    planned = plan(
        recipe, None, 64, precision="bf16", small=True, indices=[recipe.dm_step_indices[index] for index in drawn]
    )
    assert planned.tflop_per_sample == pytest.approx(measured.tflop, rel=0.02)
    assert (planned.parameters, planned.trainable) == (measured.parameters, measured.trainable)
    assert planned.tflop_per_sample == pytest.approx(sum(planned.tflop_by_part.values()))


def test_each_process_stores_its_share_of_sharded_networks():
    def planned(sharding: str, processes: int = 8) -> planning.Plan:
        recipe = load_recipe("sdxl-4step", ["train.batch=8", f"model.sharding={sharding}"])
        return plan(recipe, None, 64, processes=processes, small=True)

    whole, sharded = planned("none"), planned("fsdp")
    less = {part: value - sharded.memory_by_part[part] for part, value in whole.memory_by_part.items()}
    denoiser = whole.parameters * 4 / 1e9
    assert less["weights"] == pytest.approx(3 * 7 / 8 * denoiser)
    assert less["moments of the optimizers"] == pytest.approx(2 * 2 * 7 / 8 * denoiser)
    for phase, value in whole.memory_by_phase.items():
        assert sharded.memory_by_phase[phase] <= value - less["weights"] - less["moments of the optimizers"] + 1e-9
    assert planned("fsdp", 1).memory_by_part == planned("none", 1).memory_by_part


def test_evaluations_of_the_student():
    assert (evaluations(load_recipe("sdxl-4step")).rollout, evaluations(load_recipe("sdxl-4step")).student) == (2, 2)
    renoised = evaluations(load_recipe("sdxl-4step", ["gan.input=renoise"]))
    assert (renoised.rollout, renoised.student) == (3, 2)
    assert evaluations(load_recipe("sdxl-4step-dmd2")).rollout == 1.5
    assert evaluations(load_recipe("sdxl-4step", ["gan.kind=none"])).student == 1


def test_memory_of_a_known_network():
    """Two linear layers with a norm between them, under autocast: what a backward pass needs, by hand."""
    net = nn.Sequential(nn.Linear(64, 256), nn.LayerNorm(256), nn.Linear(256, 64)).to(META)
    x = torch.empty(128, 64, device=META)

    def forward():
        with torch.autocast("meta", torch.bfloat16):
            return net(x)

    with Meter([net], "bf16").running() as meter:
        y, cost = meter.measure(forward)
        _, back = meter.measure(lambda: y.backward(torch.empty_like(y)))
    assert cost.flop == 2 * 2 * 128 * 64 * 256
    assert back.flop == 2 * 128 * 64 * 256 * 3  # the input of the first layer needs no gradient
    # x, hidden and output in 16 bits; the norm's input and output in 32 (with mean and deviation), and 16 again.
    assert cost.kept == pytest.approx(2 * 128 * (64 + 64) + 128 * 256 * (4 + 2) + 8 * 128, rel=0.3)
    assert cost.peak_weights == 2 * (2 * 64 * 256 + 64 + 256)
    assert all(p.grad is None for p in net.parameters())


def test_activations_shrink_where_they_are_recomputed():
    costs = [counting.count(load_recipe("sdxl-4step-lora", [*SMALL, f"model.checkpointing={on}"]), "bf16", 64, True)
             for on in (False, True)]  # fmt: skip
    plain, recomputed = costs
    assert recomputed.forward.kept < plain.forward.kept / 2
    assert recomputed.backward.flop > plain.backward.flop + plain.forward.flop / 2
    assert plain.forward.flop == recomputed.forward.flop
    # Everything is freed again.
    assert plain.forward.kept + plain.backward.kept < plain.forward.kept / 50


def test_memory_depends_on_form_and_micro_batch():
    sets = ["gan.crop_px=64", "model.lora_rank=4", "train.batch=8", "train.preview_every=null"]
    full, one, four = (plan(load_recipe(name, [*sets, f"train.micro_batch={n}"]), GPUS["4090"], 64, small=True)
                       for name, n in (("sdxl-4step", 1), ("sdxl-4step-lora", 1), ("sdxl-4step-lora", 4)))  # fmt: skip
    assert one.peak_gb < full.peak_gb and one.peak_gb < four.peak_gb < 4 * one.peak_gb
    fixed = ("weights", "moments of the optimizers")
    assert [one.memory_by_part[name] for name in fixed] == [four.memory_by_part[name] for name in fixed]
    assert full.memory_by_part["moments of the optimizers"] == pytest.approx(8e-9 * full.trainable)
    shared = plan(load_recipe("sdxl-4step-lora", sets), GPUS["4090"], 64, processes=8, price=0.5, small=True)
    assert shared.gpu_hours == pytest.approx(8 * shared.seconds_per_iteration * 1000 / 3600)
    assert shared.cost == pytest.approx(0.5 * shared.gpu_hours)


def gpu_with(gigabytes):
    return Gpu("a test GPU", gigabytes * 1e9 + RESERVE, 100, 0.3)


def need(name, sets=()):
    return plan(load_recipe(name, [*SMALL, "train.batch=8", *sets])).peak_gb * FRAGMENTATION


def test_the_form_that_fits_is_chosen(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    said = []
    sets = [*SMALL[1:], "train.batch=8"]

    def chosen(gigabytes, *more, out=None, name=None):
        monkeypatch.setattr(fitting, "gpu_named", lambda name: None if gigabytes is None else gpu_with(gigabytes))
        monkeypatch.setitem(fitting.__dict__, "MICRO_BATCHES", (4, 1))
        sets_here = [each for each in sets if "device" not in each]
        found = fitting.distill_recipe_here(name, [*sets_here, *more], out, said.append, steps=4, ttur=1)
        return found.name, found.model.form, found.model.checkpointing, found.train.micro_batch

    assert chosen(None) == ("sdxl-4step", "full", False, 1) and said == []
    assert chosen(100) == ("sdxl-4step", "full", False, 4)
    assert "all weights" in said[-1] and "model.form" in said[-1]
    needed = need("sdxl-4step", ["train.micro_batch=4"]) + RESERVE / 1e9  # as `plan` has it, not the tensors alone
    assert f"needs {needed:.0f} of 101 GB" in said[-1]
    # Between the smallest setting of all weights and of adapters.
    smallest = need("sdxl-4step", ["model.checkpointing=true"])
    assert chosen(smallest * 0.99)[:2] == ("sdxl-4step-lora", "lora")
    tight = need("sdxl-4step-lora", ["model.checkpointing=true"])
    assert chosen(tight * 1.001) == ("sdxl-4step-lora", "lora", True, 1)
    assert "adapters with" in said[-1] and "not be enough" not in said[-1]
    assert chosen(tight * 0.5)[1:] == ("lora", True, 1) and "not be enough" in said[-1]
    # What the user chose stays.
    count = len(said)
    assert chosen(tight, "model.form=full") == ("sdxl-4step", "full", False, 1)
    assert chosen(tight, name="sdxl-4step") == ("sdxl-4step", "full", False, 1) and len(said) == count
    assert chosen(100, "train.micro_batch=2", "model.checkpointing=true")[2:] == (True, 2)
    # A run that was begun keeps its form, checkpointing and micro-batch, on whatever device.
    out = tmp_path / "runs" / "sdxl-4step-lora"
    (out / "state" / "00000001").mkdir(parents=True)
    (out / "manifest.json").write_text("{}")
    begun = load_recipe("sdxl-4step-lora", [*sets, "model.checkpointing=true", "train.micro_batch=4"])
    (out / "recipe.yaml").write_text(dump_recipe(begun))
    for folder in (None, out):
        assert chosen(100, out=folder) == ("sdxl-4step-lora", "lora", True, 4)
        assert chosen(None, out=folder) == ("sdxl-4step-lora", "lora", True, 4)
    assert chosen(100, out=tmp_path / "other")[1] == "full"


def test_the_command(monkeypatch):
    found = json.loads(run("plan", "--recipe", "sdxl-4step-24gb", "--gpu", "4090", "--price", 1, "--json").stdout)
    assert found["fits"] and found["gpu"] == "4090" and found["cost"] == pytest.approx(found["gpu_hours"])
    monkeypatch.setitem(GPUS, "4090", gpu_with(0.01))
    result = run("plan", "--recipe", "sdxl-4step-24gb", "--gpu", "4090")
    assert result.exit_code == 0 and "will run out of memory" in result.stderr and "optimizers" in result.stdout
    assert (
        "no shipped recipe for this model, number of steps and gan.kind fits" in result.stderr
        and "plan: does not fit a test GPU: needs " in result.stdout
    )
    assert "GPU-hours" not in result.stdout
    fails(run("plan", "--gpu", "4080"), 2, "--gpu 4080: unknown; did you mean 4090?")
    fails(run("plan", "--recipe", "align/sdxl", "--gpu", "4090"), 2, "only distillations of SDXL")
    with pytest.raises(UsageError, match="shapes-4step"):
        plan(load_recipe("shapes-4step"))
    assert gpu_named("H200").memory == GPUS["h200"].memory


def test_a_run_that_does_not_fit_names_a_recipe_that_does(monkeypatch):
    """With no hours or cost, which such a run would never have."""
    enough = plan(load_recipe("sdxl-4step-24gb")).peak_gb * FRAGMENTATION * 1.001
    monkeypatch.setitem(GPUS, "4090", gpu_with(enough))
    assert fitting.what_fits(load_recipe("sdxl-4step"), GPUS["4090"], 64).recipe == "sdxl-4step-24gb"
    shown = run("plan", "--gpu", "4090", "--price", 1, "--resolution", 64)
    assert shown.exit_code == 0 and "GPU-hours" not in shown.stdout and "costs" not in shown.stdout
    less = "model.checkpointing=true or adapters (model.form=lora) needs less"  # a micro-batch of 1 can be no smaller
    assert f"will run out of memory on a test GPU ({less})" in shown.stderr
    assert re.search(r"^sdxl-4step-24gb fits \(adapters, \d+\.\d GB\): --recipe sdxl-4step-24gb$", shown.stderr, re.M)
    found = json.loads(run("plan", "--gpu", "4090", "--price", 1, "--json").stdout)
    assert (found["fits"], found["gpu_hours"], found["cost"]) == (False, None, None)
    assert found["alternative"] == "sdxl-4step-24gb"
    with monkeypatch.context() as patched:  # nothing is counted that is not shown
        patched.setattr(fitting, "what_fits", lambda *args: pytest.fail("counted"))
        assert run("plan", "--gpu", "4090", "--quiet").stdout.strip() == "sdxl-4step"
    fits = run("plan", "--recipe", "sdxl-4step-24gb", "--gpu", "4090", "--price", 2)
    assert "plan: fits a test GPU: needs " in fits.stdout and fits.stderr == ""
    assert re.search(r"GPU-hours, costs \d+ in the currency of --price", fits.stdout), fits.stdout
    # What is trained, by network.
    by_network = found["trainable_by_network"]
    assert set(by_network) == {"student", "fake score", "discriminator"}
    assert sum(by_network.values()) == found["trainable"] and "trained parameters, in millions: student" in fits.stdout


def test_a_dry_run_shows_the_plan():
    result = run("distill", "--recipe", "sdxl-4step", "--dry-run")
    assert "# plan: " in result.stdout and "pictures (64 an iteration)" in result.stdout
    document = json.loads(run("distill", "--recipe", "sdxl-4step", "--dry-run", "--json").stdout)
    assert document["plan"]["form"] == "full"
    assert "plan" not in run("distill", "--recipe", "shapes-4step", "--dry-run").stdout


def test_documented_jobs_name_shipped_recipes_and_valid_options():
    docs = Path(__file__).parents[1] / "docs"
    page, slurm = (docs / "scale.md").read_text(), (docs / "scale" / "slurm.sbatch").read_text()
    jobs = list(yaml.safe_load_all((docs / "scale" / "kubernetes.yaml").read_text()))
    words = jobs[1]["spec"]["template"]["spec"]["containers"][0]["command"]
    named = set(re.findall(r"(?:--recipe[ =]|RECIPE:-)(sdxl-[a-z0-9-]+)", " ".join([page, slurm, *words])))
    assert named == {"sdxl-4step", "sdxl-4step-24gb", "sdxl-4step-80gb", "sdxl-4step-8x80gb"}
    assert named <= set(list_recipes())
    assert subprocess.run(["bash", "-n", docs / "scale" / "slurm.sbatch"], check=False).returncode == 0
    options = words[words.index("distill") :]
    assert run(*options, "--dry-run", "--quiet").exit_code == 0


def test_large_previews_are_drawn_one_at_a_time(monkeypatch, tmp_path):
    batches = []

    def generate(family, net, captions, *rest, batch, **options):
        batches.append(batch)
        return torch.zeros(len(captions), 3, 8, 8)

    monkeypatch.setattr("flashdmd_cli.evaluation.generate.generate", generate)
    for side in (64, 1024):
        family = SimpleNamespace(resolution=side, teacher=None)
        Preview(load_recipe("sdxl-4step"), family, ["a", "b"], tmp_path)(None, None, 0)
    assert batches == [8, 8, 8, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "tflops", "is_measured"),
    [("NVIDIA H200", 788, True), ("NVIDIA GeForce RTX 4090", 165, False), ("NVIDIA T4", 100, False)],
)
def test_the_gpu_of_this_machine(name, tflops, is_measured, monkeypatch):
    monkeypatch.setattr(device_module, "available_devices", lambda: ["cuda", "cpu"])
    properties = SimpleNamespace(name=name, total_memory=5)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    here = gpu_named(None)
    assert (here.name, here.memory, here.tflops, here.is_measured) == (name, 5, tflops, is_measured)


def test_a_machine_without_a_gpu_gets_a_plan_without_hours_and_is_told_of_the_option(monkeypatch):
    monkeypatch.setattr(device_module, "available_devices", lambda: ["cpu"])
    made = run("plan")
    assert made.exit_code == 0 and made.stderr.startswith("no GPU on this machine: --gpu adds hours"), made.stderr
    assert "fit" not in made.stdout
    fails(run("plan", "--set", "train.batch=0"), 2, "train.batch")
    fails(run("plan", "--gpu", "abacus"), 2, "--gpu abacus: unknown", "4090")
