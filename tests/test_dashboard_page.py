"""The page in a real browser: Debian's Chromium, driven by Playwright."""

import csv
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from finepruning.dashboard import __main__ as dashboard
from tests.dashboard_page import SCREEN, SCRIPT, Opened, write_all_kinds
from tests.dashboard_runs import write_many

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium on the PATH")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_all_kinds(root)
    assert dashboard.main([str(root)]) == 0
    return root


@pytest.fixture(scope="module")
def shared(browser: "sync_api.Browser", folder: Path) -> Iterator[Opened]:
    found = Opened(browser, folder)
    yield found
    found.close()


@pytest.fixture
def opened(shared: Opened) -> Iterator[Opened]:
    yield shared
    shared.reset()
    assert shared.page.evaluate("window.bad") is None
    assert shared.faults == []


def test_the_first_screen_says_who_won(opened: Opened) -> None:
    card = opened.page.locator(".verdict", has_text="mnist").filter(has_text="badnet")
    assert card.locator("h2").inner_text() == "fineprune"
    assert "Leaves 3.0 % of 99.2 % attack success" in card.inner_text().replace("\n", " ")
    assert card.bounding_box()["y"] < 600
    assert "Dead attack" in opened.page.locator(".verdict", has_text="gtsrb").inner_text()


def test_records_are_counted_and_skipped_ones_named(opened: Opened) -> None:
    assert "10 records, 1 skipped: broken <b>name" in opened.page.locator(".lead").first.inner_text()
    assert "damaged" in opened.page.locator(".skipped").inner_text()


def test_html_in_records_is_text_everywhere(opened: Opened) -> None:
    page = opened.page
    page.click("[data-view=runs]")
    page.locator("[data-open]", has_text="evil").click()
    page.locator("dialog summary", has_text="log").click()
    page.locator("dialog summary", has_text="Configuration").click()
    assert page.locator("dialog pre").inner_text().count(SCRIPT) == 2
    assert page.locator("dialog").inner_text().count(SCRIPT) >= 5
    page.keyboard.press("Escape")
    page.locator("tr", has_text="evil").get_by_role("checkbox").check()
    page.locator("#network .chart").nth(1).wait_for()
    page.wait_for_timeout(300)
    assert page.locator("main img:not([src^='data:image/png'])").count() == 0
    assert page.locator("main script, dialog script").count() == 0


def test_a_click_on_a_column_sorts_and_unranked_runs_stay_last(opened: Opened) -> None:
    button = opened.page.locator("[data-sort=success_after]")
    head = opened.page.locator("th", has=button)
    assert head.get_attribute("aria-sort") == "none"
    button.click()
    rising = [float(text) for text in opened.column("attack success\ndefended")]
    assert head.get_attribute("aria-sort") == "ascending"
    assert rising[:-2] == sorted(rising[:-2])
    assert rising[-2:] == [0.0, 0.0]  # the oracle and the dead attack, lower than all
    button.click()
    falling = [float(text) for text in opened.column("attack success\ndefended")]
    assert falling == [*rising[:-2][::-1], 0.0, 0.0]


def test_filters_narrow_the_table_and_can_be_reset(opened: Opened) -> None:
    page = opened.page
    page.select_option("[name=defense]", "prune")
    page.fill("[name=query]", "mnist")
    page.locator("#count", has_text="2 of 10").wait_for()
    assert opened.column("defense") == ["prune"]
    page.fill("[name=query]", "no such run")
    page.get_by_text("No run fits these filters.").wait_for()
    page.click("[type=reset]")
    page.locator("#count", has_text="10 of 10").wait_for()


def test_a_group_opens_into_its_runs(opened: Opened) -> None:
    opened.page.locator("tr", has_text="fineprune").filter(has_text="mnist").locator("[data-group]").click()
    assert sorted(opened.column("seed")) == ["1", "2"]


def test_two_runs_are_compared_by_what_differs(opened: Opened) -> None:
    page = opened.page
    page.click("[data-view=runs]")
    for name in ("mnist-badnet-prune-s1", "mnist-badnet-prune-s2"):
        page.locator("tr", has_text=name).get_by_role("checkbox").check()
    page.click("#compare")
    keys = page.locator("#difference tbody th").all_inner_texts()
    assert {"seed", "attack.seed", "defense.order_seed"} <= set(keys)
    assert "result: clean accuracy of the suspect network, %" in keys
    assert not {"defense.max_drop", "dataset.size", "torch"} & set(keys)
    cells = page.locator("#difference tr", has=page.get_by_text("attack.seed", exact=True)).locator("td")
    assert cells.all_inner_texts() == ["1", "2"]


def test_picked_runs_lay_their_curves_over_each_other(opened: Opened) -> None:
    page = opened.page
    page.click("[data-view=runs]")
    for name in ("mnist-badnet-prune-s1", "mnist-badnet-fineprune-s2", "gtsrb-blended-prune-s1"):
        page.locator("tr", has_text=name).get_by_role("checkbox").check()
    sync_api.expect(page.locator("#curves .legend .traces")).to_have_count(3)
    assert page.locator("#curves .scatterlayer .trace").count() == 6  # accuracy and attack success of each
    assert page.locator("#compare").is_disabled()


def test_details_hold_what_repeats_the_run(opened: Opened) -> None:
    page = opened.page
    page.click("[data-view=runs]")
    page.get_by_role("button", name="mnist-badnet-prune-s1-0123abcd").click()
    text = page.locator("dialog").inner_text()
    assert "python run.py dataset=mnist attack=badnet defense=prune seed=1" in text
    assert "a" * 40 in text
    assert re.search(r"30 of 64 channels", text)


def test_details_show_what_was_found_what_was_tried_and_what_came_back(opened: Opened) -> None:
    page = opened.page
    page.click("[data-view=runs]")
    row = page.locator("#table tr", has=page.get_by_role("button", name="repaired", exact=True))
    assert row.locator(".badge").all_inner_texts() == ["no evidence", "stress"]
    page.get_by_role("button", name="repaired", exact=True).click()
    inspection = page.locator("dialog .inspection")
    assert "something stands out" in inspection.inner_text()
    assert inspection.inner_text().count(SCRIPT) == 1
    images = inspection.locator("img")
    assert [image.get_attribute("alt") for image in images.all()] == [
        "additive trigger to class 2",
        "mask trigger to class 2",
        "opacity of the mask trigger to class 2",
    ]
    assert all(image.evaluate("image => image.naturalWidth") == 96 for image in images.all())
    rungs = page.locator("dialog .ladder tbody tr").all_inner_texts()
    assert [rung.split("\t") for rung in rungs] == [
        ["weight 0.03", "0.4 [0.1, 0.8]", "kept", "\u2013", "98.0", "3.0"],
        ["weight 0.1", "2.0 [1.0, 3.0]", "undone", "evidence remains", "95.0", "1.0"],
    ]
    audit = page.locator("dialog .audit").inner_text()
    assert "no evidence of a backdoor left under these tests" in audit
    assert "0.50" in audit
    assert "2.50" in audit
    retuned = page.locator("dialog details.stress tr", has_text="defended").filter(has_text="retuned")
    assert "40.0 [37.0, 43.1]" in retuned.inner_text()
    assert "no defense sees it" in page.locator("dialog details.stress").inner_text()


def test_details_show_what_each_layer_can_spare(opened: Opened) -> None:
    page = opened.page
    page.click("[data-view=runs]")
    page.get_by_role("button", name="repaired", exact=True).click()
    assert "by at most 2.0 % of validation" in page.locator("dialog .layers summary").inner_text()
    rows = page.locator("dialog .layers tbody tr").all_inner_texts()
    assert [row.split("\t") for row in rows] == [
        ["conv1", "3 of 16", "97.5", "98.0", "100.0"],
        ["conv2", "20 of 32", "97.0", "97.2", "1.0"],
    ]


def test_the_matrix_has_each_defense_against_each_attack(opened: Opened) -> None:
    table = opened.page.locator(".matrix", has=opened.page.locator("caption", has_text="mnist"))
    assert table.get_by_role("rowheader").all_inner_texts() == ["none", "prune", "finetune", "fineprune"]
    row = table.locator("tbody tr", has=opened.page.get_by_role("rowheader", name="prune", exact=True))
    assert row.locator("td b").all_inner_texts() == ["39.7"]
    assert "oracle" in table.locator("tbody tr", has_text="finetune").inner_text()
    assert "dead attack" in opened.page.locator("#matrix").inner_text()


def test_the_table_is_downloaded_as_csv_in_full_precision(opened: Opened) -> None:
    opened.page.click("[data-view=runs]")
    with opened.page.expect_download() as download:
        opened.page.click("#csv")
    lines = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    (prune,) = (line for line in lines if line["name"] == "mnist-badnet-prune-s1-0123abcd")
    assert len(lines) == 10
    assert float(prune["clean_after"]) == pytest.approx(0.964)
    assert float(prune["clean_after_low"]) < 0.964 < float(prune["clean_after_high"])
    assert float(prune["price"]) == pytest.approx(0.02)
    assert [line["name"][:4] for line in lines if line["oracle"] == "1"] == ["mnis"]


def test_everything_is_reached_by_keyboard(opened: Opened) -> None:
    page = opened.page
    page.focus("[data-view=runs]")
    page.keyboard.press("Enter")
    page.focus("[data-sort=seed]")
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement.dataset.sort") == "seed"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.locator("[data-open]").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('dialog').open") is True
    page.keyboard.press("Escape")
    assert page.evaluate("document.querySelector('dialog').open") is False


def test_a_reload_shows_the_same(opened: Opened) -> None:
    page = opened.page
    page.select_option("[name=dataset]", "mnist")
    page.click("[data-view=runs]")
    page.click("[data-sort=success_after]")
    before = opened.column("name")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert opened.column("name") == before
    assert len(before) == 7


def test_nothing_outside_the_page_is_asked_for(opened: Opened) -> None:
    assert opened.requests
    assert [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_a_phone_does_not_scroll_sideways(opened: Opened) -> None:
    opened.page.set_viewport_size({"width": 390, "height": 844})
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 390
    opened.page.set_viewport_size(SCREEN)


def test_dark_mode_follows_the_system_until_the_button_is_pressed(opened: Opened) -> None:
    page = opened.page

    def is_dark() -> bool:
        return page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 25)"

    seen = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        seen.append(is_dark())
    for _ in range(2):
        page.click("#theme")
        seen.append(is_dark())
    assert seen == [False, True, False, True]


@pytest.mark.slow
def test_two_thousand_runs_open(browser: "sync_api.Browser", tmp_path: Path) -> None:
    write_many(tmp_path, 2000)
    assert dashboard.main([str(tmp_path)]) == 0
    found = Opened(browser, tmp_path)
    found.page.click("[data-view=runs]")
    assert found.page.locator("#table tbody tr").count() == 200
    found.page.click("#more")
    assert found.page.locator("#table tbody tr").count() == 2000
    found.close()
