"""The page of the command play with many exits, odd names, huge files, failing units."""

from __future__ import annotations

import contextlib
import threading

import browsers
import numpy as np
from page_actions import huge_png, settled, stroke

from branchy_tf import playing
from branchy_tf.playing import Facts, Subject
from branchy_tf.playing.server import MOST_BYTES
from branchy_tf.policy import ExitPolicy
from branchy_tf.results import AllExits, Predictions, exit_name

SCRIPT = '</script><script>globalThis.broken = 1</script><img src=x onerror="broken=1">'


class Made:
    """A predictor whose exits have scores of the test; as many rows as there are images.

    Attributes:
        working: the exits that answer; a later one's rows are degraded.
    """

    def __init__(self, policy, classes, scores):
        self.policy = policy
        self.scores = np.asarray(scores, np.float32)
        self.working = len(scores)
        random = np.random.default_rng(0)
        made = random.dirichlet(np.full(classes, 0.05), len(scores))
        self.probabilities = made.astype(np.float32)

    def predict(self, images, thresholds=None):
        policy = self.policy
        if thresholds is not None:
            policy = policy.replace(thresholds=thresholds)
        exits = policy.exit_indices(np.tile(self.scores, (len(images), 1)))
        late = exits >= self.working
        exits = np.minimum(exits, self.working - 1).astype(np.int32)
        return Predictions(
            self.probabilities[exits], exits, self.scores[exits], None, late
        )

    def all_exits(self, images):
        probabilities, scores = self.probabilities.copy(), self.scores.copy()
        probabilities[self.working :] = scores[self.working :] = np.nan
        return AllExits(probabilities[None], scores[None])


@contextlib.contextmanager
def opened(browser, predictor, **facts):
    """The open page over a made predictor; fails on any error in its script."""
    policy, number = predictor.policy, len(predictor.scores)
    known = Facts(
        name=facts.pop("name", "net"),
        shape=(28, 28, 1),
        exits=[exit_name(k + 1) for k in range(number)],
        criterion=policy.criterion,
        thresholds=policy.thresholds,
        macs=[1000 * (k + 1) for k in range(number)],
        **facts,
    )
    context, errors = browser.new_context(), []
    with playing.PlayServer(Subject(predictor, known, np.uint8)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.url)
        yield page
        context.close()
        server.shutdown()
    assert not errors


def test_many_exits_and_classes_and_infinite_thresholds(browser):
    limits = [0.0, np.inf, *[0.1] * 37]
    made = Made(ExitPolicy(thresholds=limits), 1000, np.linspace(2, 0, 40))
    names = [SCRIPT, *(f"class {c} of a thousand" for c in range(999))]
    made.probabilities[1, 0] = 2.0
    with opened(browser, made, class_names=names, name=SCRIPT) as page:
        stroke(page, (0.5, 0.15), (0.5, 0.85))
        settled(page, f"exit_2 answers {SCRIPT}.")
        assert page.locator("h1").inner_text() == f"Play with {SCRIPT}"
        assert page.locator(".answer").count() == 40
        assert page.locator(".answer li").count() == 200
        assert page.input_value("#field-2") == "inf"
        page.fill("#field-2", "0.05")
        settled(page, "exit_39 answers")
        assert page.evaluate("globalThis.broken") is None
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found = browsers.contrasts(page)
            assert len(found) > 500
            assert found[0][0] >= 4.5, found[:5]
        assert browsers.unlabelled(page) == []
        page.set_viewport_size({"width": 400, "height": 800})
        assert not browsers.is_too_wide(page)


def test_a_degraded_answer_says_so(browser):
    made = Made(ExitPolicy(thresholds=[0.5, 0.5]), 3, [1.0, 1.0, 1.0])
    with opened(
        browser, made, units=["device", "device", "cloud"], place="net on host:1"
    ) as page:
        assert page.get_by_text("Asks net on host:1.").is_visible()
        stroke(page, (0.5, 0.15), (0.5, 0.85))
        settled(page, "exit_3 (cloud) answers")
        assert page.locator("#degraded").is_hidden()
        made.working = 2
        page.click("#calibrated")
        settled(page, "exit_2 (device) answers")
        assert page.locator("#degraded").is_visible()
        last = page.locator(".answer").nth(2).inner_text()
        assert "The unit cloud does not answer." in last
        title = page.locator(".answer.taken h3").inner_text()
        assert title == "exit_2 (device): the best answer so far"
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert browsers.contrasts(page)[0][0] >= 4.5


def test_two_people_use_one_page(browser, server):
    contexts = [browser.new_context() for _ in range(2)]
    first, second = (context.new_page() for context in contexts)
    for page, points, threshold in (
        (first, [(0.5, 0.15), (0.5, 0.85)], "0"),
        (second, [(0.25, 0.2), (0.75, 0.2), (0.45, 0.85)], "inf"),
    ):
        page.goto(server.url)
        page.fill("#field-1", threshold)
        stroke(page, *points)
    settled(first, "exit_2 answers 1")
    settled(second, "exit_1 answers 7")
    # Neither has the other's thresholds after a question of the other.
    first.click("#calibrated")
    assert second.input_value("#field-1") == "inf"
    for context in contexts:
        context.close()


# Drops a file of so many zeros, which would be slow to send to the browser.
_DROP_ZEROS = """(size) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(size)], "a.png", { type: "image/png" }));
  const options = { dataTransfer: data, bubbles: true, cancelable: true };
  document.body.dispatchEvent(new DragEvent("drop", options));
}"""


def test_huge_images_are_refused_and_the_page_goes_on(browser, server):
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    for name, width in (("big.png", 10_000), ("bigger.png", 60_000)):
        content = huge_png(width, width)
        file = {"name": name, "mimeType": "image/png", "buffer": content}
        page.set_input_files("#file", file)
        settled(page, name)
        assert page.locator("#summary.bad").count() == 1
    page.evaluate(_DROP_ZEROS, MOST_BYTES + 1)
    settled(page, "expected at most 67,108,864")
    stroke(page, (0.5, 0.15), (0.5, 0.85))
    settled(page, "answers 1")
    page.click("#clear")
    page.fill("#field-1", "0")
    assert "answers 1" in page.locator("#summary").inner_text()
    context.close()
