"""How long a gang waits for slices, and for how many of them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Patience:
    """The clock of one wait. While gangs of the same process are what it waits for, it stands still.

    Attributes:
        timeout_seconds: of time that counts.
        looked_at: when it was last looked at, at first when the wait began; of the monotonic clock.
        stops: False for a gang that holds slices while it waits for others: two of them could wait for each other.
        behind_seconds: of time that did not count.
    """

    timeout_seconds: float
    looked_at: float
    stops: bool = True
    behind_seconds: float = field(init=False, default=0.0)
    _spent_seconds: float = field(init=False, default=0.0)

    def look(self, now: float, *, behind: bool) -> None:
        """The time since the last look was spent behind gangs of this process, or was not."""
        passed, self.looked_at = now - self.looked_at, now
        if behind and self.stops:
            self.behind_seconds += passed
        else:
            self._spent_seconds += passed

    @property
    def left_seconds(self) -> float:
        """What is left of the time that counts."""
        return max(0.0, self.timeout_seconds - self._spent_seconds)

    @property
    def over(self) -> bool:
        """Whether the deadline has come."""
        return self._spent_seconds >= self.timeout_seconds


@dataclass(slots=True, eq=False)
class Waiter:
    """How many slices a gang takes.

    Attributes:
        sizes: the numbers that will do, ascending.
        only_there: more slices than there are do not come, as far as is known: larger numbers are not waited for.
        any_size: it has waited long enough for the largest; any of them will do.
    """

    sizes: tuple[int, ...]
    only_there: bool = False
    any_size: bool = False

    def takes(self, there: int) -> list[int]:
        """The numbers that it takes just now, the first one rather than the next.

        Args:
            there: how many such slices there are, free or not.
        """
        if self.any_size:
            return list(reversed(self.sizes))
        possible = [one for one in self.sizes if one <= there] if self.only_there else self.sizes
        return [possible[-1] if possible else self.sizes[0]]

    def behind_siblings(self, *, position: int, free: int, own: int, there: int) -> bool:
        """Whether it waits for nobody but gangs of this process.

        Args:
            position: how many of them came earlier.
            free: slices that nobody has.
            own: slices that they have.
            there: how many such slices there are.
        """
        least = min(self.takes(there))
        return free + own >= least and (position > 0 or free < least)
