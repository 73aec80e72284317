"""One program as several processes: who is who, and what rank 0 decides for all."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

_TIMEOUT = timedelta(days=1)  # a process may wait so long for the others: for a download, or a slow scene
_T = TypeVar("_T")


def process_state(cpu: bool) -> PartialState:
    """This process among those that were launched together; alone if it was started by itself.

    Not an `Accelerator`, which would prepare a model for training: averaged gradients are of no use here.
    """
    return PartialState(cpu=cpu, timeout=_TIMEOUT)


def from_main(state: PartialState, prepare: Callable[[], _T]) -> _T | None:
    """What `prepare` returns in rank 0, in all processes; what it raises is raised there, others get None."""
    box: list[_T | None] = [None]
    failure = None
    if state.is_main_process:
        try:
            box = [prepare()]
        except Exception as error:  # raised after the others were told, who would wait forever
            failure = error
    broadcast_object_list(box)
    if failure is not None:
        raise failure
    return box[0]
