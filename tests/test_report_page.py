"""`report.html`: one file within its size, everything escaped, with the right rows, intervals and prompts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from hashlib import sha256
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flashdmd_cli.evaluation import intake, thumbnails
from flashdmd_cli.evaluation.chosen import changed, extremes, spread
from flashdmd_cli.evaluation.distributions import distribution
from flashdmd_cli.evaluation.report_page import read_result, write_evaluation_report
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.manifest import damaged_files, read_manifest
from flashdmd_cli.workflows.compare import compare
from flashdmd_cli.workflows.evaluate import evaluate

from .test_cli import fails, run, shipped, world  # noqa: F401
from .test_compare import BASE, BETTER, result
from .test_distill import sam_folder  # noqa: F401
from .test_page import drawn, external

HOSTILE = '<script>alert(1)</script><img src="http://evil.example/x.png" onerror="alert(2)"> `code` \ud800 \u202e'


def with_pictures(folder: Path, size: int = 32, prompts: dict[str, str] | None = None) -> Path:
    """Draw noise for each sample of a result, and note file, hash and prompt as `eval` does."""
    pictures = folder / "pictures" / "0f3a"
    pictures.mkdir(parents=True)
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    random = np.random.default_rng(0)
    for i, line in enumerate(lines):
        path = pictures / f"{i:05d}.png"
        Image.fromarray(random.integers(0, 255, (size, size, 3), np.uint8)).save(path, compress_level=0)
        prompt = (prompts or {}).get(line["id"], f"prompt number {line['id']}")
        line |= {"file": path.name, "sha256": sha256(path.read_bytes()).hexdigest(), "prompt": prompt}
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    change(folder, pictures_in="moved/away/0f3a")
    return folder


def change(folder: Path, **changes: Any) -> None:
    document = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(document | changes))


def page(folder: Path) -> str:
    return write_evaluation_report(folder).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    return next(part for part in text.split("<section>") if part.startswith(f"<h2>{title}"))


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))


def test_eval_writes_the_page_beside_its_results(world: Path) -> None:  # noqa: F811
    few: dict[str, Any] = {"limit": 4, "sampler": "stochastic", "steps": 1, "metrics": ["exact"]}
    found = evaluate("shapes-sdxl", "e", **few)
    text = Path("e/report.html").read_text(encoding="utf-8")
    assert found.name == found.document["name"] == "shapes-sdxl-stochastic-1"
    value = found.document["metrics"]["exact"]
    assert f"{value['value']:.4f} {value['low']:.4f} to {value['high']:.4f} 4" in plain(text)
    guided = found.document["guidance"] != 1
    assert found.document["nfe"] == 1 + guided and found.document["suite"]["published"] is False
    assert "pictures of 4 prompts, the first of shapes1k" in text and found.suite.rows[0].prompt in text
    assert "hardware.device cpu" in plain(section(text, "Provenance")) and external(text) == []
    manifest = read_manifest(Path("e"))
    assert "report.html" in [each.path for each in manifest.files] and damaged_files(Path("e"), manifest) == []
    evaluate("shapes-sdxl", "e", **few | {"metrics": None}, generate_only=True)
    assert not Path("e/report.html").exists()  # it was of another result


def test_page_is_one_file_that_escapes_what_comes_from_outside(tmp_path: Path) -> None:
    a = with_pictures(result(tmp_path / "a", BASE), prompts={"0": HOSTILE, "1": "very " * 2000, "7": "a\nb\0"})
    change(a, name="<b>bold</b>", skipped={"mps": "no <i>weights</i>"})
    text = page(a)
    assert external(text) == [] and not re.search(r"<script|<b>|<i>|<img src=.http", text)
    assert "\u202e" not in text  # it would turn what follows on the page
    assert "&lt;script&gt;" in text and "no &lt;i&gt;weights&lt;/i&gt;" in text and "(10,000 characters)" in text
    # What a browser would do in spite of all this, the page forbids.
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in unescape(text)
    assert {each.name for each in a.iterdir()} == {"report.html", "results.json", "samples.jsonl", "pictures"}


def test_values_stand_beside_published_ones(tmp_path: Path) -> None:
    a = result(tmp_path / "a", BASE)
    found = read_result(a).metrics["clip"]
    text = section(page(a), "Values")
    assert f"clip ↑ higher is better; cosine {found['value']:.4f} {found['low']:.4f} to {found['high']:.4f} 8" in plain(
        text
    )
    assert "fid ↓" in text and "lower is better" in text
    rows = section(page(a), "Beside published values").split("<tr")
    turbo = next(row for row in rows if "SDXL-Turbo" in row)
    assert turbo.startswith(' class="published"') and plain(turbo).endswith("SDXL-Turbo published, Table 1 4 0.3302 ")
    assert sum(row.startswith(' class="published"') for row in rows) == 27 and "fid" not in "".join(rows)
    change(a, pictures={"measured": 8})
    assert "SDXL-Turbo" not in page(a)


def test_left_out_and_skipped_are_named(tmp_path: Path) -> None:
    a = result(tmp_path / "a", BASE)
    change(
        a,
        skipped={"mps": "w.pt (4 GB) is not on this machine"},
        warnings=["fid: unreliable from 8 pictures"],
        pictures={
            "left_out": {"missing": {"num": 7, "files": list("abcdefg")}},
            "notes": {"black": {"num": 1, "files": ["b.png"]}},
        },
    )
    text = page(a)
    assert "fid: unreliable from 8 pictures" in section(text, "Values")
    left = plain(section(text, "Left out and noted"))
    for line in ("mps not measured: w.pt (4 GB)", "7 pictures (a, b, c, d, e, ...) left out: missing", "black"):
        assert line in left


def test_comparison_shows_the_most_changed_prompt(tmp_path: Path) -> None:
    other = dict(BETTER) | {("3", 0): BASE["3", 0] + 0.5, ("5", 0): BASE["5", 0] - 0.4}
    a, b = with_pictures(result(tmp_path / "a", BASE)), with_pictures(result(tmp_path / "b", other))
    document, _ = compare([a, b], out=tmp_path / "both")
    text = (tmp_path / "both" / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "both" / "comparison.json").read_text())["rows"] == document["rows"]
    assert (tmp_path / "both" / "table.md").read_text().startswith("Suite coco10k")
    changed_ = section(text, "Most changed")
    most, least = (plain(each) for each in re.split("<h3>", changed_)[1:3])
    assert "clip: b is better for 5 of 8 prompts" in most and "worse for 3 of 8" in least
    assert "a: 0.3300 b: 0.8300 (+0.5) prompt number 3" in most
    assert most.index("prompt number 3") == most.index("prompt number")
    assert least.index("prompt number 5") == least.index("prompt number") and "(-0.4)" in least
    assert section(text, "Side by side").count("<img") == 16
    differences = plain(section(text, "Differences from a"))
    paired = document["rows"][1]["values"]["clip"]["paired"]
    assert f"{paired['value']:+.3g} {paired['low']:+.3g} to {paired['high']:+.3g}" in differences
    assert "undecided" in differences and "not paired" in differences
    assert external(text) == [] and "published, Table 1, 6" in section(text, "Beside published")


def test_out_of_a_comparison_is_a_file_or_a_folder_of_its_own(tmp_path: Path) -> None:
    a, b = result(tmp_path / "a", BASE), result(tmp_path / "b", BETTER)
    assert run("eval", "compare", a, b, "--out", tmp_path / "cmp-0.5", "--format", "csv").exit_code == 0
    assert {each.name for each in (tmp_path / "cmp-0.5").iterdir()} >= {"report.html", "table.csv", "comparison.json"}
    assert run("eval", "compare", a, b, "--out", tmp_path / "p.html").exit_code == 0
    assert (tmp_path / "p.html").read_text().startswith("<!doctype html>")
    assert ">better<" in (tmp_path / "p.html").read_text()
    before = sorted(a.iterdir())
    fails(run("eval", "compare", a, b, "--out", a), 2, "is not empty, and holds no comparison result")
    assert sorted(a.iterdir()) == before


def test_many_large_pictures_stay_within_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {(str(i), 0): float(i) for i in range(24)}
    a = with_pictures(result(tmp_path / "a", scores), size=256)
    b = with_pictures(result(tmp_path / "b", {key: -value for key, value in scores.items()}), size=256)
    reads: list[Path] = []
    monkeypatch.setattr(thumbnails, "look", lambda path: (reads.append(path), intake.look(path))[1])
    assert 100_000 < write_evaluation_report(a).stat().st_size < 2_000_000
    assert len(reads) == len(set(reads)) == 12 + 12 - 6  # evenly spaced, best, worst; those in both once
    monkeypatch.setattr(thumbnails, "BUDGET", 200_000)
    compare([a, b], out=tmp_path / "p.html")
    text = (tmp_path / "p.html").read_text()
    assert text.count("<img ") == 2 * (12 + 3)  # no prompt is better
    assert sum(map(len, re.findall(r'data:image/[^"]*', text))) <= 200_000


def test_pictures_that_cannot_be_shown_say_why(tmp_path: Path) -> None:
    a = with_pictures(result(tmp_path / "a", BASE))
    pictures = a / "pictures" / "0f3a"
    (pictures / "00000.png").unlink()
    Image.new("RGB", (32, 32)).save(pictures / "00001.png")
    (pictures / "00002.png").write_bytes(b"torn")
    lines = [json.loads(line) for line in (a / "samples.jsonl").read_text().splitlines()]
    secret = tmp_path / "secret.png"
    Image.new("RGB", (32, 32)).save(secret)
    lines[3] |= {"file": "../../../secret.png", "sha256": sha256(secret.read_bytes()).hexdigest()}
    (a / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = section(page(a), "Pictures")
    assert shown.count("<img") == 4
    for why in ("changed since it was measured", "not in the folder of the pictures"):
        assert shown.count(why) == 1
    change(a, pictures_in=None)
    assert section(page(a), "Pictures").count("no picture") == 8


def test_choice_of_prompts() -> None:
    keys = [(str(i), 0) for i in range(10)]
    assert spread(keys, 4) == [keys[0], keys[2], keys[5], keys[7]] and spread(keys, 20) == keys
    scores = {key: float(int(key[0]) % 4) for key in keys}
    best, worst = extremes(scores, 3, True)
    assert [key[0] for key in best] == ["3", "7", "2"] and [key[0] for key in worst] == ["0", "4", "8"]
    assert extremes(scores, 3, False) == (worst, best) and extremes(dict.fromkeys(keys, 1.0), 3, True) == ([], [])
    # Prompt x gains on the mean over its seeds, though its first seed loses; y has no partner for seed 1.
    base = {("x", 0): 1.0, ("x", 1): 1.0, ("y", 0): 1.0, ("y", 1): 1.0, ("z", 0): 1.0}
    ours = {("x", 0): 0.5, ("x", 1): 3.0, ("y", 0): 0.0, ("z", 0): 1.0}
    found = changed(ours, base, 2, True)
    assert [(each.key, each.difference) for each in found.better] == [(("x", 1), 0.75)]
    assert [(each.key, each.difference) for each in found.worse] == [(("y", 0), -1.0)]
    assert (found.num_better, found.num_worse, found.num_equal) == (1, 1, 1)
    lower = changed(ours, base, 2, False)
    assert [(each.key, each.difference) for each in lower.better] == [(("y", 0), -1.0)]


def test_distribution_of_scores() -> None:
    def text(title: str, scores: dict[str, list[float]]) -> str:
        plot = distribution(title, scores)
        assert plot is not None
        return drawn(plot)

    clip = text("clip ↑", {"a<b": [0.0, 0.25, 0.5, 1.0], "empty": [], "c": [0.5]})
    assert clip.count("<svg") == 2 and "a&lt;b: mean 0.4375, median 0.3750" in clip
    heights = [float(each) for each in re.findall(r'class="bar"[^>]* height="([\d.]+)"', clip)]
    assert heights == [64.0] * 5
    shares = text("exact ↑", {"a": [1.0, 0.0, 1.0, 1.0]})
    assert "75.0% are 1 (3 of 4)" in shares and 'class="bar" x="0" y="0" width="240.0"' in shares
    assert distribution("x", {"a": []}) is None and "mean 2.0000" in text("x", {"a": [2.0, 2.0]})


def test_results_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = []
    for where in ("one", "two"):
        (tmp_path / where).mkdir()
        folders.append(result(tmp_path / where / "same", BASE))
    document, _ = compare(folders, paper=False)
    assert [row["name"] for row in document["rows"]] == [str(folder) for folder in folders]
    with pytest.raises(UsageError, match="--format html"):
        compare(folders, format="html")
    assert replace(read_result(folders[0]), name="x").pictures is None
