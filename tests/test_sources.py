"""Every source: what it lists, what it hands over, and what it does with hostile or broken input."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.filters import Filter, as_number, require_columns
from flashdmd_cli.data.items import MAX_CAPTION_BYTES, Item, Rejected, Source
from flashdmd_cli.data.plan import write_plan
from flashdmd_cli.data.reading import check_caption, decode_caption, inside
from flashdmd_cli.data.seen import NEAR_BITS, Seen, SeenNear, scratch
from flashdmd_cli.data.sources import Reading, detect, open_source
from flashdmd_cli.data.sources.coco import choose

from .messy import encoded, picture

PNG = encoded(picture(0, 20, 16))


def contents(source: Source) -> dict[str, Item | str]:
    """Row by row: its item, or the reason."""
    found: dict[str, Item | str] = {}
    for row in source.rows():
        try:
            if "reason" in row:
                raise Rejected(row["reason"])
            found[row["source"]] = source.fetch(row)
        except Rejected as rejected:
            found[row["source"]] = rejected.reason
    return found


def captions(source: Source) -> dict[str, str]:
    return {name: item if isinstance(item, str) else item.caption for name, item in contents(source).items()}


def write_tar(path: Path, members: list[tuple[str, bytes | None]]) -> None:
    """Members of a tar; a body of None makes a symbolic link."""
    with tarfile.open(path, "w") as tar:
        for name, body in members:
            info = tarfile.TarInfo(name)
            if body is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            info.size = len(body or b"")
            tar.addfile(info, io.BytesIO(body or b""))


def test_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.PNG", "sub/c.d.jpeg", "alone.png", "named.png"):
        (tmp_path / name).write_bytes(PNG)
    for name, text in (("a", "first"), ("b", "  second\n"), ("sub/c.d", "\ufeffthird, größer"), ("orphan", "lost")):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "named.json").write_text('{"caption": "from json", "aesthetic": 6.5, "deep": {"a": 1}}')
    (tmp_path / "notes.docx").write_bytes(b"x")
    (tmp_path / ".hidden.png").write_bytes(PNG)
    os.symlink(tmp_path, tmp_path / "sub" / "loop")
    os.symlink("/etc/passwd", tmp_path / "leak.txt")
    (tmp_path / "leak.png").write_bytes(PNG)
    source = open_source(tmp_path, Reading())
    assert captions(source) == {
        "a.PNG": "first", "b.png": "second", "sub/c.d.jpeg": "third, größer", "alone.png": "no_caption",
        "named.png": "from json", "orphan.txt": "no_picture", "notes.docx": "other_file", "sub/loop": "link",
        "leak.png": "link",
    }  # fmt: skip
    item = contents(source)["named.png"]
    assert isinstance(item, Item) and item.columns == {"caption": "from json", "aesthetic": 6.5}
    by_name = captions(open_source(tmp_path, Reading(names_are_captions=True)))
    assert by_name["alone.png"] == "alone" and by_name["a.PNG"] == "first" and by_name["named.png"] == "from json"


def test_a_folder_of_two_kinds_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    write_tar(tmp_path / "backup.tar", [("x.png", PNG)])
    with pytest.raises(DataError, match="pictures and") as caught:
        open_source(tmp_path, Reading())
    assert "--format" in caught.value.hint
    assert captions(open_source(tmp_path, Reading(format="folder")))["a.png"] == "no_caption"


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_imagefolder(tmp_path, kind):
    rows = [
        {"file_name": "x.png", "text": "one, two", "aesthetic": "6.5"},
        {"file_name": "sub/y.png", "text": "three"},
        {"file_name": "x.png", "text": "again"},
        {"file_name": "../out.png", "text": "up"},
        {"file_name": "/etc/passwd", "text": "absolute"},
        {"file_name": "gone.png", "text": "gone"},
        {"file_name": "y.png", "text": ""},
        {"text": "nameless"},
        {"file_name": "z.png", "text": "w " * MAX_CAPTION_BYTES},
    ]
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "out.png").write_bytes(PNG)
    for name in ("x.png", "sub/y.png", "y.png", "z.png"):
        (tmp_path / "in" / name).write_bytes(PNG)
    table = tmp_path / "in" / f"metadata.{kind}"
    if kind == "jsonl":
        table.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n[1]\n", encoding="utf-8")
    else:
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "text", "aesthetic"])
            writer.writeheader()
            writer.writerows(rows)
    source = open_source(tmp_path / "in", Reading())
    assert source.kind == "imagefolder"
    found = list(captions(source).values())
    assert found[:9] == ["one, two", "three", "duplicate_key", "unsafe_path", "unsafe_path", "missing_file",
                         "no_caption", "bad_row", "caption_too_big"]  # fmt: skip
    assert found[9:] == (["bad_row", "bad_row"] if kind == "jsonl" else [])
    item = contents(source)["x.png"]
    assert isinstance(item, Item) and as_number(item.columns["aesthetic"]) == 6.5


def test_a_csv_without_file_names_is_one_error(tmp_path):
    (tmp_path / "metadata.csv").write_text("path,text\na.png,x\n")
    with pytest.raises(DataError, match="file_name") as caught:
        list(open_source(tmp_path, Reading()).rows())
    assert "path, text" in caught.value.hint


def test_tars_and_what_hides_in_them(tmp_path):
    json_ = json.dumps({"caption": "from json", "punsafe": 0.05, "original_width": 4000, "original_height": 3000})
    write_tar(
        tmp_path / "00000.tar",
        [
            ("a.jpg", PNG), ("a.txt", b"first"), ("a.json", json_.encode()),
            ("b.webp", PNG), ("b.json", json_.encode()),
            ("../evil.png", PNG), ("/etc/cron.d/evil.png", PNG), ("c.png", None), ("c.txt", b"linked"),
            ("a.jpg", PNG), ("a.txt", b"second of the same key"),
            ("d.png", PNG), ("d.txt", b"x" * (MAX_CAPTION_BYTES + 1)),
            ("e.png", b""), ("e.txt", b"empty"), ("f.mp4", b"film"), ("sub/g.png", PNG), ("sub/g.txt", b"deep"),
        ],
    )  # fmt: skip
    write_tar(tmp_path / "00001.tar", [("a.png", PNG), ("a.txt", b"kept"), ("z.png", PNG * 50), ("z.txt", b"cut")])
    whole = (tmp_path / "00001.tar").read_bytes()
    (tmp_path / "00001.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "00002.tar").write_bytes(b"not a tar" * 100)
    (tmp_path / "00000.parquet").write_bytes(b"img2dataset's own table")
    source = open_source(tmp_path, Reading())
    assert source.kind == "webdataset"
    assert captions(source) == {
        "00000.tar:a": "duplicate_key", "00000.tar:b": "from json", "00000.tar:../evil.png": "unsafe_path",
        "00000.tar:/etc/cron.d/evil.png": "unsafe_path", "00000.tar:c.png": "link", "00000.tar:c": "no_picture",
        "00000.tar:d": "caption_too_big", "00000.tar:e": "empty_file", "00000.tar:f": "no_picture",
        "00000.tar:sub/g": "deep", "00001.tar:a": "kept", "00001.tar": "tar_truncated", "00002.tar": "tar_truncated",
    }  # fmt: skip
    rows = [row for row in source.rows() if row["source"] == "00000.tar:a"]
    assert source.fetch(rows[0]).caption == "first" and rows[1]["reason"] == "duplicate_key"
    chosen = open_source(tmp_path, Reading(caption_column="caption"))
    assert chosen.fetch(rows[0]).caption == "from json"


def test_parquet(tmp_path):
    table = pa.table(
        {
            "image": [{"bytes": PNG, "path": "a.png"}, {"bytes": None, "path": "/etc/passwd"}, None] + [
                {"bytes": PNG, "path": None}] * 40,
            "text": ["first", "second", "third"] + [f"row {i}" for i in range(39)] + [None],
            "aesthetic": [6.5] * 43,
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=20)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 broken")
    source = open_source(tmp_path, Reading())
    found = captions(source)
    assert list(found.values())[:4] == ["first", "no_picture", "no_picture", "row 0"]
    assert found["a.parquet#41"] == "row 38" and found["a.parquet#42"] == "no_caption"
    assert found["b.parquet"] == "bad_row" and len(found) == 44
    rows = list(source.rows())
    assert source.fetch(rows[30]).caption == "row 27" and source.fetch(rows[3]).caption == "row 0"
    pq.write_table(pa.table({"img": [PNG], "alt": ["alt text"]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="--caption-column") as caught:
        list(open_source(tmp_path / "c.parquet", Reading()).rows())
    assert "img, alt" in caught.value.hint
    named = Reading(image_column="img", caption_column="alt")
    assert captions(open_source(tmp_path / "c.parquet", named)) == {"c.parquet#0": "alt text"}


@pytest.mark.parametrize("bad", [3, 20])
def test_a_cell_that_cannot_be_decoded_is_one_row(tmp_path, bad):
    texts = [f"row {i}".encode() for i in range(48)]
    texts[bad] = b"row \xff"
    column = pa.array(texts, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"image": [PNG] * 48, "text": column}), tmp_path / "a.parquet")
    found = list(captions(open_source(tmp_path / "a.parquet", Reading())).values())
    assert found == ["bad_row" if i == bad else f"row {i}" for i in range(48)]


def coco(folder: Path, num: int) -> Path:
    """An annotation file with two captions per image, in disorder."""
    images = [{"id": 7 * i, "file_name": f"COCO_val2014_{7 * i:012d}.jpg"} for i in reversed(range(num))]
    annotations = [{"id": 2 * i + k, "image_id": 7 * i, "caption": f"caption {k} of {7 * i}"} for i in range(num)
                   for k in (1, 0)]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "captions_val2014.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def test_coco_takes_the_first_caption_of_each_image(tmp_path):
    path = coco(tmp_path / "annotations", 3)
    source = open_source(tmp_path, Reading())
    assert source.kind == "coco"
    assert list(captions(source).values()) == ["caption 0 of 0", "caption 0 of 7", "caption 0 of 14"]
    assert source.prompts_only
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "COCO_val2014_000000000007.jpg").write_bytes(PNG)
    source = open_source(path, Reading())
    found = contents(source)
    assert not source.prompts_only and found["captions_val2014.json:0"] == "missing_file"
    item = found["captions_val2014.json:7"]
    assert isinstance(item, Item) and item.picture == PNG and item.columns == {"image_id": 7, "annotation_id": 2}
    for text in ('{"images": []}', '{"images": [{"id": Infinity, "file_name": "a"}], "annotations": []}'):
        path.write_text(text)
        with pytest.raises(DataError, match="annotation"):
            list(open_source(path, Reading()).rows())


@pytest.mark.parametrize("name", ["\ud800.jpg", "x" * 300, "../x.jpg", "\0"], ids=["surrogate", "long", "above", "nul"])
def test_one_impossible_name_among_cocos_pictures_costs_that_picture_only(name, tmp_path):
    path = coco(tmp_path / "annotations", 3)
    document = json.loads(path.read_text())
    document["images"][-1]["file_name"] = name  # of image 0, the first that is looked for
    path.write_text(json.dumps(document))
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "COCO_val2014_000000000014.jpg").write_bytes(PNG)
    found = list(contents(open_source(path, Reading())).values())
    assert isinstance(found[0], str) and found[1] == "missing_file" and isinstance(found[2], Item)


def test_coco10k_hash_is_the_documented_draw():
    ids = choose(list(range(40_504)), "coco10k-hash")
    assert len(ids) == 10_000 and ids == sorted(ids) and ids[:5] == [0, 5, 6, 10, 11]
    assert choose(list(reversed(range(40_504))), "coco10k-hash") == ids
    with pytest.raises(DataError, match="10000"):
        choose([1, 2], "coco10k-hash")


def test_prompt_lists(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"a cat\n\n a dog \r\nb\xffd\n")
    assert list(captions(open_source(tmp_path / "p.txt", Reading())).values()) == ["a cat", "a dog", "caption_not_utf8"]
    (tmp_path / "p.jsonl").write_text('{"prompt": "one", "id": 3}\n"two"\n{"x": 1}\nbroken\n')
    source = open_source(tmp_path / "p.jsonl", Reading())
    assert list(captions(source).values()) == ["one", "two", "no_caption", "bad_row"]
    (tmp_path / "p.json").write_text('["one", {"text": "two"}, 3]')
    assert list(captions(open_source(tmp_path / "p.json", Reading())).values()) == ["one", "two", "no_caption"]


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path):
    with pytest.raises(DataError) as caught:
        detect(tmp_path / "captions_coco14_test.pkl")
    assert "json.dump" in caught.value.hint and "\n" not in caught.value.hint


def test_names_do_not_lead_out(tmp_path):
    for name in ("../x", "/x", "a/../../x", "..\\x", "a\0b"):
        with pytest.raises(Rejected, match="unsafe_path"):
            inside(tmp_path, name)
    os.symlink("/etc", tmp_path / "etc")
    with pytest.raises(Rejected, match="link"):
        inside(tmp_path, "etc/passwd")


@given(st.text(max_size=200))
def test_a_caption_comes_out_as_it_went_in_or_is_reported(text):
    try:
        assert check_caption(text) == text.strip() != ""
    except Rejected as rejected:
        assert {"no_caption": not text.strip(), "caption_nul": "\0" in text}[rejected.reason]


@given(st.binary(max_size=200))
def test_no_bytes_break_a_caption(raw):
    try:
        assert decode_caption(raw).encode() in raw
    except Rejected as rejected:
        assert rejected.reason in {"no_caption", "caption_nul", "caption_not_utf8"}


@given(st.sampled_from([">=", "<=", ">", "<", "==", "!="]), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_filters_say_what_python_says(relation, value, bound):
    each = Filter.parse(f"score {relation} {bound!r}")
    holds = {">=": value >= bound, "<=": value <= bound, ">": value > bound, "<": value < bound,
             "==": value == bound, "!=": value != bound}[relation]  # fmt: skip
    try:
        each.check({"score": str(value)})
        assert holds
    except Rejected as rejected:
        assert not holds and rejected.reason == str(each)


keys = st.text(st.characters(exclude_characters="/.\0\\", exclude_categories=["Cs"]), min_size=1, max_size=120)


@given(st.dictionaries(keys, st.text(max_size=50), max_size=5))
@settings(max_examples=40, deadline=None)
def test_a_tar_gives_every_sample_or_a_reason(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    write_tar(path, [(f"{key}.{kind}", body) for key, text in texts.items()
                     for kind, body in (("png", PNG), ("txt", text.encode()))])  # fmt: skip
    found = captions(open_source(path, Reading()))
    assert list(found) == [f"a.tar:{key}" for key in texts]
    for key, text in texts.items():
        clean = text.removeprefix("\ufeff").strip()
        assert found[f"a.tar:{key}"] == (clean or "no_caption") or "\0" in text


def test_two_bounds_are_two_filters():
    near = {str(Filter.parse(f"created>={bound}")) for bound in ("1700000001", "1700000900", "6.25", "0.1", "1e300")}
    assert near == {"created>=1700000001", "created>=1700000900", "created>=6.25", "created>=0.1", "created>=1e+300"}


def test_filters_that_make_no_sense():
    for text in ("aesthetic", "aesthetic>=", ">=3", "a>=b", "a=3", "a>=nan", "a>=inf"):
        with pytest.raises(ValueError):
            Filter.parse(text)
    for value in (None, "high", float("nan"), True, [1]):
        with pytest.raises(Rejected, match="no a"):
            Filter.parse("a>=1").check({"a": value})
    require_columns([Filter.parse("aspect<=2"), Filter.parse("a>1")], {"a"}, "x")
    with pytest.raises(DataError, match="no column b") as caught:
        require_columns([Filter.parse("b>1")], {"a"}, "x")
    assert "columns there: a" in caught.value.hint


@given(st.lists(st.integers(0, 2**64 - 1), max_size=30), st.integers(0, 2**64 - 1), st.sets(st.integers(0, 63)))
@settings(max_examples=50, deadline=None)
def test_near_hashes_are_found_like_by_comparing_all(tmp_path_factory, others, value, flips):
    near = value
    for bit in list(flips)[:6]:
        near ^= 1 << bit
    with scratch(tmp_path_factory.mktemp("near") / "db") as connection:
        seen = SeenNear(connection)
        for other in [*others, near]:
            seen.add(other)
        expected = any((value ^ other).bit_count() <= NEAR_BITS for other in [*others, near])
        assert seen.near(value) == expected
        exact = Seen(connection, "exact")
        assert [exact.add(b"a"), exact.add(b"b"), exact.add(b"a")] == [True, True, False]


def test_a_plan_is_read_by_chunks(tmp_path):
    rows = [{"source": f"\udcff{i}", "file": f"{i}"} for i in range(25)]
    plan = write_plan(iter(rows), tmp_path / "plan", 10)
    assert (len(plan), plan.num_rows) == (3, 25)
    assert [row for chunk in range(3) for row in plan.chunk(chunk)] == rows
    assert write_plan(rows, tmp_path / "again", 10).sha256 == plan.sha256
    assert write_plan(rows, tmp_path / "less", 10, limit=12).num_rows == 12
