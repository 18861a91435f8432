"""The processes of a run: one; as many as `training.devices`; or those torchrun has started."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

from spectramind_fused import files
from spectramind_fused.config.check import ConfigError, RunError
from spectramind_fused.training.interrupts import Interrupted, handed_on, raised

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class LostProcess(RunError):
    """A process of the run is gone; whoever is left says so, for the first one may be gone."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}. training.resume goes on from its last checkpoint.")


def started_by_torchrun() -> bool:
    """Whether the processes exist already, each with this program."""
    return "TORCHELASTIC_RUN_ID" in os.environ  # as torch.distributed.is_torchelastic_launched


def count(devices: int) -> int:
    """How many processes a run of so many devices has."""
    return int(os.environ["WORLD_SIZE"]) if started_by_torchrun() else devices


def is_first() -> bool:
    """Whether this process is the one that speaks and writes."""
    return not started_by_torchrun() or os.environ["RANK"] == "0"


def launched(
    function: Callable[..., Any],
    *arguments: Any,
    accelerator: str,
    devices: int,
    precision: str,
) -> Any:
    """Calls `function(fabric, *arguments)` in every process of a run.

    Args:
        function: of a module, so that a new process finds it.
        *arguments: can be pickled.
        accelerator: as Fabric takes it.
        devices: how many processes to start; under torchrun those that it started count.
        precision: as Fabric takes it.

    Returns:
        What it returned in the first process.

    Raises:
        ConfigError: it was raised there.
        Interrupted: it was raised there.
        RunError: a file could not be read or written there.
        LostProcess: one of them was killed.
    """
    from lightning_fabric import Fabric  # takes a second
    from torch.multiprocessing.spawn import ProcessException, ProcessExitedException

    if started_by_torchrun():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        spread = {"devices": here, "num_nodes": count(devices) // here, "strategy": "ddp"}
    elif devices > 1:
        spread = {"devices": devices, "strategy": "ddp_spawn"}
    else:
        spread = {"devices": 1}
    fabric: Any = Fabric(accelerator=accelerator, precision=precision, **spread)  # type: ignore[arg-type]
    alone = fabric.world_size == 1 or started_by_torchrun()
    signals: AbstractContextManager[list[int]] = nullcontext([]) if alone else handed_on()
    with signals as came:
        try:
            outcome = fabric.launch(_outcome, warnings.formatwarning, function, arguments)
        except ProcessException as error:
            if came:
                raise Interrupted(came[0]) from error
            if not isinstance(error, ProcessExitedException):
                raise
            how = error.signal_name or f"exit code {error.exit_code}"
            raise LostProcess(f"its process {error.error_index} was killed ({how})") from error
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _outcome(
    fabric: Fabric, told: Any, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    """What the function returns, or the error that is told in a sentence: either is handed over."""
    warnings.formatwarning = told
    parent = os.getppid()
    if fabric.world_size > 1:
        threading.Thread(target=_end_with, args=[parent], daemon=True).start()
    try:
        with raised(), warnings.catch_warnings():  # a process that was started has no handlers yet
            if not fabric.is_global_zero:
                warnings.simplefilter("ignore")  # the first process says it
            return function(fabric, *arguments)
    except (ConfigError, RunError, Interrupted) as error:
        return error
    except RuntimeError as error:
        if fabric.world_size > 1 and _of_another(error):
            lost = f"its process {fabric.global_rank} lost the connection to another one"
            return LostProcess(lost)
        raise
    except BrokenPipeError:  # nobody reads what it prints
        raise
    except OSError as error:
        return RunError(files.reason(error))
    finally:
        import torch

        if fabric.world_size > 1 and os.getppid() != parent:
            _end_alone()  # nobody is there to tell the outcome to
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gc.collect()  # a process group left in a reference cycle would abort Python at exit
            torch.distributed.destroy_process_group()


def tell(why: str) -> None:
    """Says why a run ended, in one write: other processes may speak at the same moment."""
    sys.stderr.write(f"spectramind: the run ended: {why}\n")
    sys.stderr.flush()


def _of_another(error: RuntimeError) -> bool:
    """Whether a collective failed; gloo has no class of errors of its own."""
    import torch

    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _end_with(parent: int) -> None:
    """Ends this process when the one that started it is gone, as one that is killed cannot tell.

    Otherwise it would train on, and write where the run is resumed.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    _end_alone()


_ending = threading.Lock()  # of whichever thread sees it first; it stays taken


def _end_alone() -> NoReturn:
    """Says why and ends."""
    _ending.acquire()
    tell("the process that started it was killed.")
    os._exit(1)
