"""One program as several processes: who is who, and what rank 0 decides for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from .errors import InputError
from .progress import ProgressBar

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


def process_device(asked: str | None, state: PartialState) -> str:
    """The device of this process: of several, each has a GPU of its own, or all share the CPU.

    Raises:
        InputError: one device was named for several processes.
    """
    if asked is None or (asked == "cuda" and state.num_processes > 1):
        return str(state.device)
    if state.num_processes > 1 and asked != "cpu":
        raise InputError(
            f"--device {asked} is for one process, but {state.num_processes} were launched: leave it out."
        )
    return asked


@contextmanager
def shared_bar(
    state: PartialState, about: str, total: int, count: Callable[[], int]
) -> Iterator[ProgressBar]:
    """A progress bar over the scenes of all processes, with the time left; the block ends with the last one.

    Args:
        state: only rank 0 shows the bar.
        about: what is done to the scenes.
        total: scenes of all processes.
        count: how many are done, by all processes; asked whenever `bar.update` is to be called.
    """
    with ProgressBar(
        desc=about, total=total, initial=count(), unit="scene", disable=not state.is_main_process
    ) as bar:
        yield bar
        state.wait_for_everyone()
        bar.update(count() - bar.n)
