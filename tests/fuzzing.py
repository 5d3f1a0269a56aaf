"""Hostile inputs of every kind that a command reads, made by hypothesis, and what a command may do with them.

A case is a command with the files that it reads. The files begin as valid ones and are changed: values of another kind,
missing keys, other bytes, cut ends. `fault` runs a case and says what it did wrong.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import shutil
import tarfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from typer.testing import CliRunner

from flashdmd_cli.cli.app import app
from flashdmd_cli.runs.files import CONTROL
from flashdmd_cli.runs.recipe import list_recipes, recipe_keys, recipe_path
from flashdmd_cli.runs.yaml_text import parse_yaml

from .messy import encoded, picture

ALLOWED = (0, 2, 3)
"""Exit codes of commands that can do their work, or whose input is wrong."""
ATOMS = (
    "", " ", "null", "~", "true", "0", "-1", "1e999", ".nan", "-.inf", "9" * 25, "9" * 5000, "0x" + "f" * 5000, "1e5",
    "2020-99-99", "{}", "[]", "[" * 2000, '{"a":' * 1000, "!!python/object/apply:os.system [touch executed]", "!!int x",
    "!!binary x", "&a [*a]", "*a", "<<: 1", "? [a]", "../../escaped", "/etc/passwd", "C:\\x", "a/b", "x" * 300, "\0",
    "\x1b[31m\x07", "\u202e", "\ufeff", "\r\n", "'", '"', "%s", "{0}", "embedded", "shapes-sdxl", "cuda:99", "a: b",
    "\ud800", "é", "日本", "🙂", "-", "--", "=", "<script>alert(1)</script>",
)  # fmt: skip
VALUES = (
    None, True, False, 0, 1, -1, 2**70, -(2**70), 0.5, 1e308, float("nan"), float("inf"), "", "x", [], {}, [[]],
    {"": {}}, [None], {"a": {"b": {}}}, "../../escaped", "/etc/passwd", "\x1b[31m", "\0", "\ud800",
    "x" * 5000, list(range(100)),
)  # fmt: skip


@dataclass
class Case:
    """A command line, and the files that it reads, by their names in the working folder."""

    words: list[str]
    files: dict[str, bytes] = field(default_factory=dict)


@st.composite
def changed_bytes(draw: DrawFn, data: bytes) -> bytes:
    """Bytes with a few changes: overwritten, inserted, deleted or repeated ranges, or a cut end."""
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        match draw(st.integers(0, 4)):
            case 0:
                data = data[:start] + draw(st.binary(max_size=12)) + data[end:]
            case 1:
                data = data[:start] + draw(st.sampled_from(ATOMS)).encode("utf-8", "surrogatepass") + data[start:]
            case 2:
                data = data[:start] + data[end:]
            case 3:
                data = data[:end] + data[start:]
            case 4:
                data = data[:start]
    return data


@st.composite
def changed(draw: DrawFn, document: Any) -> Any:
    """A copy of nested lists and mappings with a few values replaced, deleted or added."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        if not places:
            return draw(_values())
        parent, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(st.integers(0, 3)):
            case 0:
                del parent[key]
            case 1 | 2:
                parent[key] = draw(_values())
            case 3 if isinstance(parent, dict):
                parent[draw(st.sampled_from(ATOMS))] = draw(_values())
            case _:
                parent[key] = draw(st.sampled_from(ATOMS))
    return document


def _values() -> SearchStrategy[Any]:
    return st.sampled_from(VALUES).map(copy.deepcopy)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with each of its keys, at any depth."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)


@st.composite
def json_file(draw: DrawFn, document: Any) -> bytes:
    """A changed document as JSON, its bytes changed as well in one of four cases."""
    data = json.dumps(draw(changed(document)), ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    return draw(changed_bytes(data)) if draw(st.integers(0, 3)) == 0 else data


MANIFEST = {
    "schema_version": 2, "kind": "distill", "family": "sdxl", "step": 3, "images_seen": 12, "seed": 0,
    "grid": {"scheduler": "LCMScheduler", "config": {"original_inference_steps": 50}},
    "updates": {"student": 3, "fake": 3, "discriminator": 3, "preference": 0},
    "teacher": {"id": "x", "family": "sdxl", "hash": "ab", "path": "teacher", "parts": {"unet": "ab"}},
    "parents": [{"path": "../data", "sha256": "ab"}], "files": [{"path": "a.tar", "size": 1, "sha256": "ab"}],
    "weights": {"form": "full", "dtype": "float32", "average": "ema"}, "recipe": {"name": "x", "train": {"batch": 4}},
    "collection": {"seen": 3, "kept": 2, "rejected": {"duplicate": 1}, "members": {"png": "x"}, "source": "folder x",
                   "listing": "ab", "content": "cd", "cache": {"what": ["text"], "teacher": "x", "encoders": "ab"}},
    "versions": {"flashdmd": "0.1"}, "hardware": {"machine": "x", "cores": 2}, "warnings": ["w"], "wall_seconds": 1.5,
}  # fmt: skip
RESULTS = {
    "schema": 1, "name": "one", "suite": {"name": "s", "version": 1, "sha256": "ab", "prompts": 2, "pictures": 2},
    "pictures": {"measured": 2}, "steps": 4, "nfe": 4, "seed": 0, "pictures_in": "pictures/ab", "versions": {},
    "metrics": {
        "clip": {"value": 0.3, "low": 0.2, "high": 0.4, "n": 2, "version": 1, "direction": "higher", "provenance": {},
                 "heading": "CLIP", "digits": 4, "scale": "x", "parts": {"a": {"value": 1.0, "low": 0.5, "high": 1.5}}},
    },
}  # fmt: skip
SAMPLE = {"id": "1", "seed": 0, "file": "00000.png", "sha256": "ab", "prompt": "a", "group": None,
          "scores": {"clip": 0.3}}  # fmt: skip


@st.composite
def manifests(draw: DrawFn) -> Case:
    """Commands that read the manifest of a folder."""
    words = draw(st.sampled_from([
        ["inspect", "in"], ["inspect", "in", "--json"], ["inspect", "in", "--quiet"],
        ["distill", "--recipe", "shapes-4step", "--data", "in", "--out", "out"],
        ["export", "--from", "in", "--out", "out"], ["sample", "--from", "in", "--prompt", "x", "--out", "out"],
        ["align", "--from", "in", "--dry-run"], ["prepare-data", "p.txt", "--out", "out"],
    ]))  # fmt: skip
    folder = "out" if words[0] == "prepare-data" else "in"
    document = draw(changed(MANIFEST | {"kind": draw(st.sampled_from(["distill", "data", "align", "reward"]))}))
    data = json.dumps(document).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 3)) == 0:
        data = draw(changed_bytes(data))
    return Case(words, {f"{folder}/manifest.json": data, f"{folder}/a.tar": b"x", "p.txt": b"a\n"})


@st.composite
def results(draw: DrawFn) -> Case:
    """Commands that read results of evaluations, of ours and of benchmarks, and suites."""
    match draw(st.integers(0, 3)):
        case 0:
            files = {name: draw(json_file(RESULTS)) for name in ("a/results.json", "b/results.json")}
            files["a/samples.jsonl"] = draw(json_file(SAMPLE)) + b"\n" + draw(json_file(SAMPLE | {"id": "2"}))
            out = draw(st.sampled_from([[], ["--out", "out/x.html"], ["--out", "out/c"], ["--format", "latex"]]))
            return Case(["eval", "compare", "a", "b", *out], files)
        case 1:
            row = {"tag": "two", "correct": True, "filename": "x/00000/samples/0000.png", "prompt": "a"}
            data = draw(json_file(row)) + b"\n" + draw(json_file(row))
            return Case(["eval", "read", "geneval", "r.jsonl", "--out", "out"], {"r.jsonl": data})
        case 2:
            data = draw(json_file([{"question_id": 0, "answer": 0.5}]))
            return Case(["eval", "read", "t2i-compbench", "r.json", "--out", "out"], {"r.json": data})
        case _:
            return Case(["eval", "read", "dpg", "r.txt", "--out", "out"],
                        {"r.txt": draw(changed_bytes(b"x.png: 0.5\nDPG-Bench score: 50.0\n"))})  # fmt: skip


@st.composite
def recipes(draw: DrawFn) -> Case:
    """Commands that read a YAML file: recipes, presets and suites."""
    name = draw(st.sampled_from(list_recipes()))
    text = recipe_path(name).read_text(encoding="utf-8")
    if draw(st.booleans()):
        text = yaml.safe_dump(draw(changed(parse_yaml(text))), allow_unicode=True)
    data = draw(changed_bytes(text.encode("utf-8", "surrogatepass")))
    words = draw(st.sampled_from([
        ["recipes", "show", "r.yaml"], ["recipes", "show", "reward/r.yaml"], ["recipes", "show", "r.yaml", "--json"],
        ["distill", "--dry-run", "--recipe", "r.yaml"], ["recipes", "copy", "r.yaml", "out/copy.yaml"],
        ["sample", "--prompt", "x", "--model", "r.yaml", "--out", "out"],
        ["eval", "--suite", "r.yaml", "--from", "nowhere", "--out", "out"],
    ]))  # fmt: skip
    return Case(words, {"r.yaml": data, "reward/r.yaml": data})


@st.composite
def sets(draw: DrawFn) -> Case:
    """Values of `--set`."""
    words = draw(st.sampled_from([["distill", "--dry-run"], *(["recipes", "show", name] for name in list_recipes())]))
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from([*recipe_keys(), "", "train", "train.", "a.b.c", "nothing", "align.beta"]))
        numbers = st.one_of(st.integers(), st.floats()).map(str)
        value = draw(st.one_of(st.sampled_from(ATOMS), st.text(max_size=20), numbers))
        words += ["--set", f"{key}={value}" if draw(st.integers(0, 9)) else value]
    return Case([word.replace("\0", "") for word in words])  # no argument of a process contains NUL


@st.composite
def prompts(draw: DrawFn) -> Case:
    """Prompt files of every format."""
    suffix = draw(st.sampled_from([".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet", "", ".pkl"]))
    texts = ["a cat", *draw(st.lists(st.sampled_from(ATOMS), max_size=4))]
    match suffix:
        case ".json":
            data = draw(json_file([*texts, {"prompt": "x", "id": 1}]))
        case ".jsonl":
            data = b"\n".join(draw(json_file({"prompt": text})) for text in texts)
        case ".csv" | ".tsv":
            data = _csv([{"prompt": text, "score": "0.5"} for text in texts], "\t" if suffix == ".tsv" else ",")
        case ".parquet":
            data = _parquet({"prompt": [text.encode("utf-8", "replace").decode() for text in texts]})
        case _:
            data = "\n".join(texts).encode("utf-8", "surrogatepass")
    name = f"prompts{suffix}"
    words = draw(st.sampled_from([
        ["prepare-data", name, "--out", "out"], ["prepare-data", name, "--out", "out", "--format", "prompts"],
        ["sample", "--prompts", name, "--from", "nowhere", "--out", "out"],
        ["prepare-data", name, "--out", "out", "--filter", "score>=0.4"],
        ["prepare-data", name, "--out", "out", "--caption-column", draw(st.sampled_from(ATOMS)).replace("\0", "")],
    ]))  # fmt: skip
    return Case(words, {name: draw(changed_bytes(data))})


@st.composite
def tables(draw: DrawFn) -> Case:
    """Tables with pictures, or that name pictures."""
    image = draw(changed_bytes(_image(draw)))
    names = [draw(st.sampled_from(["a.png", *ATOMS])) for _ in range(3)]
    texts = [draw(st.sampled_from(["a cat", *ATOMS])) for _ in range(3)]
    files = {"in/a.png": image}
    match draw(st.integers(0, 3)):
        case 0:
            plain = [text.encode("utf-8", "replace").decode() for text in texts]
            files["in/t.parquet"] = draw(changed_bytes(_parquet({"image": [image] * 3, "text": plain})))
        case 1:
            rows = [{"file_name": name, "text": text} for name, text in zip(names, texts, strict=True)]
            files["in/metadata.csv"] = draw(changed_bytes(_csv(rows, draw(st.sampled_from(",;")))))
        case 2:
            rows = [{"file_name": name, "text": text} for name, text in zip(names, texts, strict=True)]
            files["in/metadata.jsonl"] = b"\n".join(draw(json_file(row)) for row in rows)
        case _:
            images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
            captions = [{"id": i, "image_id": i, "caption": text} for i, text in enumerate(texts)]
            files["in/captions_val.json"] = draw(json_file({"images": images, "annotations": captions}))
    return Case(["prepare-data", "in", "--out", "out", "--resolution", "16"], files)


@st.composite
def tars(draw: DrawFn) -> Case:
    """Webdataset tars with hostile names, links, and changed pictures and bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=draw(st.sampled_from([0, 1, 2]))) as tar:
        for number in range(draw(st.integers(1, 3))):
            key = draw(st.sampled_from([f"{number:04d}", *ATOMS]))[:80].encode("utf-8", "replace").decode()
            for kind, data in (
                (draw(st.sampled_from(["png", "jpg", "webp", "txt", "", "x"])), draw(changed_bytes(_image(draw)))),
                ("txt", draw(st.sampled_from(["a cat", *ATOMS])).encode("utf-8", "surrogatepass")),
                ("json", draw(json_file({"original_width": 5, "original_height": 7, "aesthetic": 6.5}))),
            ):
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size = len(data)
                if draw(st.integers(0, 9)) == 0:
                    info.type = draw(st.sampled_from([b"1", b"2", b"3", b"5", b"6"]))
                    info.size, info.linkname = 0, "/etc"
                tar.addfile(info, io.BytesIO(data))
    words = ["prepare-data", "in.tar", "--out", "out", "--resolution", "16"]
    words += draw(st.sampled_from([[], ["--filter", "aesthetic>=6"], ["--duplicates", "near"], ["--encode", "jpg"]]))
    return Case(words, {"in.tar": draw(changed_bytes(stream.getvalue()))})


def _image(draw: DrawFn) -> bytes:
    """A small picture in one of several formats."""
    mode = draw(st.sampled_from(["RGB", "L", "P", "CMYK", "1"]))
    kinds = ["jpg", "tif"] if mode == "CMYK" else ["png", "gif", "bmp", "tif", "webp", "jpg"]
    kind = draw(st.sampled_from(kinds))
    mode = "RGB" if kind == "jpg" and mode in "P1" else mode
    return encoded(picture(draw(st.integers(0, 3)), 20, 18).convert(mode), kind)


def _csv(rows: list[dict[str, str]], delimiter: str) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode("utf-8", "surrogatepass")


def _parquet(columns: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


KINDS: dict[str, Callable[[], SearchStrategy[Case]]] = {
    "manifests": manifests, "recipes": recipes, "sets": sets, "prompts": prompts, "tables": tables, "tars": tars,
    "results": results,
}  # fmt: skip


def _listing(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file, without those in the result folder."""
    found = {}
    for folder, names, files in os.walk(root):
        if Path(folder) == root / "work":
            names[:] = [name for name in names if name != "out"]
        for name in files:
            state = os.lstat(os.path.join(folder, name))
            found[os.path.join(folder, name)] = (state.st_size, state.st_mtime_ns)
    return found


def fault(case: Case, root: Path) -> str | None:
    """Run a case in the folder `root/work`; what the command did wrong, or None.

    It may end with one of `ALLOWED`, prints no control characters, and leaves everything but `--out` as it was.
    """
    work = root / "work"
    shutil.rmtree(work, ignore_errors=True)
    for name, data in case.files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(data)
    (work / "out").mkdir(parents=True, exist_ok=True)
    before, here = _listing(root), os.getcwd()
    os.chdir(work)
    try:
        done = CliRunner().invoke(app, case.words)
    finally:
        os.chdir(here)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        last = traceback.extract_tb(done.exception.__traceback__)[-1]
        return f"{type(done.exception).__name__}: {done.exception} at {last.filename}:{last.lineno}"
    if done.exit_code not in ALLOWED or "Traceback" in done.output:
        return f"exit code {done.exit_code}: {done.stderr.strip()[-300:]}"
    if found := CONTROL.search(done.output.replace("\r", "")):
        return f"prints the control character {found[0]!r}"
    after = _listing(root)
    if before != after:
        other = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        return f"wrote outside of --out: {other}"
    return None
