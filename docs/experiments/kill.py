"""Kills training at random moments, resumes it, and compares the result with that of an undisturbed run.

    python docs/experiments/kill.py --kills 20 --out kills.json
    python docs/experiments/kill.py --set model.sharding=fsdp --set train.async_save=true --cases "2->2" "2->1"
    python docs/experiments/kill.py --stage align --form lora --threads 2 --kills 50 --cases "1->1"

Every killed run is a run of its own: `flashdmd distill` with the pixel discriminator, or `flashdmd align`, on a tiny
SDXL with random weights, ended by SIGKILL. Of ten kills, one comes at a random moment before the first state, four at a
random moment from the first state to the end, and five wait for the next state that is being written, and come while
its files are. Then the same command resumes the run. With two processes (gloo) one of them is killed, and the other has
to end by itself. Cases: 1 process; 2 processes; 2 processes, resumed by 1.

After each kill: no manifest unless the run is finished, and every state that counts as complete has the tensors of the
undisturbed run's state of that iteration, bit for bit. At the end: states, metrics and weights of the student against
the undisturbed run's.

The commands run in forks of this process, so that torch is imported only once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from forks import Folders, run_and_exit
from safetensors.torch import load_file
from torch import Tensor

from flashdmd_cli.cli.app import app
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.families.sdxl.reward import RewardConfig
from flashdmd_cli.families.sdxl.reward_files import new_reward, save_reward
from flashdmd_cli.runs import checkpoint
from flashdmd_cli.runs.launcher import _free_port

ITERATIONS, WAIT = 5, 20.0
SETS = {
    "train.batch": 4, "train.micro_batch": 4, "train.save_every": 1, "train.preview_every": "null",
    "model.precision": "fp32", "train.average_images": 20,
}  # fmt: skip


def prepare(root: Path, stage: str, form: str, sets: list[str]) -> list[str]:
    """Teacher, encoder of the discriminator, data, for an alignment also student and reward model; the command."""
    from tests import conftest, test_distill

    teacher = conftest.tiny_folder.__wrapped__(Folders(root))
    sam = test_distill.sam_folder.__wrapped__(Folders(root))
    config = teacher / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 16}))
    data = root / "data"
    ended(run(["prepare-data", "shapes", "--num", "16", "--out", str(data)], 1, root / "log"))
    common = ["--quiet", "--device", "cpu", *options(SETS)]
    if form == "lora":
        common += options({"model.form": "lora", "model.lora_rank": 2})
    distilling = ["distill", "--recipe", "shapes-4step", "--teacher", str(teacher), "--data", str(data), *common]
    distilling += options({"gan.sam": sam, "optim.warmup_images": 0})
    last = ["--iterations", str(ITERATIONS), *(word for each in sets for word in ("--set", each))]
    if stage == "distill":
        return [*distilling, *last]
    student, reward = root / "student", root / "reward"
    codes = ended(run([*distilling, "--iterations", "2", "--out", str(student)], 1, root / "log"))
    assert codes == [0], (root / "log").read_text()
    torch.manual_seed(0)
    config = RewardConfig(resolution=64, guidance=None)
    save_reward(new_reward(SDXLFamily.load(teacher), config), reward)
    aligning = ["align", "--from", str(student), "--reward", str(reward), "--rl-ratio", "2", *common]
    return [*aligning, *options({"align.threshold": "[0, 0]", "align.candidates": 2, "probe.every": "null"}), *last]


def options(sets: dict[str, Any]) -> list[str]:
    return [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]


def run(words: list[str], size: int, log: Path, threads: int = 1) -> list[int]:
    """Start a command in `size` processes of so many threads; their process ids."""
    port, pids = _free_port(), []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            os.setsid()
            number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(number, 1)
            os.dup2(number, 2)
            if size > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
                               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
            torch.set_num_threads(threads)
            run_and_exit(words)
        pids.append(pid)
    return pids


def ended(pids: list[int]) -> list[int]:
    """Wait for all; the exit codes."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def states(out: Path) -> dict[str, Path]:
    """The states that count as complete, by name."""
    return {path.name: path for path in checkpoint._states(out / "state")}


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a file or state."""
    return load_file(path) if path.is_file() else dict(checkpoint.load_state(path)[0])


def differences(a: Path, b: Path) -> dict[str, float]:
    """The largest difference between the tensors of two files or states by group, such as `student.net`; 0:
    bit-identical."""
    one, two = tensors_of(a), tensors_of(b)
    assert one.keys() == two.keys()
    found: dict[str, float] = {}
    for key in one:
        group = ".".join(key.split(".")[:2]) if ".net." in key or ".optimizer." in key else "student"
        apart = 0.0 if torch.equal(one[key], two[key]) else (one[key] - two[key]).abs().max().item()
        found[group] = max(found.get(group, 0.0), apart)
    return found


def compared(out: Path, whole: Path) -> dict[str, Any]:
    """Final state, student and metrics of a run against those of an undisturbed one."""
    name, weights = f"state/step-{ITERATIONS:08d}", "student/diffusion_pytorch_model.safetensors"
    rows, wanted = (
        [json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()] for each in (out, whole)
    )
    return {
        "metrics": max(
            abs(a[k] - b[k]) / max(abs(b[k]), 1e-2) for a, b in zip(rows, wanted, strict=True) for k in b
        ),
        "exported student": differences(out / weights, whole / weights)["student"],
        **differences(out / name, whole / name),
    }  # fmt: skip


def is_running(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def killed(words: list[str], out: Path, size: int, lasts: tuple[float, float], kind: str, log: Path,
           threads: int) -> dict[str, Any]:  # fmt: skip
    """Start a run and kill one process at a random moment; `lasts`: seconds to the first state, and to the end."""
    pids, began = run([*words, "--out", str(out)], size, log, threads), time.monotonic()
    victim, in_a_write = random.randrange(size), kind == "write"
    if kind == "early":
        time.sleep(random.uniform(0.0, lasts[0]))
    else:
        while not states(out):
            assert is_running(pids[0]), log.read_text()
            time.sleep(0.002)
        rest = max(0.0, lasts[1] - (time.monotonic() - began))
        time.sleep(random.uniform(0.0, rest * (0.7 if in_a_write else 1.0)))
    if in_a_write:
        victim, end = 0, time.monotonic() + WAIT  # process 0 writes
        while not any((out / "state").glob(".step-*.tmp")) and time.monotonic() < end:
            if not is_running(pids[0]):
                break
        time.sleep(random.uniform(0.0, 0.01))
    os.kill(pids[victim], signal.SIGKILL)
    at, writing = time.monotonic(), any((out / "state").glob(".step-*.tmp"))
    codes = ended(pids)
    seconds = time.monotonic() - at
    return {"killed": victim, "codes": codes, "seconds_to_end": round(seconds, 2), "in_a_write": writing}


def experiment(case: str, words: list[str], root: Path, kills: int, wholes: dict[int, Path],
               threads: int, seconds: float) -> list[dict[str, Any]]:  # fmt: skip
    """All kills of one case, `2->1`: two processes, resumed by one."""
    before, after = (int(text) for text in case.split("->"))
    found = []
    ends = time.monotonic() + seconds
    for number in range(kills):
        if time.monotonic() > ends:
            break
        out, log = root / f"{case}-{number}", root / f"{case}-{number}.log"
        lasts = tuple(json.loads((wholes[before] / "seconds").read_text()))
        kind = "early" if number % 10 == 0 else ("random", "write")[number % 2]
        row = killed(words, out, before, lasts, kind, log, threads)
        saved = states(out)
        row["finished"] = (out / "manifest.json").is_file()
        row["states"] = sorted(saved)
        row["wrong_states"] = [
            name for name, path in saved.items()
            if any(differences(path, wholes[before] / "state" / name).values())
            or checkpoint.load_state(path)[1]["iteration"] != int(name[-8:])
        ]  # fmt: skip
        row["resumed"] = ended(run([*words, "--out", str(out)], after, log, threads))
        row["differences"] = compared(out, wholes[after])
        found.append(row)
        print(case, json.dumps(row), flush=True)
        shutil.rmtree(out)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=["distill", "align"], default="distill")
    parser.add_argument("--form", choices=["full", "lora"], default="full")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--cases", nargs="+", default=["1->1", "2->2", "2->1"])
    parser.add_argument("--set", action="append", default=[], help="recipe key of the killed runs, KEY=VALUE")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no kill of a case after these")
    parser.add_argument("--work", type=Path, default=Path("runs/kill"))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    random.seed(asked.seed)
    torch.set_num_threads(1)
    began, root = time.monotonic(), asked.work.resolve()
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    words, wholes = prepare(root, asked.stage, asked.form, asked.set), {}
    with suppress(SystemExit):  # imports in this process, once, what a run imports
        app([*words, "--out", str(root / "warm")])
    for size in sorted({int(text) for case in asked.cases for text in case.split("->")}):
        wholes[size], start = root / f"whole-{size}", time.monotonic()
        command = [*words, "--set", f"train.keep_states={ITERATIONS}", "--out", str(wholes[size])]
        pids, first = run(command, size, root / "log", asked.threads), 0.0
        while not first and is_running(pids[0]):
            first = time.monotonic() - start if states(wholes[size]) else 0.0
            time.sleep(0.01)
        assert ended(pids) == [0] * size, (root / "log").read_text()
        (wholes[size] / "seconds").write_text(json.dumps([first, time.monotonic() - start]))
    document: dict[str, Any] = {key: getattr(asked, key) for key in ("stage", "form", "threads", "set")}
    if len(wholes) == 2:
        document["2 against 1, undisturbed"] = compared(wholes[2], wholes[1])
    for case in asked.cases:
        rows = experiment(case, words, root, asked.kills, wholes, asked.threads, asked.seconds)
        document[case] = {
            "kills": len(rows),
            "after a state was saved": sum(bool(row["states"]) for row in rows),
            "in a write": sum(row["in_a_write"] for row in rows),
            "states found": sorted({name for row in rows for name in row["states"]}),
            "wrong states": sum(len(row["wrong_states"]) for row in rows),
            "finished before the kill": sum(row["finished"] for row in rows),
            "resumed to the end": sum(set(row["resumed"]) == {0} for row in rows),
            "bit-identical": sum(not any(row["differences"].values()) for row in rows),
            "longest wait for the others to end": max(row["seconds_to_end"] for row in rows),
            "largest differences": {
                key: max(row["differences"][key] for row in rows) for key in rows[0]["differences"]
            },
        }
    times = resource.getrusage(resource.RUSAGE_CHILDREN)
    document["seconds"] = {"wall": time.monotonic() - began, "processor": times.ru_utime + times.ru_stime}
    text = json.dumps(document, indent=2)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
