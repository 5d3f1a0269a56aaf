"""Suites by their names: those that come with the package, and those whose prompts have to be prepared. No torch."""

from __future__ import annotations

from pathlib import Path

from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import expanded
from flashdmd_cli.runs.folder import RUNS
from flashdmd_cli.runs.nearest import nearest

FOLDER = Path(__file__).parent
PREPARED = {"coco10k": "data-coco10k", "coco-mini": "data-coco10k"}
"""Suites whose prompts do not come with the package, and the folder under ./runs where `prepare-data` puts them."""
COCO_HINT = (
    "its prompts come from captions_val2014.json in annotations_trainval2014.zip (253 MB) of"
    " http://images.cocodataset.org/annotations/annotations_trainval2014.zip; then:"
    " flashdmd prepare-data annotations_trainval2014.zip --suite coco10k"
)


def list_suites() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def suite_path(name: str) -> Path:
    """The file of a shipped suite, or of one that is named by its path."""
    if name in PREPARED:
        path = RUNS / PREPARED[name] / f"{name}.yaml"
        if not path.is_file():
            raise InputError(f"--suite {name}: {path} is not there", hint=COCO_HINT)
        return path
    if name in list_suites():
        return FOLDER / f"{name}.yaml"
    path = expanded(name)
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(
            f"--suite {name}: no suite of that name{nearest(name, list_suites())}",
            hint=f"there is {', '.join(list_suites())}; a file of your own is given with its .yaml",
        )
    if not path.is_file():
        raise InputError(f"--suite {name}: no such file", hint=f"there is {', '.join(list_suites())}")
    return path
