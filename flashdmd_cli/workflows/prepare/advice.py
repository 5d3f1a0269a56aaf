"""Error message and hint for a preparation in which every row was rejected."""

from __future__ import annotations

from flashdmd_cli.data.assemble import Summary
from flashdmd_cli.data.items import meaning
from flashdmd_cli.workflows.prepare.request import Request


def rejection_counts(summary: Summary) -> str:
    """Number of rejected rows for each reason: `3 no_caption, 1 truncated`."""
    return ", ".join(f"{count} {reason}" for reason, count in summary.rejected.most_common())


def advice(summary: Summary, request: Request, kind: str) -> str:
    """Hint for the user: what to change, given the most frequent reason and the kind of source."""
    reason = next(iter(summary.rejected.most_common()), ("", 0))[0]
    if reason == "no_caption":
        if request.reading.caption_column is not None:
            return (
                f"no row has a text in {request.reading.caption_column}: name another --caption-column, or leave it out"
            )
        if kind == "folder":
            return "write a .txt file beside each picture, or add --captions-from-names"
        if kind == "webdataset":
            return "captions are read from key.txt, or from key.json under caption or --caption-column"
        return "captions are read from the column caption, text or prompt, or from --caption-column"
    if reason == "link":
        return "links that lead out of SOURCE are not followed: name the folder that they point to, or copy the files"
    if reason.endswith("not supported") or reason == "lfs_pointer":
        return meaning(reason)
    if reason.startswith("min_side"):
        side = f"pictures smaller than those of --teacher {request.teacher} are not enlarged by default"
        return f"{side}; --filter 'min_side>=1' allows it, --resolution N or another --teacher needs smaller ones"
    return "rejected.jsonl in --out lists them"
