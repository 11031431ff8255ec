"""The processes that train one network together: a single one, or those that torchrun started.

    torchrun --nproc_per_node=2 train_rain100H.py

Each process takes its share of every batch; gradients are averaged over all of them, so the steps
are those of one process with the same batch. The main process writes the run's files.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils import InputError, choose_device

Result = TypeVar("Result")
Item = TypeVar("Item")


class Processes:
    """This process among those that train together; alone, everything here does nothing."""

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ.get("RANK") or 0), int(os.environ.get("WORLD_SIZE") or 1)
        self.is_main = self.rank == 0

    def device(self, name: str) -> torch.device:
        """Return the device of --device; of several GPUs, each process takes its own."""
        device = choose_device(name)
        if device.type == "cuda" and device.index is None and self.size > 1:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK") or 0))
            torch.cuda.set_device(device)
        return device

    @contextmanager
    def connected(self, device: torch.device) -> Iterator[None]:
        """Connect the processes. Raises InputError if one of the others ends early."""
        if self.size == 1:
            yield
            return
        self.collective = device if device.type == "cuda" else torch.device("cpu")  # where sums are computed
        backend = "nccl" if device.type == "cuda" else "gloo"
        waiting = f"waiting for {self.size} processes (WORLD_SIZE); start them with torchrun, or unset WORLD_SIZE"
        reminder = threading.Timer(60, lambda: print(waiting, file=sys.stderr, flush=True))
        reminder.daemon = True
        reminder.start()
        dist.init_process_group(backend, store=_store(self.rank), rank=self.rank, world_size=self.size)
        reminder.cancel()
        self.parallel: nn.Module | None = None
        try:
            yield
        except RuntimeError as error:  # torch has no type of its own for a lost connection
            if not any(word in str(error).lower() for word in ("connection", "gloo", "nccl", "socket", "peer")):
                raise
            raise InputError(
                f"process {self.rank} of {self.size}: another process of this training ended; its message says why. "
                "The same command resumes from the last training state"
            ) from error
        finally:
            if self.parallel is not None:  # or torch may wait for ever while tearing it down (seen with 2.11)
                self.parallel.reducer = self.parallel.logger = None
            dist.destroy_process_group()

    def main_process_first(self, call: Callable[[], Result]) -> Result:
        """Return call(), run by the main process first and then by the others, who find what it wrote."""
        if self.size == 1:
            return call()
        if not self.is_main:
            dist.barrier()
        result = call()
        if self.is_main:
            dist.barrier()
        dist.barrier()
        return result

    def say(self, line: str) -> None:
        """Print a line, once for all processes."""
        if self.is_main:
            print(line, flush=True)

    def share(self, batch: list[Item]) -> tuple[list[Item], float]:
        """Return this process's part of a batch, and the part's weight; the mean weight of all processes is 1.

        A part is never empty: where a batch has fewer items than there are processes, some weights are 0.
        """
        part = batch[self.rank :: self.size]
        return part or batch[:1], len(part) * self.size / len(batch)

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network with gradients averaged over the processes."""
        if self.size == 1:
            return network
        self.parallel = DistributedDataParallel(network)
        return self.parallel

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a CPU tensor over the processes."""
        if self.size == 1:
            return values
        values = values.to(self.collective)
        dist.all_reduce(values)
        return values.cpu()


def _store(rank: int) -> "dist.Store":  # some builds of torch have none
    """Return where the processes find each other: torchrun's store, under a different name for every restart.

    Under one name, as in torch, restarted processes find the addresses of those that ended, and wait for
    them (pytorch issue 135712; still so in torch 2.14). Restarts are counted per machine.
    """
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT", "GROUP_WORLD_SIZE")
    address, port, restarts, machines = (os.environ.get(name, "0") for name in names)
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun; otherwise by the main process
    store = dist.TCPStore(address, int(port), is_master=not hosted and rank == 0)
    return dist.PrefixStore(f"training, restart {restarts if machines == '1' else 0}", store)
