"""Renders the page of the command play."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import TYPE_CHECKING

import jinja2

from branchy_tf.playing import pictures
from branchy_tf.report import assets

if TYPE_CHECKING:
    from branchy_tf.playing.server import PlayServer

_SCRIPT = pathlib.Path(__file__).parent / "play.js"


def render(server: PlayServer) -> tuple[str, str]:
    """The page, and the Content-Security-Policy that allows its script alone."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("branchy_tf.playing", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    facts, script = server.subject.facts, assets.text(_SCRIPT)
    data = dataclasses.asdict(facts) | {
        "thresholds": None
        if facts.thresholds is None
        else ["inf" if math.isinf(t) else float(t) for t in facts.thresholds],
        "classes": server.classes,
        "milliseconds": server.milliseconds,
        "samples": 0 if server.samples is None else len(server.samples),
    }
    text = environment.get_template("page.html.jinja").render(
        facts=facts,
        board=pictures.BOARD,
        draws=server.draws,
        samples=data["samples"],
        data=assets.inlined(data),
        style=assets.text(assets.STYLE),
        script=script,
    )
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; style-src "
        f"'unsafe-inline'; script-src '{assets.content_hash(script)}'"
    )
    return text, policy
