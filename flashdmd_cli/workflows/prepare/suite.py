"""The suite `coco10k`: the 10,000 captions of COCO that DMD2 evaluates on, drawn again from the user's own annotations.

The rule is DMD2's: pandas; a generator seeded with 123; the images, each joined with its captions; the rows shuffled;
of each image the first row; of those 10,000 at random. So 10,000 different images, each with one *random* caption.
"""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.sources.coco import find_annotations
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import write_text_atomically
from flashdmd_cli.runs.folder import claim
from flashdmd_cli.runs.lock import releasing
from flashdmd_cli.runs.manifest import Collection, FileRecord, Manifest, write_manifest
from flashdmd_cli.runs.reporter import Reporter, SilentReporter

if TYPE_CHECKING:
    import pandas

SEED, NUM = 123, 10_000
MEMBER = "captions_val2014.json"
"""The file, also within annotations_trainval2014.zip."""
FIRST = (278829, 478175, 490842, 241638, 205282, 287663, 31092)
"""Ids of the first images that the rule draws from COCO's own file."""
FIRST_CAPTION = "A baseball field with players and a crowd of spectators."
PROMPTS = "prompts.jsonl"
SUITES = ("coco10k", "coco-mini")


@releasing()
def prepare_suite(
    source: Path | str,
    out: Path | str,
    *,
    suite: str = "coco10k",
    replace: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Write the prompts of `coco10k` and `coco-mini` from COCO's `captions_val2014.json` into the folder `out`.

    `source` is that file, the zip archive it comes in, or a folder with it. Where the images are found beside it
    (`val2014/`), they become the suite's real pictures. Returns what was written, with `check`: whether the draw begins
    as that from COCO's own file does.

    Raises `InputError` for a source without annotations, `UsageError` for an `out` that holds something else.
    """
    reporter, out, began = reporter or SilentReporter(), Path(out), time.monotonic()
    if suite != "coco10k":
        raise UsageError(f"--suite {suite}: unknown", hint="there is coco10k")
    reporter.phase(f"reading {source}")
    document, folder, digest = read_annotations(Path(source))
    rows = draw(document)
    genuine, known = is_genuine(rows), check(rows)
    claim(out, "suite", yes=replace)
    lines = [
        json.dumps({"id": str(row.image_id), "prompt": str(row.caption).strip(), "image_id": int(row.image_id),
                    "annotation_id": int(row.annotation_id), "file_name": str(row.file_name)}, ensure_ascii=False)
        for row in rows.itertuples()
    ]  # fmt: skip
    write_text_atomically(out / PROMPTS, "\n".join(lines) + "\n")
    prompts = hashlib.sha256((out / PROMPTS).read_bytes()).hexdigest()
    pictures = find_pictures(folder, str(rows.file_name.iloc[0]))
    for name in SUITES:
        write_text_atomically(out / f"{name}.yaml", suite_text(name, prompts, pictures, genuine))
    files = [PROMPTS, *(f"{name}.yaml" for name in SUITES)]
    content = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    collection = Collection(
        seen=len(document["annotations"]),
        kept=len(rows),
        pictures=False,
        source=f"coco {source}",
        listing=digest,
        content=content,
    )
    recipe = {"suite": suite, "source": str(source), "annotations_sha256": digest, "check": known}
    manifest = Manifest(
        kind="suite",
        files=[FileRecord(path=name) for name in files],
        recipe=recipe,
        seed=SEED,
        wall_seconds=time.monotonic() - began,
        collection=collection,
    )
    write_manifest(out, manifest)
    real = "none found: --references DIR of flashdmd eval names the folder val2014" if pictures is None else pictures
    return {"out": out, "prompts": len(rows), "sha256": prompts, "references": real, "check": known}


def read_annotations(source: Path) -> tuple[Mapping[str, Any], Path, str]:
    """The annotations, the folder where images are looked for, and the hash of the file."""
    if not source.exists():
        raise InputError(
            f"SOURCE {source}: no such file",
            hint="annotations_trainval2014.zip (253 MB) is at http://images.cocodataset.org/annotations/",
        )
    try:
        if source.suffix.lower() == ".zip":
            with zipfile.ZipFile(source) as archive:
                name = next((name for name in archive.namelist() if name.endswith(MEMBER)), None)
                if name is None:
                    raise InputError(f"SOURCE {source}: holds no {MEMBER}", hint="take annotations_trainval2014.zip")
                data, folder = archive.read(name), source.parent
        else:
            path = source if source.is_file() else find_annotations(source)
            data, folder = path.read_bytes(), path.parent
        document = parse_json(data)
        if not all(isinstance(document.get(key), list) and document[key] for key in ("images", "annotations")):
            raise ValueError("it has no `images` or no `annotations`")
    except DataError as error:
        raise InputError(str(error), hint=error.hint) from None
    except OSError as error:
        raise InputError(f"SOURCE {source}: cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"SOURCE {source}: is no caption annotation file of COCO: {error}", hint=f"take {MEMBER}"
        ) from None
    return document, folder, hashlib.sha256(data).hexdigest()


def draw(document: Mapping[str, Any], num: int = NUM) -> pandas.DataFrame:
    """DMD2's draw: columns `image_id`, `annotation_id`, `file_name`, `caption`, in its order.

    InputError where there are not enough images. One generator serves both draws, as numpy's global one does there.
    """
    import numpy
    import pandas

    generator = numpy.random.RandomState(SEED)
    try:
        images = pandas.DataFrame(document["images"])[["id", "file_name"]]
        captions = pandas.DataFrame(document["annotations"])[["id", "image_id", "caption"]]
    except KeyError as error:
        raise InputError(
            f"SOURCE: no caption annotation file of COCO: {error.args[0]}", hint=f"take {MEMBER}"
        ) from None
    captions = captions.rename(columns={"id": "annotation_id"})
    rows = images.merge(captions, how="left", left_on="id", right_on="image_id")
    rows = rows.sample(frac=1, random_state=generator).drop_duplicates("file_name")
    if len(rows) < num:
        raise InputError(
            f"SOURCE: has {len(rows)} images, and coco10k takes {num}", hint=f"take {MEMBER}, with 40504 images"
        )
    rows = rows.sample(num, random_state=generator)
    if rows.caption.isna().any():
        raise InputError("SOURCE: images without a caption", hint=f"take {MEMBER}, where each has five")
    return rows


def is_genuine(rows: pandas.DataFrame) -> bool:
    """Whether the draw begins as that from COCO's own file does."""
    first = tuple(int(image) for image in rows.image_id.iloc[: len(FIRST)])
    return first == FIRST and str(rows.caption.iloc[0]).strip() == FIRST_CAPTION


def check(rows: pandas.DataFrame) -> str:
    """The same in a sentence."""
    first = [int(image) for image in rows.image_id.iloc[:3]]
    if is_genuine(rows):
        return f"the draw begins with the images {', '.join(map(str, FIRST[:3]))}, ...: it is DMD2's COCO-10k"
    return (
        f"this is not COCO's {MEMBER}: the draw begins with the images {', '.join(map(str, first))}, not with"
        f" {', '.join(map(str, FIRST[:3]))}; results are not comparable with published ones"
    )


def find_pictures(folder: Path, name: str) -> Path | None:
    """The folder beside the annotations that holds the image `name`."""
    root = folder.parent if folder.name == "annotations" else folder
    for place in (root / "val2014", root / "images" / "val2014", root / "images", root):
        if (place / name).is_file():
            return place.resolve()
    return None


def suite_text(name: str, prompts: str, pictures: Path | None, genuine: bool) -> str:
    """A shipped suite with the hash of its prompts, the folder of its real pictures, and for `coco10k` whether its draw
    is that of published tables."""
    from flashdmd_cli.evaluation.suites.names import FOLDER

    spec = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    spec["prompts"]["sha256"] = prompts
    spec["published"] = genuine and name == "coco10k"
    if pictures is not None:
        spec["references"] = str(pictures)
    return yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)
