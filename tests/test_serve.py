"""`flashdmd sample --serve` over HTTP: the page, its pictures, and what it refuses."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import base64
import html
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
import torch
from PIL import Image

from flashdmd_cli.runs.errors import FlashDMDError, UsageError
from flashdmd_cli.runs.reporter import SilentReporter
from flashdmd_cli.runs.signals import StopSignal
from flashdmd_cli.workflows.inputs.family_drawer import FamilyDrawer
from flashdmd_cli.workflows.sample import sample
from flashdmd_cli.workflows.serve import serve
from flashdmd_cli.workflows.serve.web import PAGE, Server

from .test_cli import fails, run, shipped, world  # noqa: F401
from .test_distill import sam_folder  # noqa: F401
from .test_export import checkpoint
from .test_run_page import chromium

RING = "a plain red ring above a striped blue circle"
ASKED = {"model": 0, "prompt": RING, "seed": 7, "steps": 2}
WAIT = 60
"""Seconds after which a test gives up."""


class Running:
    """A server in another thread, that draws with a random teacher and with the same one in four other steps."""

    def __init__(self) -> None:
        self.reporter, self.url, self.ended = SilentReporter(), "", list[BaseException]()
        self.is_ready = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        assert self.is_ready.wait(WAIT), self.ended

    def run(self) -> None:
        try:
            serve("shapes-sdxl", port=0, compare=["shapes-sdxl"], seed=3, reporter=self.reporter, ready=self.ready)
        except BaseException as error:
            self.ended.append(error)
            self.is_ready.set()

    def ready(self, url: str) -> None:
        self.url = url
        self.is_ready.set()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
        """Status, contents (parsed if they are JSON) and headers of an answer."""
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=WAIT)
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"} if raw is not None else {}
        connection.request(method, path, raw, kind | {key.replace("_", "-"): value for key, value in headers.items()})
        answer = connection.getresponse()
        text = answer.read()
        is_json = answer.getheader("Content-Type") == "application/json"
        return answer.status, json.loads(text) if is_json else text.decode(), answer.headers

    def stop(self) -> None:
        self.reporter.stop.request(2)
        self.thread.join(WAIT)
        assert not self.thread.is_alive() and isinstance(self.ended[0], StopSignal)


@pytest.fixture
def running(world) -> Iterator[Running]:
    server = Running()
    yield server
    server.stop()


def test_the_page_draws_what_sample_draws(running: Running, tmp_path: Path) -> None:
    status, page, headers = running.ask("GET", "/")
    assert (
        status == 200 and page == PAGE.read_text(encoding="utf-8") and "'sha256-" in headers["Content-Security-Policy"]
    )
    assert "http:" not in page and "https:" not in page and "innerHTML" not in page
    status, state, _ = running.ask("GET", "/state")
    assert status == 200 and [model["name"] for model in state["models"]] == ["shapes-sdxl"] * 2
    assert (state["seed"], state["waiting"], state["drawing"]) == (3, [], None)
    assert state["models"][0]["about"].startswith("teacher on ") and state["models"][0]["steps"] == 30
    assert state["models"][0]["about"] == "teacher on cpu"

    status, made, _ = running.ask("POST", "/draw", ASKED)
    assert status == 200 and made["seconds"] > 0 and (made["steps"], made["seed"]) == (2, 7)
    drawn = sample([RING], "shapes-sdxl", tmp_path / "o", steps=2, seed=7)
    with Image.open(io.BytesIO(base64.b64decode(made["png"]))) as picture, Image.open(drawn.pictures[0]) as expected:
        assert picture.tobytes() == expected.tobytes()
        assert {**picture.text, "model": ""} == {**expected.text, "model": ""}  # type: ignore[attr-defined]
    status, made, _ = running.ask("POST", "/draw", ASKED | {"prompt": "ein Leuchtturm"})
    assert status == 200 and "cannot read" in made["warnings"][0]


def test_requests_of_other_pages_and_wrong_ones_are_refused(running: Running) -> None:
    def refused(
        status: int, reason: str, body: Any = ASKED, method: str = "POST", path: str = "/draw", **headers: str
    ) -> None:
        found = running.ask(method, path, body, **headers)
        assert found[0] == status and reason in found[1]["error"], found

    refused(403, "http://127.0.0.1", Host="attacker.example")  # DNS rebinding
    refused(403, "http://127.0.0.1", None, "GET", "/", Host="127.0.0.1.attacker.example:80")
    refused(403, "other pages", Origin="http://attacker.example")
    refused(403, "other pages", Origin="null")
    assert running.ask("GET", "/", Host="localhost:9")[0] == 200  # a port that SSH forwards
    refused(415, "application/json", Content_Type="text/plain")  # a form of another page
    refused(404, "no such page", None, "GET", "/../manifest.json")
    refused(404, "no such page", path="/state")
    refused(413, "larger", b"[" * 70_000)
    refused(411, "Content-Length", Content_Length="many")
    for body in (b"{", b"\xff", b"[" * 60_000):
        refused(400, "is not JSON", body)
    refused(400, "JSON object", [1])
    refused(400, "prompt: is empty (type what to draw)", ASKED | {"prompt": " "})
    refused(400, "prompt: is empty", {"model": 0, "seed": 0})
    refused(400, "not UTF-8", ASKED | {"prompt": "\ud800"})
    for seed in (-1, 2**60, 1.5, True, "7", None):
        refused(400, "seed: must be an integer", ASKED | {"seed": seed})
    refused(400, "model: must be an integer from 0 to 1", ASKED | {"model": 2})
    for steps in (0, 1001):
        found = running.ask("POST", "/draw", ASKED | {"steps": steps})
        assert found[0] == 400 and found[1]["error"].startswith("steps: must be") and "--" not in found[1]["error"]
    assert running.ask("GET", "/state")[0] == 200


def test_one_picture_at_a_time_and_errors_end_nothing(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most, draw = [], [], FamilyDrawer.draw_from

    def watched(self: FamilyDrawer, seed: int, *args: Any, **kwargs: Any) -> torch.Tensor:
        inside.append(seed)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()
        if seed == 13:
            raise RuntimeError("<b>bad luck</b>")
        if seed == 12:
            raise FlashDMDError("--device: too little memory for one picture", hint="try --device cpu")
        return draw(self, seed, *args, **kwargs)

    monkeypatch.setattr(FamilyDrawer, "draw_from", watched)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda seed: running.ask("POST", "/draw", ASKED | {"seed": seed}), (11, 12, 13, 14)))
    assert [status for status, _, _ in answers] == [200, 500, 500, 200] and max(most) == 1
    assert answers[2][1] == {"error": "<b>bad luck</b>"} and answers[2][2]["Content-Type"] == "application/json"
    assert answers[1][1] == {"error": "too little memory for one picture"}  # the page has no options
    assert len({values["png"] for _, values, _ in answers if "png" in values}) == 2


def test_a_stop_ends_the_picture_and_what_waits(running: Running) -> None:
    with ThreadPoolExecutor(2) as pool:
        long = [pool.submit(running.ask, "POST", "/draw", ASKED | {"steps": 1000, "ticket": name}) for name in "ab"]
        began = time.monotonic()
        while time.monotonic() - began < WAIT:
            state = running.ask("GET", "/state")[1]
            if state["drawing"] and state["drawing"]["done"] and state["waiting"]:
                break
        assert state["drawing"]["steps"] == 1000 and {state["drawing"]["ticket"], *state["waiting"]} == {"a", "b"}
        running.stop()
        assert [answer.result()[0] for answer in long] == [503, 503]
    with pytest.raises(OSError):
        running.ask("GET", "/")


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(
    ("window", "ratio"), [((1280, 900), 1), ((1280, 900), 1.5), ((1280, 900), 0.5), ((390, 844), 1)]
)
def test_pictures_fit_the_window_and_are_level(window: tuple[int, int], ratio: float, tmp_path: Path) -> None:
    """The page in a browser, with answers that are there already, measured when both pictures are drawn."""
    picture = io.BytesIO()
    Image.new("RGB", (round(64 * ratio), 64), "teal").save(picture, "PNG")
    models = [
        {
            "name": name,
            "about": about,
            "steps": 4,
            "choices": [4],
            "trained": 4,
            "most": 8,
            "height": 1024,
            "width": round(1024 * ratio),
        }
        for name, about in (("mine", "student on cpu"), ("theirs", "a " * 80))
    ]
    state = {"prompt": RING, "seed": 3, "models": models, "drawing": None, "waiting": []}
    made = {"png": base64.b64encode(picture.getvalue()).decode(), "seconds": 1, "steps": 4, "seed": 3, "warnings": []}
    answers = f"""<script>
        const made = {json.dumps(made)}, state = {json.dumps(state)};
        window.fetch = async (path) => ({{ok: true, json: async () => path === "draw" ? made : state}});
        setTimeout(() => document.getElementById("form").requestSubmit(), 200);
        const waiting = setInterval(() => {{
          const pictures = [...document.querySelectorAll(".frame img")];
          if (pictures.filter((each) => each.naturalWidth).length < state.models.length) return;
          clearInterval(waiting);
          const box = (name) => [...document.querySelectorAll(name)].map((each) => each.getBoundingClientRect());
          document.title = JSON.stringify({{frames: box(".frame img"), heads: box("h2"), times: box(".time"),
            wide: document.documentElement.scrollWidth, window: [innerWidth, innerHeight]}});
        }}, 50);
        </script>"""
    page, profile, size = tmp_path / "page.html", tmp_path / "browser", ",".join(map(str, window))
    page.write_text(PAGE.read_text(encoding="utf-8").replace("<body>", "<body>" + answers), encoding="utf-8")
    command = [chromium() or "", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
               f"--window-size={size}", "--virtual-time-budget=20000", "--dump-dom", page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(html.unescape(done.stdout.partition("<title>")[2].partition("</title>")[0]))
    assert found["wide"] <= found["window"][0]  # nothing to scroll sideways
    for frame in found["frames"]:
        assert frame["width"] == pytest.approx(frame["height"] * ratio, rel=0.01) and frame["height"] > 150
    if window[0] > 1000:  # side by side
        assert all(frame["bottom"] < found["window"][1] for frame in found["frames"] + found["times"]), found
        for row in ("frames", "heads", "times"):
            assert len({each["top"] for each in found[row]}) == 1, found[row]


def test_the_options_of_the_page(world) -> None:
    with_page = ["sample", "--from", "shapes-sdxl", "--serve", "--quiet"]
    fails(run(*with_page, "--prompt", "a", "--prompt", "b"), 2, "--prompt: the page starts with one, and 2 are given")
    fails(run(*with_page, "--seed", "1,2"), 2, "--seed 1,2: the page starts with one")
    fails(run(*with_page, "--prompts", "p.txt"), 2, "--prompts p.txt: does not go with --serve")
    fails(run(*with_page, "--out", "o"), 2, "--out o: does not go with --serve")
    fails(run("sample", "--prompt", "a", "--port", 1), 2, "--port 1: goes with --serve")
    server = Server(0)
    try:
        port = urlsplit(server.url).port
        fails(run(*with_page, "--port", port), 2, f"--port {port}: another program uses it", "--port 0")
        assert server.server_address[0] == "127.0.0.1"
    finally:
        server.server_close()
    with pytest.raises(UsageError, match="--port 99999"):
        Server(99999)


def test_a_student_is_shown_on_its_grid_beside_its_teacher(
    world, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = checkpoint(shipped / "shapes-sdxl", world / "mine")
    said: list[str] = []
    states: list[dict[str, Any]] = []
    reporter = SilentReporter()
    monkeypatch.setattr(reporter, "say", said.append)

    def ready(url: str) -> None:
        with urlopen(url + "state", timeout=WAIT) as answer:
            states.append(json.load(answer))
        reporter.stop.request(2)

    with pytest.raises(StopSignal):
        serve(student, port=0, steps=2, reporter=reporter, ready=ready)
    mine, teacher = states[0]["models"]
    assert (mine["steps"], mine["trained"], mine["choices"]) == (2, 4, [4, 1, 2, 8])
    assert mine["about"] == "student on cpu, trained for 4 steps"
    assert teacher["about"] == "teacher on cpu, the teacher of mine, shown for comparison"
    assert any("shows the teacher shapes-sdxl beside mine" in line and "--compare" in line for line in said), said


def test_ctrl_c_ends_the_command(shipped: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "flashdmd_cli", "sample", "--from", str(shipped / "shapes-sdxl"), "--serve",
             "--port", "0", "--json"]  # fmt: skip
    started = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert started.stdout is not None
    lines = [started.stdout.readline() for _ in range(3)]
    assert json.loads("".join(lines))["url"].startswith("http://127.0.0.1:")
    started.send_signal(signal.SIGINT)
    out, errors = started.communicate(timeout=WAIT)
    assert (started.returncode, out) == (0, "") and errors.strip().endswith("stopped serving")
    assert "Traceback" not in errors and list(tmp_path.iterdir()) == []
