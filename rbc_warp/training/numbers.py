"""A watch for NaN and infinity in a training, on its device: nothing there waits for it until it is read."""

import math
from collections.abc import Mapping, Sequence

import torch

from rbc_warp.errors import NumbersError
from rbc_warp.training.processes import Processes

OUTGROWN = "amounts outgrew 32 bits: lower world.interest_rate or world.maxtime"
UNSTABLE = "learning diverged: lower train.lr or agents.{agent}_lr_multiple, or set train.clip_grad_norm"
REMEDIES = {
    "states": OUTGROWN,
    "rewards": OUTGROWN,
    "log-probabilities": UNSTABLE,
    "losses": UNSTABLE,
    "parameters": UNSTABLE,
}
"""By array, in the order in which a fault spreads within an iteration: what to change."""
NEVER = torch.iinfo(torch.int64).max


class Numbers:
    """Notes in which iteration each array of each type was first not finite.

    Args:
        agents: names of the types. processes: that share the training. device: of the arrays.
    """

    def __init__(self, agents: Sequence[str], processes: Processes, device: torch.device):
        self.processes = processes
        self._places = [(array, agent) for array in REMEDIES for agent in agents]
        self._first = torch.full((len(self._places),), NEVER, dtype=torch.int64, device=device)
        self._ends = torch.zeros(len(self._places), 2, device=device)  # least and largest, as noted last

    def note(self, array: str, agent: str, numbers: torch.Tensor) -> None:
        """Look at an array of the iteration at work: one reduction, whose result stays on the device."""
        low, high = self._ends[self._places.index((array, agent))].unbind()
        torch.aminmax(numbers, out=(low, high))  # both are NaN where a number is

    def advance(self, iteration: int) -> None:
        """Keep what was noted as the iteration's; what was noted before is known already, and stays."""
        is_finite = torch.isfinite(self._ends).all(1)
        self._first = torch.where(is_finite, self._first, self._first.clamp(max=iteration))

    def check(self, iteration: int) -> None:
        """Wait for all that was noted until now. Raises NumbersError for the first array that is not finite."""
        self.advance(iteration)
        firsts = self.processes.gather(self._first.unsqueeze(0)).amin(0).tolist()
        first, place = min(zip(firsts, range(len(firsts)), strict=True))
        if first != NEVER:
            self._first.fill_(NEVER)
            self._ends.zero_()
            array, agent = self._places[place]
            raise fault(f"iteration {first}", agent, array)


def fault(when: str, agent: str, array: str) -> NumbersError:
    """Return the error that names an array of a type, and what to change."""
    remedy = REMEDIES[array].format(agent=agent)
    return NumbersError(f"{when}: the {agent}'s {array} are not finite (NaN or infinity); {remedy}")


def not_finite(content: object, name: str = "it") -> str | None:
    """Return the name of the first number or tensor in nested dicts and lists that is not finite, None for none."""
    if isinstance(content, torch.Tensor):
        return None if torch.isfinite(content).all() else name
    if isinstance(content, float):
        return None if math.isfinite(content) else name
    parts: Sequence[tuple[object, object]] = ()
    if isinstance(content, Mapping):
        parts = list(content.items())
    elif isinstance(content, list | tuple):
        parts = list(enumerate(content))
    found = (not_finite(part, str(key) if name == "it" else f"{name}.{key}") for key, part in parts)
    return next(filter(None, found), None)
