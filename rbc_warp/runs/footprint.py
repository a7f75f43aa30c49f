"""What a run will need, told before anything is made: memory while it trains, and the files that it leaves.

The sizes follow from the configuration; what programs and libraries take was measured. Measured peaks are within 25 %.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rbc_warp.config import Config
from rbc_warp.economy.agents import AgentType
from rbc_warp.economy.parameters import Economy
from rbc_warp.errors import MachineError
from rbc_warp.training.fused import BLOCK_BYTES
from rbc_warp.training.learner import AUTOGRAD_BLOCK_ROWS
from rbc_warp.training.policy import Encoder
from rbc_warp.training.trainer import choose_precision

MIB, GIB = 1 << 20, 1 << 30
FLOAT = 4  # bytes, of an int32 too
# Measured: Python, torch, WarpDrive, TensorBoard, with nothing in them; beside a GPU, and on it.
PROGRAMS = {"host": 325 * MIB, "pycuda": 2 * GIB}
CUDA_CONTEXT = 600 * MIB
# Numbers per row while a batch is made: scaled rewards, advantages, targets, and their moments in float64.
BATCH_NUMBERS = 12
BLOCK_BUFFERS = 6
WHILE_SAVED = 1.4  # copies of all states of the largest type: themselves, and what checks them
POLICY_FILE, STATE_FILE = 3 * 1024, 8 * 1024  # bytes around the numbers
RECORD_BYTES = 1064 + 1804  # of one iteration: its line in metrics.jsonl, and TensorBoard's scalars
LIBRARIES = "programs and libraries"


@dataclass(frozen=True)
class Item:
    """A part of what is needed, and how to need less of it."""

    name: str
    size: int  #: Bytes.
    remedy: str


@dataclass(frozen=True)
class Need:
    """What is needed of one thing that a machine has."""

    what: str  #: memory, GPU memory, or disk.
    items: tuple[Item, ...]

    @property
    def total(self) -> int:
        return sum(item.size for item in self.items)

    @property
    def largest(self) -> Item:
        return max(self.items, key=lambda item: item.size)

    def times(self, number: int) -> Need:
        """Return the need of so many runs like this."""
        return Need(self.what, tuple(Item(item.name, number * item.size, item.remedy) for item in self.items))

    def __str__(self) -> str:
        return f"{size_text(self.total)} of {self.what} (most for {self.largest.name}, {size_text(self.largest.size)})"


def together(needs: Sequence[Need]) -> Need:
    """Return the need of several runs of one thing, item by item."""
    items = (
        Item(same[0].name, sum(item.size for item in same), same[0].remedy)
        for same in zip(*(need.items for need in needs), strict=True)
    )
    return Need(needs[0].what, tuple(items))


def size_text(size: float) -> str:
    """Return bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.4g} TiB"


def memory(config: Config, backend: str, processes: int = 1) -> list[Need]:
    """Return the memory that one of the processes of a run needs at its peak, and on a GPU that of the GPU."""
    economy, device = Economy.from_config(config), torch.device("cuda" if backend == "pycuda" else "cpu")
    envs = -(-config.train.batch_size // processes)
    rollouts = _rollouts(config, economy, envs, choose_precision(config, device).itemsize)
    learning = _learning(config, economy, envs, device)
    saving = Item("dense rollouts while they are saved", *_saving(config, economy, envs))
    weights = Item("networks and optimizers", 5 * FLOAT * sum(_parameters(config, economy)), _fewer_weights(config))
    if backend == "host":
        passing = max(learning, saving, key=lambda item: item.size)
        return [Need("memory", (Item(LIBRARIES, PROGRAMS["host"], "run less at once"), *rollouts, passing, weights))]
    context = Item("CUDA itself", CUDA_CONTEXT, "use a larger GPU, or --backend host")
    host = (Item(LIBRARIES, PROGRAMS["pycuda"], "run less at once"), saving)
    return [Need("memory", host), Need("GPU memory", (context, *rollouts, learning, weights))]


def _rollouts(config: Config, economy: Economy, envs: int, private_bytes: int) -> Iterator[Item]:
    """Yield the arrays that training keeps, E environments and T periods."""
    fewer, periods = _fewer_rows(config), economy.num_periods
    for name, agent in economy.agents.items():
        inputs, heads = _encoder(config, economy, agent).num_private, len(agent.head_sizes)
        seen = agent.private.size or economy.public.size
        # Per row: encoded state; what was seen and done, reward, value, log-probability.
        row = private_bytes * inputs + FLOAT * (seen + heads + 3)
        logits = FLOAT * (agent.num_actions + 1 + seen + heads + 5)
        yield Item(f"the {name} type's rollouts", agent.count * envs * (periods * row + logits), fewer)
    consumer = economy.agents["consumer"]
    public = _encoder(config, economy, consumer).num_public + 2 * economy.num_firms
    flows = economy.num_firms * economy.num_consumers
    yield Item("public states and consumption", FLOAT * envs * (periods * (public + flows) + flows), fewer)


def _learning(config: Config, economy: Economy, envs: int, device: torch.device) -> Item:
    """Return what an update takes beside the rollouts, of the type that takes most; or what all take, where each is
    recorded as a graph, which keeps its memory."""
    sizes = []
    observations, hidden = envs * economy.num_periods, config.train.hidden_size
    for agent in economy.agents.values():
        encoder, rows = _encoder(config, economy, agent), observations * agent.count
        batch = FLOAT * BATCH_NUMBERS * rows
        if agent.settings.minibatches > 1:
            part = -(-rows // agent.settings.minibatches)
            batch += part * FLOAT * (encoder.num_private + len(agent.head_sizes) + 5)
        shared = 2 * FLOAT * observations * hidden
        if config.train.learner == "autograd":
            row = encoder.num_public + encoder.num_private + 3 * hidden + 4 * agent.num_actions
            block = FLOAT * row * min(rows, AUTOGRAD_BLOCK_ROWS)
        else:
            block = BLOCK_BUFFERS * min(BLOCK_BYTES[device.type], FLOAT * hidden * rows)
        sizes.append(Item(f"an update of the {agent.name} type", batch + shared + block, _fewer_rows(config)))
    if device.type == "cuda" and config.train.graphs == "auto" and config.train.learner == "fused":
        remedy = f"{_fewer_rows(config)}, or set train.graphs=off"
        return Item("updates, recorded as graphs", sum(item.size for item in sizes), remedy)
    return max(sizes, key=lambda item: item.size)


def _saving(config: Config, economy: Economy, envs: int) -> tuple[int, str]:
    states = max(agent.count * (economy.public.size + agent.private.size) for agent in economy.agents.values())
    return round(WHILE_SAVED * FLOAT * envs * economy.num_periods * states), _fewer_rows(config)


def files(config: Config) -> Need:
    """Return the files that a run leaves, of one without an end as many as ``train.num_episodes`` iterations leave."""
    economy, train = Economy.from_config(config), config.train
    sizes = [
        FLOAT * number
        for number, agent in zip(_parameters(config, economy), economy.agents.values(), strict=True)
        if not agent.is_frozen
    ]
    labels = _count(train.num_episodes, train.save_model_every) + 2  # the last, and "latest"
    rollouts = _count(train.num_episodes, train.save_dense_every) + 1
    records = _count(train.num_episodes, train.log_every) + 1
    fewer_labels = "raise train.save_model_every" if labels > 2 else _fewer_weights(config)
    fewer_rollouts = "raise train.save_dense_every" if rollouts > 2 else _fewer_rows(config)
    state = 2 * (sum(3 * FLOAT * number for number in _parameters(config, economy)) + STATE_FILE)
    return Need(
        "disk",
        (
            Item("dense rollouts", rollouts * _dense_bytes(config, economy), fewer_rollouts),
            Item("checkpoints", labels * sum(size + POLICY_FILE for size in sizes), fewer_labels),
            Item("states to resume from", state, _fewer_weights(config)),
            Item("metrics", records * RECORD_BYTES, "raise train.log_every"),
        ),
    )


def _count(iterations: int, every: int) -> int:
    """Number of iterations that are multiples of ``every``."""
    return -(-iterations // every)


def _dense_bytes(config: Config, economy: Economy) -> int:
    """Bytes of one dense rollout of all types: states, actions, rewards, flows."""
    flows = {"consumer": economy.num_firms, "firm": 1, "government": 0}
    rows = [
        agent.count * (economy.public.size + agent.private.size + len(agent.head_sizes) + 1 + flows[name])
        for name, agent in economy.agents.items()
    ]
    return FLOAT * config.train.batch_size * economy.num_periods * sum(rows)


def _encoder(config: Config, economy: Economy, agent: AgentType) -> Encoder:
    return Encoder(agent.name, economy.public, agent.private, config.train.digit_representation_size)


def _parameters(config: Config, economy: Economy) -> list[int]:
    """Return the number of weights of each type's network."""
    hidden, sizes = config.train.hidden_size, []
    for agent in economy.agents.values():
        encoder = _encoder(config, economy, agent)
        inputs = encoder.num_public + encoder.num_private
        sizes.append(hidden * (inputs + hidden + agent.num_actions + 3) + agent.num_actions + 1)
    return sizes


def _fewer_rows(config: Config) -> str:
    sizes = {"train.batch_size": config.train.batch_size, "world.maxtime": config.world.maxtime}
    return f"lower {next((key for key, size in sizes.items() if size > 1), 'agents.num_consumers')}"


def _fewer_weights(config: Config) -> str:
    return "lower train.hidden_size" if config.train.hidden_size > 128 else "lower agents.num_firms, or shorten grids"


# What there is.


def available_memory() -> int | None:
    """Return the bytes of memory that this process may still take: of the machine, and of its control groups."""
    limits = [limit for limit in (_free_memory(), *_groups_memory()) if limit is not None]
    return min(limits, default=None)


def _free_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None


def _groups_memory(root: Path = Path("/sys/fs/cgroup"), group_file: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Yield what the control groups above this process leave it, of version 1 and 2."""
    try:
        lines = [line.split(":", 2) for line in group_file.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers not in ("", "memory"):
            continue
        names = ("memory.max", "memory.current", "inactive_file")
        folder = root
        if controllers:
            names, folder = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"), root / "memory"
        group = folder / path.lstrip("/")
        for place in dict.fromkeys((group, *group.parents)):
            if folder not in (place, *place.parents):
                break
            try:
                limit, used = (int((place / name).read_text()) for name in names[:2])
                statistics = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no limit says "max"
                continue
            yield max(limit - used + int(statistics.get(names[2], 0)), 0)


def _free_disk(folder: Path) -> int | None:
    """Return the free bytes where a folder is, or is to be made."""
    place = next((place for place in (folder, *folder.absolute().parents) if place.exists()), None)
    try:
        return shutil.disk_usage(place).free if place else None
    except OSError:
        return None


def check(needs: Sequence[Need], folder: Path | None = None) -> str:
    """Return one line on what is needed. Raises MachineError where this machine has less.

    ``folder``: where files are to be; None where there are none to come.
    """
    for need in needs:
        if need.what == "memory":
            there = available_memory()
        elif need.what == "GPU memory":
            there = torch.cuda.mem_get_info()[0]
        else:
            there = _free_disk(folder) if folder else None
        if there is not None and need.total > there:
            where = f" at {folder}" if need.what == "disk" else ""
            raise MachineError(f"this needs about {need}, and {size_text(there)} is free{where}; {need.largest.remedy}")
    return told(needs)


def told(needs: Sequence[Need]) -> str:
    """Return needs in one line."""
    return f"about {', '.join(map(str, needs))}"
