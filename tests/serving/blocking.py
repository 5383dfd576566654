"""The asyncio client with blocking methods, so one test covers both clients."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from branchy_tf.serving import AsyncEarlyExitClient


class Blocking:
    """An `AsyncEarlyExitClient` on its own event loop; thread-safe."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.client = AsyncEarlyExitClient(*arguments, **keywords)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def close(self) -> None:
        self._wait(self.client.close())

    def predict(self, *arguments: Any, **keywords: Any) -> Any:
        return self._wait(self.client.predict(*arguments, **keywords))

    def all_exits(self, *arguments: Any, **keywords: Any) -> Any:
        return self._wait(self.client.all_exits(*arguments, **keywords))

    def describe(self, *arguments: Any, **keywords: Any) -> Any:
        return self._wait(self.client.describe(*arguments, **keywords))

    def wait_until_ready(self, *arguments: Any, **keywords: Any) -> Any:
        return self._wait(self.client.wait_until_ready(*arguments, **keywords))

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(120)
