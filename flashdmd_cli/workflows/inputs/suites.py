"""A suite by its name. The prompts of `coco10k` are made from COCO's annotations, which are downloaded if necessary."""

from __future__ import annotations

from pathlib import Path

from flashdmd_cli.evaluation.suites.names import COCO_HINT, PREPARED, suite_path
from flashdmd_cli.runs.download import RemoteFile, fetch_file
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.folder import RUNS
from flashdmd_cli.runs.reporter import Reporter

ANNOTATIONS = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"


def find_suite(name: str, reporter: Reporter) -> Path:
    """The file of a suite; prompts that have to be prepared are written under ./runs at the first use.

    Raises `UsageError` for an unknown name, and `InputError`, in one line, if the annotations cannot be downloaded.
    """
    if name not in PREPARED or (RUNS / PREPARED[name] / f"{name}.yaml").is_file():
        return suite_path(name)
    option = f"--suite {name}"
    try:
        archive = fetch_file(RemoteFile(option, ANNOTATIONS, "253 MB", "COCO", ""), reporter)
    except InputError as error:
        raise InputError(f"{option}: its prompts are not prepared ({_reason(str(error))})", hint=COCO_HINT) from None
    from flashdmd_cli.workflows.prepare import prepare_suite

    facts = prepare_suite(archive, RUNS / PREPARED[name], reporter=reporter)
    reporter.say(str(facts["check"]))
    return suite_path(name)


def _reason(message: str) -> str:
    return message.rpartition("not on this machine, and ")[2]
