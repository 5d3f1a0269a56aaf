"""A package of the authors as a process that scores one picture after another, in JSON lines."""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from flashdmd_cli.runs.errors import InputError

OPTION = "--backend upstream"
WORKER = Path(__file__).with_name("worker.py")


class Package:
    """The package of one metric, loaded when it is made and until `close`, or until nothing refers to it any more."""

    def __init__(self, python: Path, first: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        """`python` is that of the environment, `first` says which metric and where its files are."""
        self.metric = str(first["metric"])
        self.num_scored = 0
        self._log: IO[str] = tempfile.TemporaryFile("w+", errors="replace")
        settings = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        if torch.device(device).type == "cpu":
            settings["CUDA_VISIBLE_DEVICES"] = ""  # the packages take a GPU without being asked
        # In a session of its own: Ctrl-C is for this process, which then ends that one.
        self._process = subprocess.Popen(
            [str(python), "-E", "-s", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | settings,
            start_new_session=True,
        )
        self.close = weakref.finalize(self, _end, self._process)
        self._send(first)

    def score(self, image: Path, prompt: str) -> float:
        """The score of an image file for its prompt; NaN where the package fails on it.

        InputError, with the last line that the package wrote, if its process ended.
        """
        self._send({"image": str(image.absolute()), "prompt": prompt})
        assert self._process.stdout is not None
        try:
            score = float(json.loads(self._process.stdout.readline())["score"])
        except (OSError, ValueError, KeyError):
            raise self._ended() from None
        self.num_scored += 1
        return score if math.isfinite(score) else math.nan

    def _send(self, line: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # the pipe is broken, or closed since
            raise self._ended() from None

    def _ended(self) -> InputError:
        self.close()
        self._log.seek(0)
        last = ([line.strip() for line in self._log.read().splitlines() if line.strip()] or ["no reason given"])[-1]
        return InputError(
            f"{OPTION}: the package of {self.metric} ended after {self.num_scored} pictures: {last}",
            "finished measurements are kept, and the same command resumes; or omit the option",
        )


def _end(process: subprocess.Popen[str]) -> None:
    """End the process and wait for it."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # what was written is not read any more
                pass
