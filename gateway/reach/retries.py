"""How many calls may be tried again: a share of all, so that a service in trouble does not get twice the work."""

MAX_TRIES = 2
RETRY_SHARE = 0.1
MAX_SAVED = 10.0


class RetryBudget:
    """A token bucket: each first try saves RETRY_SHARE of a retry, up to MAX_SAVED; a retry takes a whole one."""

    def __init__(self) -> None:
        self._saved = MAX_SAVED

    def note_first_try(self) -> None:
        """A call is made for the first time."""
        self._saved = min(self._saved + RETRY_SHARE, MAX_SAVED)

    def take(self) -> bool:
        """Whether a call may be made again; if so, it is counted."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True


class Retries:
    """The tries of one call: at most MAX_TRIES, within the service's budget."""

    def __init__(self, budget: RetryBudget) -> None:
        self._budget = budget
        self._num_left = MAX_TRIES - 1
        budget.note_first_try()

    def take(self) -> bool:
        """Whether it may be tried once more."""
        self._num_left -= 1
        return self._num_left >= 0 and self._budget.take()
