"""Runs of all kinds for the dashboard, and its page as a browser has it open."""

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from finepruning.dashboard import __main__ as dashboard
from tests.dashboard_runs import activations, analysed, inspected, make, repaired, scores, stressed, write

if TYPE_CHECKING:
    from playwright import sync_api  # which not every machine has

SCREEN = {"width": 1280, "height": 900}
SCRIPT = "<script>window.bad = 1</script><img src=x onerror='window.bad = 2'>"


def write_all_kinds(root: Path) -> None:
    """Write runs of all kinds, some of whose names, settings and logs are HTML."""
    for seed in (1, 2):
        for defense in ("none", "prune", "fineprune"):
            write(
                root, make("mnist", "badnet", defense, seed, activations=activations()), log="All is well.\n"
            )
    alive, dead = ({"suspect": scores(0.9, success), "defended": scores(0.9, 0)} for success in (1, 0.1))
    write(root, make("mnist", "badnet", "finetune", oracle=True, scores=alive))
    write(root, make("gtsrb", "blended", "prune", dead=True, scores=dead))
    evil = make("digits", SCRIPT, "fineprune", name=f"evil {SCRIPT}", model=SCRIPT, activations=activations())
    evil["config"]["attack"]["note"] = evil["command"] = SCRIPT
    evil["activations"][0]["layer"] = SCRIPT
    evil["confusion"] = {SCRIPT: [[5, 1], [0, 6]]}
    evil["views"] = {"examples": "examples.png"}
    place = write(root, evil, log=f"{SCRIPT}\n</pre>{SCRIPT}\n")
    Image.new("RGB", (8, 8)).save(place / "examples.png")
    found = inspected(2) | repaired() | stressed()
    found["inspection"]["reasons"].append(SCRIPT)
    found["stress"]["rungs"] = [scores(0.98, 0.03), scores(0.95, 0.01)]
    place = write(root, make("lfw", "sunglasses", "prune", name="repaired", **found, **analysed()))
    (place / "report").mkdir()
    for file in ("additive-2", "mask-2", "mask-2-opacity"):
        Image.new("RGB", (96, 96), "red").save(place / "report" / f"{file}.png")
    broken = root / "broken <b>name"
    broken.mkdir()
    (broken / "record.json").write_text("{")


class Opened:
    """An opened page, with what it said and asked for."""

    def __init__(self, browser: "sync_api.Browser", folder: Path) -> None:
        self.context = browser.new_context(viewport=SCREEN)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.faults: list[str] = []
        self.context.route("**/*", self._note)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda said: self.faults.append(said.text) if said.type == "error" else None)
        self.page.goto((folder / dashboard.FILE).as_uri())
        self.page.wait_for_selector("body[data-ready]")

    def _note(self, route: "sync_api.Route") -> None:
        self.requests.append(route.request.url)
        route.continue_()

    def column(self, title: str) -> list[str]:
        """Text of a column of the table, without intervals."""
        heads = self.page.locator("#table thead th").all_inner_texts()
        place = next(
            number
            for number, head in enumerate(heads)
            if head.split("\n")[: len(title.split("\n"))] == title.split("\n")
        )
        return [
            text.split("\n")[0].strip()
            for text in self.page.locator(f"#table tbody tr > :nth-child({place + 1})").all_inner_texts()
        ]

    def reset(self) -> None:
        """Leave nothing of a test to the next one."""
        if self.page.locator("dialog[open]").count():
            self.page.keyboard.press("Escape")
        self.page.click("[type=reset]")
        if self.page.locator("#tray").is_visible():
            self.page.get_by_role("button", name="Clear").click()
        self.page.click("[data-view=groups]")

    def close(self) -> None:
        """Nothing ran that should not, nothing was complained of, nothing was asked for outside."""
        assert self.page.evaluate("window.bad") is None
        assert self.faults == []
        assert [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))] == []
        self.context.close()
