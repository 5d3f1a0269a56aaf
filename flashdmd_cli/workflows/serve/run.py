"""Loads the models, then serves the page until a stop is requested."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flashdmd_cli.runs.reporter import Reporter, SilentReporter, counted
from flashdmd_cli.workflows.inputs.beside import TEACHER, find_beside
from flashdmd_cli.workflows.inputs.drawer import Drawer
from flashdmd_cli.workflows.inputs.drawers import find_model, load_all
from flashdmd_cli.workflows.inputs.family_drawer import FamilyDrawer
from flashdmd_cli.workflows.inputs.teachers import Parts
from flashdmd_cli.workflows.serve.studio import Studio
from flashdmd_cli.workflows.serve.web import Server

PORT = 7860
SHAPES_PROMPT, OTHER_PROMPT = "a striped red ring left of a plain blue square", "a lighthouse on a cliff at dusk"


def serve(
    source: str | Path | None = None,
    *,
    port: int = PORT,
    prompt: str | None = None,
    seed: int = 0,
    compare: Sequence[str] = (),
    size: tuple[int, int] | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    vae: str | None = None,
    teacher_config: str | None = None,
    compiled: bool = False,
    device: str | None = None,
    reporter: Reporter | None = None,
    model: str | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a page on http://127.0.0.1:`port`/ that draws with the models of `sample`, until a stop is requested.

    The arguments are those of `sample`; a student is compared with its teacher unless `compare` names others. `prompt`
    and `seed` are what the page shows first. `ready` is called with the page's address once it answers. Always raises
    `StopSignal` in the end, and the errors of `sample` or, for a port that is in use, `UsageError` at the start.
    """
    reporter = reporter or SilentReporter()
    server = Server(port)
    try:
        found = find_model(
            source,
            sampler=sampler,
            steps=steps,
            parts=Parts(vae, teacher_config),
            device=device,
            reporter=reporter,
            model=model,
            size=size,
        )
        adds_teacher = not compare and found.is_student
        others = find_beside(found, [TEACHER] if adds_teacher else compare, reporter)
        drawer, *_ = drawers = load_all(found, others, device, reporter)
        if adds_teacher:
            reporter.say(
                f"the page shows the teacher {shown_name(drawers[1])} beside {drawer.name}; --compare NAME shows "
                "another model in its place"
            )
        first = prompt or (SHAPES_PROMPT if drawer.draws_shapes else OTHER_PROMPT)
        if compiled:
            for each in drawers:
                each.compile()
        if compiled or drawer.place.device != "cpu":  # or the first picture would take longer than others
            reporter.phase("drawing a first picture with each model")
            for each in drawers:
                each.draw_from(0, [first], 0)
        note = f", the teacher of {drawer.name}, shown for comparison" if adds_teacher else ""
        models = [facts_of(drawer), *(facts_of(each, note) for each in drawers[1:])]
        server.facts = {"prompt": first, "seed": seed, "models": models}
        server.studio = Studio(drawers, reporter)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            if ready is not None:
                ready(server.url)
            server.studio.work()
        finally:
            server.shutdown()
    finally:
        server.server_close()


def shown_name(drawer: Drawer) -> str:
    """The name of a model on the page; a teacher's is without its sampler, since its steps may be changed there."""
    is_teacher = isinstance(drawer, FamilyDrawer) and not drawer.is_student
    return Path(str(drawer.facts()["teacher"])).name if is_teacher else drawer.name


def facts_of(drawer: Drawer, note: str = "") -> dict[str, Any]:
    """What the page shows of a model: its name, what it is (with `note`), and the numbers of steps it can draw in."""
    from flashdmd_cli.core.grid import VP_STEPS

    role, choices, most, trained = "published model", [drawer.steps], drawer.steps, None
    height = width = 0
    if isinstance(drawer, FamilyDrawer):
        role = "student" if drawer.is_student else "teacher"
        choices, most = ([], 1000) if drawer.sampler == "ddim" else (list(VP_STEPS), max(VP_STEPS))
        height, width = drawer.size or (drawer.family.resolution,) * 2
        if (trained := drawer.trained_steps) is not None:
            choices = [trained, *(steps for steps in choices if steps != trained)]
    about = f"{role} on {drawer.place.device}" + (f", trained for {counted(trained, 'step')}" if trained else "") + note
    return {
        "name": shown_name(drawer), "about": about, "steps": drawer.steps, "choices": choices,
        "trained": trained, "most": most, "height": height, "width": width,
    }  # fmt: skip
