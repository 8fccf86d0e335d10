"""Workers that note what they do, for tests of where they run.

A module of its own, which Ray's processes can import.
"""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from omniforcing.core.errors import OmniForcingError
from omniforcing.data.tensors import is_done, to_sample, write_shard
from omniforcing.data.work import Done


@dataclass(frozen=True)
class Slow:
    """A worker that notes each start of a task, and dies once in the middle of the one named."""

    work: Path
    dies_at: str = ""
    says: str = ""

    def __call__(self, name: str, done: Done) -> None:
        with (self.work / "starts.txt").open("a") as file:
            file.write(f"{name} {os.getpid()}\n")
        if self.says:
            raise OmniForcingError("data.damaged-shard", self.says)
        if not is_done(self.work, name):
            write_shard(self.work, name, self.samples(name))
        done(3)

    def samples(self, name: str) -> Iterator[dict[str, Any]]:
        import torch

        for i in range(3):
            mark = self.work / "died"
            if name == self.dies_at and i == 1 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.05)
            yield to_sample(f"{name}{i}", {"x": torch.full((2,), float(i))}, name, {})


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("survived SIGKILL")
