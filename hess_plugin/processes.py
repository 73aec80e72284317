"""One program as several processes: who is who, and what rank 0 decides for all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from .errors import InputError
from .progress import ProgressBar

_TIMEOUT = timedelta(days=1)  # a process may wait so long for the others: for a download, or a slow scene
_T = TypeVar("_T")


def process_state(cpu: bool) -> PartialState:
    """This process among those that were launched together; alone if it was started by itself.

    Not an `Accelerator`, which would prepare a model for training: averaged gradients are of no use here.
    Processes tell each other a few Python objects, which gloo carries as well as NCCL; but NCCL refuses two
    on one GPU, where a small model wants several: its passes leave a GPU waiting for launches.
    """
    launched = {"backend": "gloo"} if "LOCAL_RANK" in os.environ else {}
    return PartialState(cpu=cpu, timeout=_TIMEOUT, **launched)


def wait_for_all(state: PartialState) -> None:
    """Go on when all processes have come here.

    Not `state.wait_for_everyone`, which names each process's GPU by its rank, though there may be fewer.
    """
    if state.num_processes > 1:
        torch.distributed.barrier()


def shares_device(device: str) -> bool:
    """Whether other processes of this machine run on the device too, so that seconds there mean little."""
    devices = torch.cuda.device_count() if torch.device(device).type == "cuda" else 1
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > devices


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
    """The device of this process: of several, each has the GPU of its rank (modulo), or all share the CPU.

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
        wait_for_all(state)
        bar.update(count() - bar.n)
