"""The processes that train one network together: a single one, or as many as torchrun started.

    torchrun --nproc_per_node=2 train_rain100H.py

Each process takes its share of every batch; gradients are averaged over all of them, so the steps
are those of one process with the same batch. The first process writes the run's files.
"""

from __future__ import annotations

import os
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
        self.rank, self.size = (int(os.environ.get(name, one)) for name, one in (("RANK", 0), ("WORLD_SIZE", 1)))
        self.is_main = self.rank == 0

    def device(self, name: str) -> torch.device:
        """--device for this process: of several GPUs, each process takes its own."""
        device = choose_device(name)
        if device.type == "cuda" and device.index is None and self.size > 1:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        return device

    @contextmanager
    def connected(self, device: torch.device) -> Iterator[None]:
        """Within this context the processes can reach each other. Raises InputError when one of them is gone."""
        if self.size == 1:
            yield
            return
        self.collective = device if device.type == "cuda" else torch.device("cpu")  # where sums are made
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_store(), rank=self.rank, world_size=self.size)
        try:
            yield
        except RuntimeError as error:  # torch has no type of its own for a lost connection
            if not any(word in str(error).lower() for word in ("connection", "gloo", "nccl", "socket", "peer")):
                raise
            raise InputError(
                f"process {self.rank} of {self.size}: another process of this training ended; its message says why. "
                f"The same command goes on from the last training state"
            ) from error
        finally:
            dist.destroy_process_group()

    def main_process_first(self, call: Callable[[], Result]) -> Result:
        """call() by the first process alone, then by all others: what it writes is there for them to read."""
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
        """The network with gradients averaged over the processes."""
        return network if self.size == 1 else DistributedDataParallel(network)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor on the CPU over the processes, the same in each of them."""
        if self.size == 1:
            return values
        values = values.to(self.collective)
        dist.all_reduce(values)
        return values.cpu()


def _store() -> dist.Store:
    """Where the processes find each other: torchrun's store, under a name of its own for every restart.

    Under one name, as torch has it, restarted processes can find the addresses of those that ended,
    and wait for them (pytorch issue 135712). Restarts are counted per machine.
    """
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT", "GROUP_WORLD_SIZE")
    address, port, restarts, machines = (os.environ.get(name, "0") for name in names)
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun itself; else by the first process
    store = dist.TCPStore(address, int(port), is_master=not hosted and os.environ["RANK"] == "0")
    return dist.PrefixStore(f"training, restart {restarts if machines == '1' else 0}", store)
