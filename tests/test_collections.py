"""Collections as other tools leave them: layouts, links, several captions, companions, advice."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flashdmd_cli.data import chunks, pictures
from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.items import Item, Rejected
from flashdmd_cli.data.reading import Captions, inside
from flashdmd_cli.data.sources import Reading, detect, open_source

from .messy import encoded, picture
from .test_cli import fails, run
from .test_prepare import hashes, prepared
from .test_sources import PNG, captions, contents, write_tar

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def img2dataset(folder: Path, num: int = 3) -> None:
    """What `img2dataset --output_format files` leaves: pictures in numbered folders, a table and counts beside each."""
    keys = [f"00000000{i}" for i in range(num)]
    for i, key in enumerate(keys):
        write(folder / "00000" / f"{key}.jpg", encoded(picture(i), "jpg"))
        write(folder / "00000" / f"{key}.txt", f"caption {i}")
        facts = {
            "caption": f"caption {i}",
            "key": key,
            "status": "success",
            "original_width": 800,
            "aesthetic": 5.0 + i,
        }
        write(folder / "00000" / f"{key}.json", json.dumps(facts))
    rows = {"url": ["http://x/y.jpg"] * num, "caption": [f"caption {i}" for i in range(num)], "key": keys}
    pq.write_table(pa.table(rows), folder / "00000.parquet")
    write(folder / "00000_stats.json", '{"count": 3}')


def hub_table(path: Path, first: int, num: int) -> None:
    """A parquet file of a data set on the hub, with its `Image` and `Value("string")` columns."""
    images = pa.array([{"bytes": encoded(picture(i)), "path": f"{i}.png"} for i in range(first, first + num)])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "text": [f"row {i}" for i in range(first, first + num)]}), path)


def test_img2dataset_files(tmp_path):
    img2dataset(tmp_path / "in")
    words = ("prepare-data", tmp_path / "in", "--out", tmp_path / "out", "--resolution", 16, "--json")
    told = prepared(run(*words, "--filter", "aesthetic>=6"))
    assert (told["kept"], told["rejected"]) == (2, {"aesthetic>=6": 1, "other_file": 2})
    found = contents(open_source(tmp_path / "in", Reading()))
    item = found["00000/000000001.jpg"]
    assert isinstance(item, Item) and item.caption == "caption 1" and item.columns["original_width"] == 800
    # Its output_format=parquet, and a table alone, of which nothing can be made.
    pq.write_table(
        pa.table({"jpg": [PNG], "caption": ["in the table"], "key": ["0"]}), write(tmp_path / "p/0.parquet", b"")
    )
    assert captions(open_source(tmp_path / "p", Reading())) == {"0.parquet#0": "in the table"}
    (tmp_path / "in" / "00000.parquet").rename(write(tmp_path / "table" / "00000.parquet", b""))
    with pytest.raises(DataError, match="no such column") as caught:
        list(open_source(tmp_path / "table", Reading()).rows())
    assert "url, caption, key" in caught.value.hint
    with pytest.raises(DataError, match="addresses") as caught:
        detect(tmp_path / "table" / "00000.parquet")
    assert "img2dataset" in caught.value.hint


def test_a_clone_of_a_hub_data_set(tmp_path):
    root = tmp_path / "clone"
    for place, first, num in (("train-00000-of-00002-ab", 0, 3), ("train-00001-of-00002-cd", 3, 2)):
        hub_table(root / "data" / f"{place}.parquet", first, num)
    write(root / "README.md", "# a card")
    write(root / "assets" / "teaser.png", PNG)  # belongs to the card
    hub_table(root / ".cache" / "left-over.parquet", 9, 1)
    source = open_source(root, Reading())
    assert source.kind == "parquet"
    assert captions(source) == {
        f"data/train-0000{i // 3}-of-00002-{'ab' if i < 3 else 'cd'}.parquet#{i % 3}": f"row {i}" for i in range(5)
    }
    words = ("prepare-data", root, "--resolution", 16, "--shard-size", 2, "--out")
    assert run(*words, tmp_path / "one").exit_code == run(*words, tmp_path / "two", "--nproc", 2).exit_code == 0
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two") != {}
    # Cloned without the large files: said so, in place of "broken".
    write(root / "data" / "train-00001-of-00002-cd.parquet", POINTER)
    write(tmp_path / "loose" / "a.png", POINTER)
    assert list(captions(open_source(root, Reading())).values()) == ["row 0", "row 1", "row 2", "lfs_pointer"]
    fails(run("prepare-data", tmp_path / "loose", "--captions-from-names", "--out", tmp_path / "x", "--resolution", 16,
              "--quiet"), 3, "git lfs pull")  # fmt: skip


def test_tars_below_folders(tmp_path):
    write_tar(write(tmp_path / "train" / "0.tar", b""), [("a.png", PNG), ("a.txt", b"one")])
    write_tar(write(tmp_path / "test" / "0.tar", b""), [("a.png", PNG), ("a.txt", b"two")])
    assert captions(open_source(tmp_path, Reading())) == {"test/0.tar:a": "two", "train/0.tar:a": "one"}
    write(tmp_path / "more" / "b.png", PNG)
    assert detect(tmp_path) == "webdataset"  # no caption, so it is no part of the collection
    write(tmp_path / "more" / "b.txt", "three")
    with pytest.raises(DataError, match="pictures and") as caught:
        detect(tmp_path)
    assert "--format folder or webdataset" in caught.value.hint


def test_links_inside_the_hubs_cache_are_followed_and_no_others(tmp_path):
    repository = tmp_path / "hub" / "datasets--owner--name"
    snapshot = repository / "snapshots" / "0123abc"
    (snapshot / "train").mkdir(parents=True)
    outside = write(tmp_path / "hub" / "models--other" / "blobs" / "secret", PNG)

    def linked(name: str, data: bytes) -> None:
        blob = write(repository / "blobs" / name.encode().hex(), data)
        os.symlink(os.path.relpath(blob, (snapshot / name).parent), snapshot / name)

    linked("train/a.png", PNG)
    linked("train/a.txt", b"from a blob")
    os.symlink(outside, snapshot / "train" / "leak.png")
    write(snapshot / "train" / "leak.txt", "leak")
    expected = {"train/a.png": "from a blob", "train/leak.png": "link"}
    assert captions(open_source(snapshot, Reading())) == expected
    os.symlink(snapshot, tmp_path / "short")
    assert captions(open_source(tmp_path / "short", Reading())) == expected
    with pytest.raises(Rejected, match="link"):
        inside(repository / "snapshots", "0123abc/train/leak.png")
    # What a link is called says what it is; the blob has no suffix.
    linked("metadata.jsonl", b'{"file_name": "train/a.png", "text": "by its table"}')
    assert captions(open_source(snapshot, Reading())) == {"train/a.png": "by its table"}
    linked("prompts.json", b'["one", "two"]')
    assert list(captions(open_source(snapshot / "prompts.json", Reading())).values()) == ["one", "two"]
    hub_table(tmp_path / "t.parquet", 0, 1)
    linked("t.parquet", (tmp_path / "t.parquet").read_bytes())
    assert captions(open_source(snapshot / "t.parquet", Reading())) == {"t.parquet#0": "row 0"}
    # Anywhere else a link that leads out is refused, and nothing kept says what to do.
    (tmp_path / "farm").mkdir()
    os.symlink(snapshot / "train" / "a.png", tmp_path / "farm" / "a.png")
    fails(run("prepare-data", tmp_path / "farm", "--out", tmp_path / "x", "--resolution", 16, "--quiet"), 3, "1 link",
          "are not followed")  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_metadata_below_split_folders(tmp_path, kind):
    for split, names in (("data/train", ("x.png", "sub\\y.png")), ("data/validation", ("x.png",))):
        rows = [{"file_name": name, "text": f"{split} {name}", "aesthetic": 6} for name in names]
        table = write(tmp_path / split / f"metadata.{kind}", b"")
        for name in names:
            write(tmp_path / split / name.replace("\\", "/"), PNG)
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), table)
        elif kind == "jsonl":
            table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8-sig")
        else:
            with table.open("w", newline="", encoding="utf-8-sig") as file:
                writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
                writer.writeheader()
                writer.writerows(rows)
    source = open_source(tmp_path, Reading())
    assert source.kind == "imagefolder"
    assert captions(source) == {
        "data/train/x.png": "data/train x.png",
        "data/train/sub/y.png": "data/train sub\\y.png",
        "data/validation/x.png": "data/validation x.png",
    }
    item = contents(source)["data/train/sub/y.png"]
    assert isinstance(item, Item) and item.picture == PNG and int(item.columns["aesthetic"]) == 6


def test_companions_of_a_picture(tmp_path):
    for name in ("a.jpg", "b.png", "c.png", "d.png", "e.png"):
        write(tmp_path / name, PNG)
    write(tmp_path / "a.caption", "as trainers write it")
    write(tmp_path / "b.TXT", "from a camera card")
    write(tmp_path / "c.png.txt", "after the whole name")
    write(tmp_path / "d.txt", " ")
    write(tmp_path / "d.caption", "the txt is empty")
    write(tmp_path / "e.txt", "txt first")
    write(tmp_path / "e.caption", "caption second")
    write(tmp_path / "e.JSON", '{"score": 3}')
    write(tmp_path / "orphan.caption", "lost")
    source = open_source(tmp_path, Reading())
    assert captions(source) == {
        "a.jpg": "as trainers write it", "b.png": "from a camera card", "c.png": "after the whole name",
        "d.png": "the txt is empty", "e.png": "txt first", "orphan.caption": "no_picture",
    }  # fmt: skip
    item = contents(source)["e.png"]
    assert isinstance(item, Item) and item.columns == {"score": 3}
    # The usual companions are not in the listing: data that were prepared before have the same.
    assert [row["source"] for row in source.rows() if "beside" in row] == ["a.jpg", "b.png", "c.png", "d.png", "e.png"]


FIVE = [f"sentence {i}" for i in range(5)]


def several(tmp_path: Path, kind: str) -> Path:
    """Twenty pictures with five captions each (Flickr30k's), as a column of lists or as lists in JSON."""
    names = [f"{i}.png" for i in range(20)]
    if kind == "parquet":
        path = write(tmp_path / "in" / "a.parquet", b"")
        pq.write_table(pa.table({"image": [encoded(picture(i)) for i in range(20)], "caption": [FIVE] * 20}), path)
        return tmp_path / "in"
    for i, name in enumerate(names):
        write(tmp_path / "in" / name, encoded(picture(i)))
        if kind == "folder":
            write(tmp_path / "in" / f"{i}.json", json.dumps({"caption": FIVE}))
    if kind == "csv":
        with (tmp_path / "in" / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["file_name", "Captions"], *([name, json.dumps(FIVE)] for name in names)])
    return tmp_path / "in"


@pytest.mark.parametrize("kind", ["parquet", "folder", "csv"])
def test_of_several_captions_the_first_or_a_drawn_one(tmp_path, kind):
    folder = several(tmp_path, kind)

    def drawn(*words: object, out: str = "out") -> list[str]:
        shown = run("prepare-data", folder, "--out", tmp_path / out, "--resolution", 16, "--shard-size", 7, *words)
        assert shown.exit_code == 0, shown.output
        import tarfile

        texts = []
        for shard in sorted((tmp_path / out).glob("*.tar")):
            with tarfile.open(shard) as tar:
                texts += [tar.extractfile(m).read().decode() for m in tar if m.name.endswith(".txt")]  # type: ignore[union-attr]
        return texts

    assert drawn() == ["sentence 0"] * 20
    fails(run("prepare-data", folder, "--out", tmp_path / "out", "--resolution", 16, "--shard-size", 7, "--caption",
              "random"), 2, "other data")  # fmt: skip
    first = drawn("--caption", "random", out="a")
    assert len(Counter(first)) == 5 and drawn("--caption", "random", "--nproc", 2, out="b") == first
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert drawn("--caption", "random", "--seed", 1, out="c") != first
    rows = [json.loads(json.dumps(row)) for row in open_source(folder, Reading(caption="random")).rows()]
    assert [open_source(folder, Reading(caption="random")).fetch(row).caption for row in rows[:3]] == first[:3]


def test_what_counts_as_several_captions():
    def of(value: Any) -> str:
        return Captions().of({"TEXT": value, "caption": None}, "row")

    assert of(["", " ", "third"]) == "third" and of('["a \\"b\\"", "c"]') == 'a "b"'
    assert of("[a cat]") == "[a cat]" and of('["broken') == '["broken' and of("[1, 2]") == "[1, 2]"
    for nothing in ([], [""], [3], None, 3):
        with pytest.raises(Rejected, match="no_caption"):
            of(nothing)


def test_advice_fits_the_situation(tmp_path):
    write(tmp_path / "bare" / "a.png", encoded(picture(0)))
    write(tmp_path / "table" / "a.png", encoded(picture(0)))
    write(tmp_path / "table" / "metadata.csv", "file_name,alt\na.png,x\n")
    write_tar(write(tmp_path / "tars" / "a.tar", b""), [("a.png", PNG)])
    write(tmp_path / "heic" / "a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    write(tmp_path / "heic" / "a.txt", "a caption")
    for words, code, said, unsaid in (
        (["bare"], 3, "--captions-from-names", "--caption-column"),
        (["bare", "--caption-column", "alt"], 3, "alt", "--captions-from-names"),
        (["table"], 3, "--caption-column", "--captions-from-names"),
        (["tars"], 3, "--caption-column", "--captions-from-names"),
        (["heic"], 3, "pillow-heif", "rejected.jsonl"),
        (["table", "--captions-from-names"], 2, "--captions-from-names: has no effect", "caption-column"),
        (["bare", "--image-column", "jpg"], 2, "--image-column: has no effect", "caption-column"),
        (["bare", "--caption", "longest"], 2, "first, random", "caption-column"),
    ):
        out = tmp_path / "-".join(["out", *words])
        line = run("prepare-data", tmp_path / words[0], *words[1:], "--resolution", 16, "--quiet", "--out", out)
        fails(line, code, said)
        assert unsaid not in line.stderr


def test_no_row_ends_a_preparation(tmp_path, monkeypatch):
    for i in range(4):
        write(tmp_path / "in" / f"{i}.png", encoded(picture(i)))
        write(tmp_path / "in" / f"{i}.txt", f"caption {i}")
    real = Image.open

    class Flat:  # what a plug-in of Pillow was seen to answer with
        size, format = (0, 40), "PLUGIN"

    written: list[Any] = []

    def hostile(stream: Any) -> Any:
        return Flat() if stream.getvalue() == encoded(picture(1)) else real(stream)

    def failing(image: Any, encoding: Any) -> bytes:
        written.append(image)
        if len(written) == 2:
            raise ZeroDivisionError("division by zero")
        return pictures.encode(image, encoding)

    monkeypatch.setattr(Image, "open", hostile)
    monkeypatch.setattr(chunks, "encode", failing)
    told = prepared(run("prepare-data", tmp_path / "in", "--out", tmp_path / "out", "--resolution", 16, "--json"))
    assert (told["kept"], told["rejected"]) == (2, {"undecodable": 1, "failed": 1})
    lost = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(row["source"], row["detail"]) for row in lost] == [
        ("1.png", "0 x 40 pixels"), ("2.png", "ZeroDivisionError: division by zero")]  # fmt: skip
