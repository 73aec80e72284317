"""Files of the next scene are read while the present one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from .scene import Scene


def read_ahead(load: Callable[[str], Scene], scene_ids: Sequence[str]) -> Iterator[tuple[str, Future[Scene]]]:
    """Each scene with its files being read: those of the next one while this one is used.

    What `load` raises comes out of the future's `result()`.
    """
    with ThreadPoolExecutor(max_workers=1) as reader:
        queue: deque[tuple[str, Future[Scene]]] = deque()
        for scene_id in scene_ids:
            queue.append((scene_id, reader.submit(load, scene_id)))
            if len(queue) > 1:
                yield queue.popleft()
        yield from queue
