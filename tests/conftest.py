"""What every test finds: WarpDrive imported without gym's notice, and a thread count that no test leaves changed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import rbc_warp  # noqa: F401  before WarpDrive, which imports gym: keeps gym from printing its notice


@pytest.fixture(autouse=True)
def settings_of_the_process() -> Iterator[None]:
    """Restores torch's thread count and the root logger's level, which some tests and WarpDrive's checker change."""
    threads, level = torch.get_num_threads(), logging.getLogger().level
    yield
    torch.set_num_threads(threads)
    logging.getLogger().setLevel(level)


@pytest.fixture
def root() -> Path:
    """The folder of the project."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def one_thread(settings_of_the_process: None) -> None:
    """Lets torch and the kernels run on one thread."""
    torch.set_num_threads(1)
