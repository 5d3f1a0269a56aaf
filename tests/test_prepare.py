"""`flashdmd prepare-data` from end to end: counts, resuming, many processes, hostile input, full disks."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flashdmd_cli.data.items import REASONS
from flashdmd_cli.data.shards import ShardDataset
from flashdmd_cli.runs.lock import LOCK
from flashdmd_cli.runs.manifest import read_manifest, sha256_file, verify
from flashdmd_cli.workflows.prepare import prepare

from .messy import bomb, encoded, messy_folder, of_kind, picture
from .test_cli import fails, run, shipped, world  # noqa: F401
from .test_distill import sam_folder  # noqa: F401
from .test_sources import PNG, coco, write_tar

COMMAND = [sys.executable, "-m", "flashdmd_cli", "prepare-data"]
SMALL = ["--resolution", "16", "--shard-size", "50"]
NUM = 200


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 pictures, ten of them broken in ten ways."""
    folder = tmp_path_factory.mktemp("messy") / "pictures"
    messy_folder(folder, NUM, width=40, height=32)
    return folder


@pytest.fixture(scope="module")
def reference(messy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of the shards that an undisturbed run writes."""
    out = tmp_path_factory.mktemp("reference") / "out"
    assert run("prepare-data", messy, "--out", out, *SMALL).exit_code == 0
    return hashes(out)


def hashes(out: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(out.glob("*.tar"))}


def prepared(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def process(*words: object, **environment: str) -> subprocess.Popen[str]:
    command = [*COMMAND, *(str(word) for word in words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )


def pictures(folder: Path, num: int, **options: int) -> Path:
    """Captioned pictures, nothing wrong with them."""
    folder.mkdir()
    for index in range(num):
        (folder / f"{index}.png").write_bytes(encoded(picture(index, **options)))
        (folder / f"{index}.txt").write_text(f"caption {index}")
    return folder


def test_every_fault_is_counted_and_a_second_run_does_nothing(messy, tmp_path):
    words = ("prepare-data", messy, "--out", tmp_path / "out", *SMALL, "--json")
    told = prepared(run(*words))
    faults = ("truncated", "empty_file", "undecodable", "no_caption", "caption_not_utf8", "caption_nul",
              "caption_too_big", "too_many_pixels", "duplicate", "link")  # fmt: skip
    assert (told["seen"], told["kept"], told["rejected"]) == (NUM, NUM - 10, dict.fromkeys(faults, 1))
    assert told["converted"] == {"16 bit": 20, "cmyk": 20, "exif": 20, "alpha": 20, "animated": 10}
    rows = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert {row["reason"]: row["source"] for row in rows}["truncated"] == "part1/picture-00019.jpg"
    assert verify(tmp_path / "out") == []
    assert "every file matches the manifest" in run("inspect", tmp_path / "out").stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "190 of 200" in page and "truncated" in page and page.count("data:image/jpeg") > 36
    assert not re.search(r"(src|href)=.(?!data:)", page) and "<script" not in page

    def times() -> dict[str, int]:  # the lock says who came last
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.name != LOCK}

    before = times()
    assert prepared(run(*words)) == told
    assert times() == before
    assert run(*words[:-1], "--quiet").stdout == f"{tmp_path / 'out'}\n"


def test_what_went_in_comes_out(tmp_path):
    folder = pictures(tmp_path / "in", 3)
    (folder / "0.png").write_bytes(of_kind(0, "exif", 60, 30)[0])
    (folder / "0.json").write_text('{"aesthetic": 6.5, "original_width": 4000, "original_height": 8000}')
    run("prepare-data", folder, "--out", tmp_path / "out", "--resolution", 16)
    dataset = ShardDataset(tmp_path / "out", [each.model_dump() for each in read_manifest(tmp_path / "out").files])
    assert len(dataset) == 3 and dataset.picture_shape == (3, 16, 16)
    first, second = dataset.sample(0), dataset.sample(1)
    assert [dataset.sample(i).caption for i in range(3)] == ["caption 0", "caption 1", "caption 2"]
    assert first.facts["original_size"] == [8000, 4000] and first.facts["crop_top_left"] == [8, 0]
    assert first.facts["columns"]["aesthetic"] == 6.5 and first.facts["source"] == "0.png"
    assert second.facts["original_size"] == [80, 96] and second.facts["crop_top_left"] == [0, 1]
    assert second.facts["target_size"] == [16, 16]


def test_many_processes_write_the_same_bytes(messy, reference, tmp_path):
    assert run("prepare-data", messy, "--out", tmp_path / "pool", *SMALL, "--nproc", 2).exit_code == 0
    assert hashes(tmp_path / "pool") == reference
    ranks = [process(messy, "--out", tmp_path / "ranks", *SMALL, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0")
             for rank in range(2)]  # fmt: skip
    said = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert "190 of 200" in said[0] and said[1] == ""
    assert hashes(tmp_path / "ranks") == reference
    jobs = [prepared(run("prepare-data", messy, "--out", tmp_path / "array", *SMALL, "--json", "--shard-count", 3,
                         "--shard-index", index)) for index in (2, 0, 1)]  # fmt: skip
    assert [job["finished"] for job in jobs] == [False, False, True]
    assert hashes(tmp_path / "array") == reference
    for name in ("pool", "ranks", "array"):
        assert not (tmp_path / name / ".work").exists()


def test_killed_and_restarted_the_shards_are_the_same(messy, reference, tmp_path):
    rng, out, killed = random.Random(0), tmp_path / "out", 0
    for finished in (0, 1, 2, 4):  # shards of 4 that are to be done before the blow; at the last one it is counting
        began = process(messy, "--out", out, *SMALL, *(["--nproc", 2] if finished == 1 else []))
        while began.poll() is None and len(list(out.glob(".work/records-*"))) < finished:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        killed += began.poll() is None
        began.kill()
        began.wait()
        assert not (out / "manifest.json").exists() or verify(out) == []
    assert killed
    assert run("prepare-data", messy, "--out", tmp_path / "out", *SMALL).exit_code == 0
    assert hashes(tmp_path / "out") == reference and verify(tmp_path / "out") == []


def test_a_polite_stop_says_how_to_go_on(messy, tmp_path):
    words = [messy, "--out", tmp_path / "out", "--resolution", 200, "--filter", "min_side>=1", "--shard-size", 5]
    began = process(*words)
    while not list((tmp_path / "out").glob(".work/records-*")):
        time.sleep(0.01)
        assert began.poll() is None
    began.send_signal(signal.SIGTERM)
    _, said = began.communicate(timeout=30)
    assert began.returncode == 143, said
    assert "run the same command again" in said.splitlines()[-1]
    again = run("prepare-data", *words)
    assert again.exit_code == 0 and "shards are done already" in again.stderr


def test_a_full_disk_is_one_line_and_the_run_goes_on(messy, reference, tmp_path):
    script = ("import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
              "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)); "
              "from flashdmd_cli.cli.app import app; app(sys.argv[1:])")  # fmt: skip
    words = ["prepare-data", str(messy), "--out", str(tmp_path / "out"), *SMALL]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 3 and done.stdout == "", done.stderr
    assert done.stderr.splitlines()[-1].startswith("--out: cannot write")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert run(*words).exit_code == 0
    assert hashes(tmp_path / "out") == reference


def test_another_request_or_a_changed_source_is_refused(tmp_path):
    folder = pictures(tmp_path / "in", 4)
    words = ["prepare-data", folder, "--out", tmp_path / "out", "--resolution", 16]
    assert run(*words).exit_code == 0
    fails(run(*words[:-1], 32), 2, "--out", "--yes")
    (folder / "4.png").write_bytes(encoded(picture(4)))
    assert "changed" in run(*words).stderr.splitlines()[-1]
    assert run(*words, "--yes").exit_code == 0
    assert (tmp_path / "out" / "rejected.jsonl").read_text().count("no_caption") == 1
    fails(run("prepare-data", folder, "--out", folder / "out", "--resolution", 16), 2, "inside SOURCE")
    fails(run("prepare-data", "shapes", "--num", 3, "--out", tmp_path / "out"), 2, "--yes")


def test_yes_deletes_nothing_that_is_still_needed(tmp_path):
    folder, out = pictures(tmp_path / "in", 4), tmp_path / "out"
    words = ["--out", out, "--resolution", 16]
    assert run("prepare-data", folder, *words).exit_code == 0
    before = hashes(out)
    fails(run("prepare-data", folder, *words, "--yes", "--filter", "aestetic>=5", "--quiet"), 3, "aestetic")
    assert hashes(out) == before
    inside = pictures(out / "mine", 2)
    fails(run("prepare-data", inside, *words, "--yes"), 2, "SOURCE is inside")
    assert len(list(inside.glob("*.png"))) == 2


def test_what_is_gone_or_cut_is_made_again(tmp_path):
    folder, out = pictures(tmp_path / "in", 4), tmp_path / "out"
    words = ["prepare-data", folder, "--out", out, "--resolution", 16]
    assert run(*words).exit_code == 0
    before = hashes(out)
    shard = out / next(iter(before))
    shard.write_bytes(shard.read_bytes()[:-1000])
    assert "missing or truncated" in run(*words).stderr and hashes(out) == before
    shard.unlink()
    assert run(*words).exit_code == 0 and hashes(out) == before
    assert verify(out) == []


def test_filters_and_duplicates_are_counted(tmp_path):
    folder = pictures(tmp_path / "in", 12)
    for index in range(10):
        score = {"aesthetic": 5 + index / 4, "punsafe": "0.0" if index % 2 else None}
        (folder / f"{index}.json").write_text(json.dumps(score))
    (folder / "10.png").write_bytes(encoded(picture(5).resize((90, 75)), "jpg", quality=90))
    (folder / "11.png").write_bytes((folder / "9.png").read_bytes())
    words = ["prepare-data", folder, "--resolution", 32, "--json", "--out"]
    told = prepared(run(*words, tmp_path / "a", "--filter", "aesthetic>=6", "--filter", "caption_length<=9"))
    assert told["rejected"] == {"aesthetic>=6": 4, "no aesthetic": 2} and told["kept"] == 6
    told = prepared(run(*words, tmp_path / "b", "--filter", "punsafe<0.1"))
    assert told["rejected"] == {"no punsafe": 7}
    told = prepared(run(*words, tmp_path / "c", "--filter", "aspect<1.3", "--filter", "min_side>=78"))
    assert told["rejected"] == {"min_side>=78": 1, "duplicate": 1}
    assert prepared(run(*words, tmp_path / "d"))["rejected"] == {"duplicate": 1}
    assert prepared(run(*words, tmp_path / "e", "--duplicates", "near"))["rejected"] == {
        "near_duplicate": 1, "duplicate": 1}  # fmt: skip
    assert prepared(run(*words, tmp_path / "f", "--duplicates", "keep"))["kept"] == 12
    result = run(*words, tmp_path / "g", "--filter", "pwatermark<0.5")
    assert result.exit_code == 3 and "has no column pwatermark" in result.stderr.splitlines()[-1]
    result = run("prepare-data", folder, "--out", tmp_path / "h")
    assert result.exit_code == 3 and "--filter 'min_side>=1'" in result.stderr.splitlines()[-1]


def test_nothing_is_written_outside_of_out(tmp_path):
    home = tmp_path / "in"
    home.mkdir()
    write_tar(home / "a.tar", [("../../evil.png", PNG), ("../../evil.txt", b"x"), (f"{tmp_path}/evil.png", PNG),
                               ("good.png", PNG), ("good.txt", b"good"), ("link.png", None), ("bomb.png", bomb()),
                               ("bomb.txt", b"bomb")])  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    told = prepared(run("prepare-data", home, "--out", tmp_path / "out", "--resolution", 16, "--json"))
    assert told["kept"] == 1
    assert told["rejected"] == {"unsafe_path": 3, "link": 1, "too_many_pixels": 1}
    assert [path for path in sorted(tmp_path.rglob("*")) if tmp_path / "out" not in (path, *path.parents)] == before
    with tarfile.open(tmp_path / "out" / "pictures-000000.tar") as tar:
        assert all(info.isreg() and "/" not in info.name for info in tar)


def test_prompts_alone_train_without_a_gan(world):
    (world / "p.txt").write_text("a plain red circle above a striped blue ring\na cat\na cat\n\n")
    told = prepared(run("prepare-data", "p.txt", "--out", "prompts", "--json"))
    assert (told["kept"], told["rejected"]) == (2, {"duplicate": 1})
    written = [json.loads(line)["prompt"] for line in (world / "prompts" / "prompts.jsonl").read_text().splitlines()]
    assert written == ["a plain red circle above a striped blue ring", "a cat"]
    again = prepared(run("prepare-data", "prompts/prompts.jsonl", "--out", "again", "--json"))
    assert again["kept"] == 2 and '"source": "prompts.jsonl:2"' in (world / "again" / "prompts.jsonl").read_text()
    small = ["--iterations", 1, "--set", "train.batch=2", "--set", "train.micro_batch=2", "--set", "dm.steps=all"]
    result = run("distill", "--teacher", "shapes-sdxl", "--data", "prompts", "--out", "a", *small)
    assert result.exit_code == 3 and "gan.kind" in result.stderr.splitlines()[-1]
    result = run("distill", "--teacher", "shapes-sdxl", "--data", "prompts", "--out", "b", *small,
                 "--set", "gan.kind=none")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert run("sample", "--from", "b", "--prompts", "prompts/prompts.jsonl", "--out", "drawn").exit_code == 0


def test_coco10k_hash(tmp_path):
    path = coco(tmp_path / "annotations", 10_050)
    told = prepared(run("prepare-data", path, "--suite", "coco10k-hash", "--out", tmp_path / "out", "--json"))
    assert (told["seen"], told["kept"], told["rejected"]) == (10_000, 10_000, {})
    rows = [json.loads(line) for line in (tmp_path / "out" / "prompts.jsonl").read_text().splitlines()]
    assert len({row["image_id"] for row in rows}) == 10_000
    assert all(row["prompt"] == f"caption 0 of {row['image_id']}" for row in rows)
    assert read_manifest(tmp_path / "out").collection.pictures is False


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["in", "--filter", "aesthetic"], 2, "--filter aesthetic"),
        (["in", "--format", "zip"], 2, "--format zip"),
        (["in", "--duplicates", "all"], 2, "--duplicates all"),
        (["in", "--encode", "gif"], 2, "--encode gif"),
        (["in", "--cache", "pixels"], 2, "--cache pixels"),
        (["in", "--suite", "coco5k"], 2, "coco10k"),
        (["in", "--nproc", 0], 2, "--nproc 0"),
        (["in", "--shard-size", 0], 2, "--shard-size 0"),
        (["in", "--shard-index", 3, "--shard-count", 3], 2, "--shard-index 3"),
        (["in", "--shard-count", 3], 2, "--shard-index"),
        (["in", "--shard-index", 0, "--shard-count", 2, "--yes"], 2, "--yes"),
        (["in", "--cache", "text", "--teacher", "no/where/x", "--resolution", 16], 3, "--teacher no/where/x"),
        (["in", "--cache", "latents", "--teacher", "shapes-sdxl", "--resolution", 16], 2, "--resolution 16"),
        (["in/x.png"], 3, "SOURCE in/x.png"),
        (["./nowhere"], 3, "SOURCE nowhere"),
        (["coco.pkl"], 3, "json.dump"),
        (["empty", "--resolution", 16], 3, "is empty"),
        (["bare", "--resolution", 16], 3, "--captions-from-names"),
        (["in", "--format", "coco"], 3, "captions_*.json"),
    ],
    ids=str,
)
def test_each_mistake_is_one_line(words, code, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "in", 1)
    (tmp_path / "in" / "x.png").write_bytes(b"")
    for name in ("empty", "bare"):
        (tmp_path / name).mkdir()
    (tmp_path / "bare" / "a.png").write_bytes(PNG)
    result = run("prepare-data", *words, "--out", "out")
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert said in result.stderr.splitlines()[-1]


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda name: not name.startswith(".") and len(name.encode()) < 200
)


@given(st.dictionaries(names, st.text(max_size=80), min_size=1, max_size=6))
@example({"\\": "a caption"})
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_names_and_captions_come_out_or_are_reported(tmp_path_factory, captions):
    root = tmp_path_factory.mktemp("names")
    (root / "in").mkdir()
    for index, (name, caption) in enumerate(captions.items()):
        (root / "in" / f"{name}.png").write_bytes(encoded(picture(index, 20, 16)))
        (root / "in" / f"{name}.txt").write_bytes(caption.encode("utf-8", "surrogatepass"))
    out = root / "out"
    sources: dict[str, str] = {}
    try:
        prepare(root / "in", out, resolution=8, duplicates="keep")
    except ValueError as error:  # nothing was kept
        # A backslash is read as Windows reads it, so a name may be a path that leaves the source.
        assert all(
            not text.strip() or "\0" in text or "\ufeff" in text or "\\" in name for name, text in captions.items()
        ), error
        assert f"all {len(captions)} rows were rejected:" in str(error)
        return
    dataset = ShardDataset(out)
    for i in range(len(dataset)):
        sources[dataset.sample(i).facts["source"].removesuffix(".png")] = dataset.sample(i).caption
    # A line ends at "\n" and nowhere else: `splitlines` would also cut at U+0085.
    lost = [json.loads(line) for line in (out / "rejected.jsonl").read_text().split("\n") if line]
    assert len(sources) + len(lost) == len(captions)
    assert all(row["reason"] in REASONS for row in lost)
    for name, caption in sources.items():
        assert caption == captions[name].removeprefix("\ufeff").strip()
