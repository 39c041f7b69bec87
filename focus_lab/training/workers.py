"""The workers of a trial, as one of them sees them: who it is, what it hears from the others."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from focus_lab.training.batch_norm import synchronise_batch_norm
from focus_lab.training.watchdog import WAITING


class Workers:
    """A trial's only worker; `ProcessGroup` is one of several.

    Whatever the number of workers, the same is computed: each gets its part of every global batch,
    and sums run over all of them.

    Args:
        rank: this worker.
        size: how many there are.
        watchdog: told what this worker does next, again and again.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, watchdog: Callable[[str], None] = lambda doing: None
    ) -> None:
        self.rank, self.size, self._watchdog = rank, size, watchdog
        self._doing = "starting"

    def goes_on(self, doing: str) -> None:
        """This worker begins with something."""
        self._doing = doing
        self._watchdog(doing)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the context this worker waits for the others."""
        doing = self._doing
        self.goes_on(WAITING)
        yield
        self.goes_on(doing)

    @property
    def first(self) -> bool:
        """Whether this worker writes, tracks and draws for all."""
        return self.rank == 0

    def all_counts(self, counts: Sequence[int]) -> list[list[int]]:
        """Everybody's counts, in order of rank."""
        return [list(counts)]

    def gather(self, content: Any) -> list[Any]:
        """Everybody's content, in order of rank, for the first worker; others get nothing."""
        return [content]

    def broadcast(self, content: Any) -> Any:
        """The first worker's content."""
        return content

    def wrap(self, model: nn.Module) -> nn.Module:
        """What to call in training, so that gradients are means over workers."""
        return model

    def sum_of(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Sums over workers by name, for the first worker; others get nothing."""
        total: dict[str, float] = {}
        for part in self.gather(dict(numbers)):
            for name, number in part.items():
                total[name] = total.get(name, 0.0) + number
        return total


class ProcessGroup(Workers):
    """One of several workers, in the process group that has been set up.

    What only the host needs goes through gloo, so that nobody waits for a GPU.

    Args:
        watchdog: told what this worker does next, again and again.
        timeout_s: seconds that a worker waits for the others.
    """

    def __init__(
        self, watchdog: Callable[[str], None] = lambda doing: None, timeout_s: float = 1800.0
    ) -> None:
        super().__init__(distributed.get_rank(), distributed.get_world_size(), watchdog)
        self._host = _new_group(timeout_s, "gloo")
        # Statistics of batch norms must not come between the gradients' messages.
        self._statistics = _new_group(timeout_s)

    def all_counts(self, counts: Sequence[int]) -> list[list[int]]:
        """See `Workers`."""
        mine = torch.tensor(counts, dtype=torch.int64)
        everybodys = [torch.empty_like(mine) for _ in range(self.size)]
        with self.waiting():
            distributed.all_gather(everybodys, mine, group=self._host)
        return [theirs.tolist() for theirs in everybodys]

    def gather(self, content: Any) -> list[Any]:
        """See `Workers`."""
        gathered: list[Any] | None = [None] * self.size if self.first else None
        with self.waiting():
            distributed.gather_object(content, gathered, dst=0, group=self._host)
        return gathered or []

    def broadcast(self, content: Any) -> Any:
        """See `Workers`; tensors arrive on the host."""
        packed: list[Any] = [None]
        if self.first:
            buffer = io.BytesIO()
            torch.save(content, buffer)
            packed = [buffer.getvalue()]
        with self.waiting():
            distributed.broadcast_object_list(packed, src=0, group=self._host)
        if self.first:
            return content
        # From this trial's own first worker, over the same channel as its gradients.
        return torch.load(io.BytesIO(packed[0]), map_location="cpu", weights_only=False)

    def wrap(self, model: nn.Module) -> nn.Module:
        """See `Workers`; batch norms of `model` become synchronised ones, in place."""
        synchronise_batch_norm(model, self._statistics)
        # As their gradients come: else they would be copied into the buckets element by element.
        model.to(memory_format=torch.channels_last)
        # Buffers are the same everywhere: norms are frozen or synchronised. The switch has another
        # name since torch 2.15.
        known = inspect.signature(DistributedDataParallel).parameters
        switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        settings: dict[str, Any] = {switch: False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(model, **settings)


def _new_group(timeout_s: float, backend: str | None = None) -> distributed.ProcessGroup:
    """Another process group of all workers."""
    group = distributed.new_group(backend=backend, timeout=timedelta(seconds=timeout_s))
    assert isinstance(group, distributed.ProcessGroup)
    return group


ALONE = Workers()
"""The only worker of a trial."""
