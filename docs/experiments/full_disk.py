"""Runs commands on a disk that becomes full, at many sizes, then makes room and repeats the same command.

    mount -t tmpfs -o size=64m tmpfs /mnt/small
    python docs/experiments/full_disk.py /mnt/small --sizes 24 --out full-disk.json

Each command first runs on the empty disk, which gives its result and the most space that it takes. Then, for each of
`--sizes` sizes between `--first` of that space and all of it, a filler file leaves so much free; the command has to end
with exit code 3 and one line that names a file on the disk. With the filler removed, the same command has to finish, a
training from its last state, with the same result. Networks are tiny and have random weights.

The commands run in forks of this process, so that torch is imported only once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from forks import Folders, run_and_exit

from flashdmd_cli.workflows import distill, evaluate  # noqa: F401 (with torch and diffusers, for the forks)

FILLER = "filler"
VARY = re.compile(
    r"manifest.json|costs.jsonl|results.json|report.html|page.html|request.json|times.jsonl|tensorboard|state.json|\.lock"
)
"""Files with times or versions in them, which differ from run to run."""


def run(words: list[str], disk: Path, log: Path) -> tuple[int, str, int]:
    """Run a command; its exit code, what it printed to stderr, and the most bytes of `disk` in use meanwhile."""
    log.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        number = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(number, 2)
        run_and_exit(words)
    most, ended = 0, 0
    while not ended:
        most = max(most, used(disk))
        time.sleep(0.002)
        ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status), log.read_text().strip(), most


def used(disk: Path) -> int:
    """Bytes in use on a disk."""
    state = os.statvfs(disk)
    return (state.f_blocks - state.f_bavail) * state.f_frsize


def contents(out: Path) -> dict[str, str]:
    """Hash of every file that is the same in each run."""
    paths = [path for path in out.rglob("*") if path.is_file() and not VARY.search(path.relative_to(out).as_posix())]
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def emptied(disk: Path) -> None:
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def fill(disk: Path, free: int) -> None:
    """Leave `free` bytes of the disk."""
    with (disk / FILLER).open("wb") as file:
        state = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, max(1, state.f_bavail * state.f_frsize - free))


def trial(words: list[str], disk: Path, free: int, whole: dict[str, str], log: Path) -> dict[str, Any]:
    """One command with `free` bytes of space, and again with all of them."""
    emptied(disk)
    fill(disk, free)
    out = disk / "out"
    code, text, _ = run([*words, "--quiet", "--out", str(out)], disk, log)
    row: dict[str, Any] = {"free": free, "code": code, "stderr": text}
    row["left over"] = sorted(
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.name.endswith((".partial", ".tmp"))
    )
    row["states"] = sorted(path.parent.name for path in out.glob("state/step-*/state.json"))
    row["finished"] = (out / "manifest.json").is_file()
    (disk / FILLER).unlink()
    row["again"], text, _ = run([*words, "--out", str(out)], disk, log)
    row["resumed"] = (re.findall(r"resuming from (step-\d+)", text) or [None])[0]
    now = contents(out)
    row["other"] = sorted(name for name in whole.keys() | now.keys() if whole.get(name) != now.get(name))
    if row["again"]:
        row["stderr again"] = text
    return row


def prepare(root: Path, disk: Path, iterations: int) -> dict[str, list[str]]:
    """Teacher, discriminator's encoder, pictures and a student; the commands by name."""
    from tests import conftest, test_distill

    teacher = conftest.tiny_folder.__wrapped__(Folders(root))
    sam = test_distill.sam_folder.__wrapped__(Folders(root))
    config = teacher / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 16}))
    data, student, prompts = root / "data", root / "student", root / "prompts.txt"
    prompts.write_text("\n".join(f"a plain red circle above a striped blue ring {i}" for i in range(40)))
    sets = {
        "gan.sam": sam, "train.batch": 4, "train.micro_batch": 4, "train.save_every": 1, "train.preview_every": 3,
        "model.precision": "fp32", "optim.warmup_images": 0, "train.average_images": 20,
    }  # fmt: skip
    words = ["distill", "--recipe", "shapes-4step", "--teacher", str(teacher), "--data", str(data)]
    words += ["--iterations", str(iterations), "--device", "cpu"]
    words += [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    for first in (["prepare-data", "shapes", "--num", "16", "--out", str(data)], [*words, "--out", str(student)]):
        code, text, _ = run([*first, "--quiet"], disk, root / "log")
        assert code == 0, text
    pictures = root / "pictures"
    code, text, _ = run(["sample", "--from", str(teacher), "--prompts", str(prompts), "--out", str(pictures),
                         "--steps", "1", "--quiet"], disk, root / "log")  # fmt: skip
    assert code == 0, text
    folder = next(path for path in pictures.iterdir() if path.is_dir())
    for number, prompt in enumerate(prompts.read_text().splitlines()):
        (folder / f"{number:04d}.txt").write_text(prompt)
    sample = ["sample", "--from", str(student), "--prompts", str(prompts)]
    return {
        "distill": words,
        "export": ["export", "--from", str(student)],
        "sample": sample,
        "prepare-data": ["prepare-data", str(folder), "--resolution", "64", "--shard-size", "10"],
        "prepare-data shapes": ["prepare-data", "shapes", "--num", "200"],
        "eval": ["eval", "--from", str(student), "--prompts", str(prompts), "--metrics", "saturation,entropy"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("disk", type=Path, help="an empty small disk, for example a tmpfs")
    parser.add_argument("--sizes", type=int, default=24)
    parser.add_argument("--first", type=float, default=0.0, help="the smallest size, as a share of the space taken")
    parser.add_argument("--iterations", type=int, default=6, help="of the training; each saves a state, two are kept")
    parser.add_argument("--only", nargs="*", help="names of commands (default: all)")
    parser.add_argument("--work", type=Path, default=Path("runs/full-disk"))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    began, root, disk = time.monotonic(), asked.work.resolve(), asked.disk.resolve()
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    document: dict[str, Any] = {}
    for name, words in prepare(root, disk, asked.iterations).items():
        if asked.only and name not in asked.only:
            continue
        emptied(disk)
        code, text, most = run([*words, "--out", str(disk / "out"), "--quiet"], disk, root / "log")
        assert code == 0, f"{name}: {text}"
        whole, rows = contents(disk / "out"), []
        for number in range(asked.sizes):
            rows.append(
                trial(
                    words,
                    disk,
                    int(most * (asked.first + (1 - asked.first) * number / asked.sizes)),
                    whole,
                    root / "log",
                )
            )
            print(name, json.dumps(rows[-1]), flush=True)
        document[name] = {
            "most bytes": most,
            "trials": len(rows),
            "exit codes": dict(Counter(row["code"] for row in rows)),
            "one line that names a file on the disk": sum(
                row["stderr"].startswith(f"--out: cannot write {disk / 'out'}") and "\n" not in row["stderr"]
                for row in rows if row["code"]
            ),
            "files named": dict(Counter(
                re.sub(r"\d+", "N", found[1]) for row in rows
                if (found := re.search(rf"{re.escape(str(disk))}/([^\s:]*)", row["stderr"]))
            )),
            "left over": sorted({name for row in rows for name in row["left over"]}),
            "states kept": dict(Counter(len(row["states"]) for row in rows)),
            "finished again": sum(row["again"] == 0 for row in rows),
            "from the last state": sum(bool(row["states"]) and row["resumed"] == row["states"][-1] for row in rows),
            "same result": sum(not row["other"] for row in rows),
        }  # fmt: skip
    emptied(disk)
    document["seconds"] = round(time.monotonic() - began)
    text = json.dumps(document, indent=2)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
