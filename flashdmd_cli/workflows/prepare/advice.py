"""What a preparation says when it keeps nothing: the counts, and what helps in this situation."""

from __future__ import annotations

from flashdmd_cli.data.assemble import Summary
from flashdmd_cli.data.items import meaning
from flashdmd_cli.workflows.prepare.request import Request


def told(summary: Summary) -> str:
    """`3 no_caption, 1 truncated`."""
    return ", ".join(f"{count} {reason}" for reason, count in summary.rejected.most_common())


def advice(summary: Summary, request: Request, kind: str) -> str:
    """What to do when nothing was kept: what helps with this reason, in this kind of source."""
    reason = next(iter(summary.rejected.most_common()), ("", 0))[0]
    if reason == "no_caption":
        if request.reading.caption_column is not None:
            return f"no row has a text in {request.reading.caption_column}: --caption-column names another, or none"
        if kind == "folder":
            return "write a .txt beside each picture, or take --captions-from-names"
        if kind == "webdataset":
            return "captions are in key.txt, or in key.json under caption or --caption-column"
        return "captions are in the column caption, text or prompt, or in that of --caption-column"
    if reason == "link":
        return "links that lead out of SOURCE are not followed: name the folder that they point to, or copy the files"
    if reason.endswith("not supported") or reason == "lfs_pointer":
        return meaning(reason)
    if reason.startswith("min_side"):
        side = f"the side of --teacher {request.teacher}'s pictures is wanted, and nothing is enlarged"
        return f"{side}; --filter 'min_side>=1' allows it, --resolution N or another --teacher asks for less"
    return "see rejected.jsonl there"
