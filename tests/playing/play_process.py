"""The command play in a process, asked as the page asks it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import time

import commands


@contextlib.contextmanager
def playing(tmp_path, *flags):
    """The connection to a page that the command serves; ends with it."""
    out, err = tmp_path / "out", tmp_path / "err"
    process = commands.start("play", *flags, "--port=0", out=out, err=err)
    try:
        end = time.monotonic() + 120
        while not (found := re.search(r"http://(\S+):(\d+)/", err.read_text() if
                                      err.exists() else "")):  # fmt: skip
            assert process.is_alive(), err.read_text()
            assert time.monotonic() < end, err.read_text()
            time.sleep(0.1)
        yield http.client.HTTPConnection(found[1], int(found[2]), timeout=60)
        process.terminate()
        process.join(30)
        assert process.exitcode == 0
        assert "Traceback" not in err.read_text()
    finally:
        process.kill()


def answer(connection, query):
    """The answer to a question without a file."""
    connection.request("POST", f"/answer?{query}", body="")
    return json.loads(connection.getresponse().read())


def facts(connection):
    """What the page knows of the model."""
    connection.request("GET", "/")
    page = connection.getresponse().read().decode("utf-8")
    return json.loads(page.split('id="facts">')[1].split("</script>")[0])
