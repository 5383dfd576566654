"""The sliders of report.html, in a real browser."""

from __future__ import annotations

import io
import json
import re
import statistics

import browsers
import numpy as np
import pages
import pytest
from PIL import Image

from branchy_tf.policy import ExitPolicy
from branchy_tf.scoring import Answers
from branchy_tf.thresholds import evaluate


def is_percentage(text, share, digits=2):
    """Whether a text is the share rounded; ties may be rounded either way."""
    return abs(float(text.removesuffix(" %")) - 100 * share) <= 0.5001 * 10**-digits


def figure(page, row, column=1):
    """The text of a cell of the table of figures."""
    line = page.locator("#figures tbody tr").filter(has_text=re.compile(f"^{row}"))
    return line.locator("td").nth(column - 1).inner_text()


SMALLEST = float(np.finfo(np.float32).tiny)


def odd_scores(rows=300, exits=4, seed=1):
    """Scores with ties, neighbours, denormal numbers, 0, infinity and NaN."""
    random = np.random.default_rng(seed)
    odd = np.float32([0, np.inf, np.nan, 0.1, np.nextafter(np.float32(0.1), 1), SMALLEST,
                      SMALLEST / 4, 1e-30, 3e38, 0.5, 0.25])  # fmt: skip
    scores = random.gamma(1, 0.5, (rows, exits)).astype(np.float32)
    mask = random.random(scores.shape) < 0.5
    scores[mask] = random.choice(odd, mask.sum())
    return scores


def test_rows_take_the_exits_of_the_policy(tmp_path, opened):
    every = pages.answers(300, 4)
    every = Answers(every.probabilities, odd_scores(), every.labels)
    page = opened(pages.write(tmp_path, every, ExitPolicy(thresholds=[0.1, 0.2, 0.3])))
    random = np.random.default_rng(2)
    pool = [0.0, np.inf, 0.1, 0.5, SMALLEST, SMALLEST / 2, 1e-30, 1e-50, 3e38, 1e39, 0.25,
            float(np.float32(0.1)), 0.1 + 1e-9, 5e-324]  # fmt: skip
    values = every.scores[np.isfinite(every.scores)].astype(float)
    for _ in range(200):
        thresholds = [
            float(random.choice(pool if random.random() < 0.5 else values))
            for _ in range(3)
        ]
        with np.errstate(over="ignore"):
            expected = ExitPolicy(thresholds=thresholds).exit_indices(every.scores)
        assert pages.exits_on(page, thresholds) == expected.tolist(), thresholds


def test_figures_are_those_of_the_package(tmp_path, opened):
    every = pages.answers(2000, 3)
    policy = ExitPolicy(thresholds=[0.3, 0.4])
    page = opened(pages.write(tmp_path, every, policy))
    for thresholds in ([0.3, 0.4], [0.0, np.inf], [np.inf, 0.0], [0.0, 0.0]):
        for k, threshold in enumerate(thresholds):
            page.fill(f"#field-{k + 1}", "inf" if threshold == np.inf else str(threshold))
        point = evaluate(every.scores, every.correct, [1000, 2000, 3000], thresholds)
        assert is_percentage(figure(page, "accuracy"), point.accuracy)
        assert figure(page, "multiply-adds") == f"{round(point.cost):,}"
        assert figure(page, "gain") == f"{2700 / point.cost:.2f}\N{MULTIPLICATION SIGN}"
        for k, rate in enumerate(point.exit_rates):
            told = page.locator(f"#told-{k + 1}").inner_text().split(" exit here")[0]
            assert is_percentage(told, rate, 1)
        exits = ExitPolicy(thresholds=thresholds).exit_indices(every.scores)
        right = every.correct[np.arange(2000), exits]
        cells = page.locator("#classes tbody tr").nth(3).locator("td").all_inner_texts()
        assert cells[0] == str((every.labels == 3).sum())
        assert is_percentage(cells[1], right[every.labels == 3].mean(), 1)
        both = page.locator("#agreement td").first.inner_text()
        assert is_percentage(both, (right & every.correct[:, -1]).mean())
    # The calibrated column does not move.
    point = evaluate(every.scores, every.correct, [1000, 2000, 3000], policy.thresholds)
    assert is_percentage(figure(page, "accuracy", 2), point.accuracy)


def test_keys_move_a_slider(tmp_path, opened):
    every = pages.answers(100, 2)
    page = opened(pages.write(tmp_path, every, ExitPolicy(thresholds=[0.3])))
    page.focus("#slider-1")
    page.keyboard.press("End")
    assert page.input_value("#field-1") == "inf"
    assert page.locator("#told-1").inner_text().startswith("100.0 %")
    page.keyboard.press("Home")
    assert page.input_value("#field-1") == "0"
    seen = {}
    for position in range(1, 102):
        page.keyboard.press("ArrowRight")
        if position in (1, 2, 50, 99, 100, 101):
            threshold = float(page.input_value("#field-1"))
            exits = ExitPolicy(thresholds=[threshold]).exit_indices(every.scores)
            seen[position] = int((exits == 0).sum())
            told = page.locator("#told-1").inner_text().split(" exit here")[0]
            assert is_percentage(told, (exits == 0).mean(), 1)
    # Each position lets one more distinct score exit.
    assert seen == {p: min(p, 100) for p in seen}
    said = page.get_attribute("#slider-1", "aria-valuetext")
    assert said == "threshold inf, 100.0 % exit here"
    assert "Accuracy" in page.locator("#status").inner_text()


def test_budget_moves_along_the_frontier(tmp_path, opened):
    every = pages.answers(800, 3)
    path = pages.write(tmp_path, every, ExitPolicy(thresholds=[0.3, 0.4]))
    page = opened(path)
    points = pages.frontier_of(every, [1000, 2000, 3000])
    page.focus("#budget")
    page.keyboard.press("Home")
    for index in (0, 1, 2):
        found = page.evaluate("sliders.thresholds()")
        assert found == points[index]["thresholds"]
        assert is_percentage(figure(page, "accuracy"), points[index]["accuracy"])
        page.keyboard.press("ArrowRight")


def test_refuses_what_is_no_threshold(tmp_path, opened):
    page = opened(
        pages.write(tmp_path, pages.answers(50, 2), ExitPolicy(thresholds=[0.3]))
    )
    before = page.locator("#told-1").inner_text()
    for text in ("-1", "nan", "abc", "", "1,5"):
        page.fill("#field-1", text)
        assert page.get_attribute("#field-1", "aria-invalid") == "true"
        assert "at least 0" in page.locator("#refused").inner_text()
        assert page.locator("#told-1").inner_text() == before
    # The buttons do not move away from under the pointer when the message goes.
    page.click("#none")
    assert page.input_value("#field-1") == "0"
    page.click("#calibrated")
    assert page.input_value("#field-1") == "0.3"
    assert page.locator("#refused").is_hidden()


def test_policy_is_copied_as_flags_json_and_python(tmp_path, opened):
    policy = ExitPolicy(
        criterion="margin", thresholds=[0.1, np.inf], temperatures=[0.9, 1.25, 1 / 3]
    )
    path = pages.write(tmp_path, pages.answers(50, 3), policy.replace(weights="abc"))
    page = opened(path)
    flags = page.input_value("#policy")
    found = dict(part[2:].split("=") for part in flags.split(" \\\n"))
    given = {name: [float(x) for x in found[name].split(",")]
             for name in ("thresholds", "temperatures")}  # fmt: skip
    assert ExitPolicy(criterion=found["criterion"], **given) == policy
    page.select_option("#form", "json")
    file = tmp_path / "thresholds.json"
    file.write_text(page.input_value("#policy"))
    assert ExitPolicy.load(file) == policy
    assert ExitPolicy.load(file).weights == "abc"
    page.select_option("#form", "python")
    assert eval(page.input_value("#policy"), {"ExitPolicy": ExitPolicy}) == policy
    page.evaluate(
        """navigator.clipboard.writeText = async (text) => { globalThis.kept = text; }"""
    )
    page.click("#copy")
    page.wait_for_function("document.getElementById('copied').textContent")
    assert page.evaluate("kept") == page.input_value("#policy")


def test_images_that_change_are_shown(tmp_path, opened):
    every = pages.answers(400, 2)
    images = np.random.default_rng(0).integers(0, 256, (400, 28, 28, 1), np.uint8)
    path = pages.write(tmp_path, every, ExitPolicy(thresholds=[0.3]), images)
    page = opened(path)
    assert page.locator("#changes").inner_text() == "No row takes another exit."
    assert page.locator("#thumbnails figure:visible").count() == 0
    page.fill("#field-1", "0.8")
    before = ExitPolicy(thresholds=[0.3]).exit_indices(every.scores)
    after = ExitPolicy(thresholds=[0.8]).exit_indices(every.scores)
    given = every.given
    rows = np.arange(400)
    moved = before != after
    other = given[rows, before] != given[rows, after]
    text = page.locator("#changes").inner_text()
    assert text.startswith(f"{moved.sum()} of 400 rows take another exit; {other.sum()} ")
    shown = page.locator("#thumbnails figure:visible")
    assert shown.count() == min(24, moved.sum())
    # Changed answers come first.
    captions = shown.locator("figcaption").all_inner_texts()
    answers = [re.findall(r"exit_\d: (\d+)", caption) for caption in captions]
    assert all(a != b for a, b in answers[: min(other.sum(), 24)])
    # The two thresholds compared: now against later.
    page.click("#compare-now")
    assert page.locator("#changes").inner_text() == "No row takes another exit."
    page.click("#calibrated")
    assert page.locator("#changes").inner_text().startswith(f"{moved.sum()} of 400")


def test_thumbnails_are_the_rows_pictures(tmp_path, opened):
    # Each image has a grey of its own, by its label.
    every = pages.answers(60, 2)
    greys = (25 * every.labels).astype(np.uint8)
    images = np.tile(greys[:, None, None, None], (1, 20, 20, 1))
    page = opened(pages.write(tmp_path, every, ExitPolicy(thresholds=[0.0]), images))
    page.fill("#field-1", "inf")
    frames = page.locator("#thumbnails figure:visible")
    for i in range(0, frames.count(), 5):
        label = int(frames.nth(i).locator("figcaption").inner_text().split(".")[0])
        drawn = Image.open(io.BytesIO(frames.nth(i).locator(".thumbnail").screenshot()))
        middle = np.asarray(drawn.convert("L"))[20:30, 20:30]
        assert abs(middle.astype(int) - 25 * label).max() <= 6


def test_test_figures_stand_beside_and_milliseconds_are_counted(tmp_path, opened):
    every = pages.answers(100, 2)
    costs = {
        "stages": [{"macs": 1000}, {"macs": 1000}],
        "milliseconds": [
            {"batch": 8, "stage": 1, "ms_per_image": 0.5},
            {"batch": 8, "stage": 2, "ms_per_image": 2.0},
        ],
    }
    figures = {"accuracy": 0.9, "exit_rates": [0.75, 0.25], "macs": 1250.0, "gain": 1.5}
    path = pages.write(
        tmp_path, every, ExitPolicy(thresholds=[0.3]), costs=costs, figures=figures
    )
    page = opened(path)
    assert figure(page, "accuracy", 4) == "90.00 %"
    assert figure(page, "exit early", 4) == "75.0 %"
    rate = (every.scores[:, 0] < np.float32(0.3)).mean()
    expected = 0.5 + (1 - rate) * 2
    assert float(figure(page, "ms per image, batches of 8")) == pytest.approx(
        expected, rel=5e-3
    )
    assert float(figure(page, "ms per image, batches of 8", 4)) == pytest.approx(1.0)
    # The times of another network are left out.
    costs["stages"][0]["macs"] = 999
    page = opened(pages.write(tmp_path, every, ExitPolicy(thresholds=[0.3]), costs=costs))
    assert "ms per image" not in page.locator("#figures").inner_text()
    assert figure(page, "accuracy", 4) == "not evaluated"


SCRIPT = '</script><script>globalThis.broken = 1</script><img src=x onerror="broken=1">'


def test_names_cannot_bring_script(tmp_path, opened):
    every = pages.answers(100, 2, classes=3)
    path = pages.write(
        tmp_path,
        every,
        ExitPolicy(thresholds=[0.3]),
        class_names=[SCRIPT, "a&b<i>", "\u2028'\""],
        title=SCRIPT,
    )
    page = opened(path)
    assert page.evaluate("globalThis.broken") is None
    assert page.locator("#classes tbody th").first.inner_text() == SCRIPT
    assert page.locator("#classes tbody th").nth(1).inner_text() == "a&b<i>"
    assert page.locator("h1").inner_text() == SCRIPT


def test_the_page_runs_its_own_script_alone(tmp_path, browser):
    path = pages.write(tmp_path, pages.answers(20, 2), ExitPolicy(thresholds=[0.3]))
    # As a mistake in escaping would let it in.
    path.write_text(path.read_text().replace("<h1>", f"{SCRIPT}<h1>"))
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.locator("#slider-1").is_visible()
    assert page.evaluate("globalThis.broken") is None
    page.close()


def test_a_guarantee_is_not_promised_for_moved_thresholds(tmp_path, opened):
    every, policy = pages.answers(20, 2), ExitPolicy(thresholds=[0.3])
    page = opened(pages.write(tmp_path, every, policy, guarantee={"level": 0.95}))
    assert "Thresholds chosen here have none" in page.inner_text("#sliders .note")
    page = opened(pages.write(tmp_path, every, policy))
    assert page.locator("#sliders .note").count() == 0


@pytest.mark.parametrize(
    ("rows", "exits", "classes", "thresholds"),
    [
        (1, 2, 10, [np.inf]),
        (500, 40, 10, [0.1] * 39),
        (3000, 3, 1000, [0.2, np.inf]),
        (40, 2, 2, [0.0]),
        (40, 3, 300, [np.inf, np.inf]),
    ],
)
def test_unusual_sizes(tmp_path, opened, rows, exits, classes, thresholds):
    every = pages.answers(rows, exits, classes)
    policy = ExitPolicy(thresholds=thresholds)
    page = opened(pages.write(tmp_path, every, policy))
    assert pages.exits_on(page, thresholds) == policy.exit_indices(every.scores).tolist()
    page.focus("#slider-1")
    for key in ("Home", "ArrowRight", "End", "PageDown"):
        page.keyboard.press(key)
    page.focus("#budget")
    page.keyboard.press("End")
    assert figure(page, "accuracy").endswith(" %")
    assert page.locator("#classes tbody tr").count() <= 20
    page.set_viewport_size({"width": 400, "height": 800})
    assert not browsers.is_too_wide(page)


def test_scores_that_are_all_nan(tmp_path, opened):
    every = pages.answers(20, 2)
    every = Answers(every.probabilities, np.full_like(every.scores, np.nan), every.labels)
    page = opened(pages.write(tmp_path, every, ExitPolicy(thresholds=[np.inf])))
    assert page.locator("#told-1").inner_text().startswith("0.0 %")
    page.focus("#slider-1")
    page.keyboard.press("Home")
    assert page.input_value("#field-1") == "0"
    page.keyboard.press("ArrowRight")
    assert page.input_value("#field-1") == "inf"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_is_readable_and_labelled(tmp_path, opened, scheme):
    every = pages.answers(200, 3)
    images = np.zeros((200, 28, 28, 1), np.uint8)
    path = pages.write(tmp_path, every, ExitPolicy(thresholds=[0.3, 0.2]), images)
    page = opened(path, color_scheme=scheme)
    page.fill("#field-1", "0.9")
    page.fill("#field-2", "x")
    found = browsers.contrasts(page)
    assert len(found) > 50
    assert found[0][0] >= 4.5, found[:5]
    assert browsers.unlabelled(page) == []


def test_without_javascript_the_page_says_so(tmp_path, browser):
    every = pages.answers(20, 2)
    path = pages.write(tmp_path, every, ExitPolicy(thresholds=[0.3]))
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert "With JavaScript" in page.locator("noscript").inner_text()
    assert page.locator("#slider-1").is_hidden()
    assert page.locator("h2").first.is_visible()
    context.close()


def test_ten_thousand_rows_are_small_and_fast(tmp_path, opened, record_property):
    every = pages.answers(10_000, 5)
    images = np.zeros((10_000, 32, 32, 3), np.uint8)
    path = pages.write(
        tmp_path, every, ExitPolicy(thresholds=[0.3, 0.2, 0.2, 0.1]), images
    )
    text = path.read_text(encoding="utf-8")
    packed = json.loads(text.split('id="scores">')[1].split("</script>")[0])
    size = sum(map(len, [*packed["scores"], *packed["answers"], packed["labels"]]))
    assert size < 300_000
    page = opened(path)
    # The time of a step, the layout that the browser does after it included.
    steps = page.evaluate(
        """() => {
          const slider = document.getElementById("slider-2");
          const times = [];
          for (let i = 0; i < 60; i++) {
            slider.value = (i * 37) % 1000;
            const start = performance.now();
            slider.dispatchEvent(new Event("input"));
            document.body.offsetHeight;
            times.push(performance.now() - start);
          }
          return times;
        }"""
    )
    median = statistics.median(steps)
    record_property("median milliseconds of a step", float(median))
    print(f"a step takes {median:.1f} ms (median of {len(steps)})")
    # A busy machine adds to the median.
    assert min(steps) < 50
