"""`diptych up`: everything on one machine, until Ctrl-C."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

from cli.local_redis import LocalRedisError, find_server
from cli.stack import ChildDied, Stack, StackOptions

POLL_S = 0.2
INTERRUPTED = 130  # as the shell reports Ctrl-C


def run(options: StackOptions) -> int:
    """Starts everything, waits for Ctrl-C, SIGTERM or a service's death, stops everything; returns the exit code."""
    console = Console(highlight=False)

    def wait(stack: Stack) -> int:
        start(stack, console)
        console.print(f"Ask: [bold]diptych chat --address {stack.address} --image FILE QUESTION[/]   Stop: Ctrl-C")
        console.print(f"Watch: [bold]diptych top {' '.join(stack.metrics_addresses)}[/]", soft_wrap=True)
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(POLL_S)
                stack.check()
        console.print("stopping: gateway, decoder, encoder, cache")
        return 0

    return keep_running(options, wait)


def keep_running(options: StackOptions, work: Callable[[Stack], int]) -> int:
    """Does `work` with a stack, which is stopped whatever happens; returns its exit code, or 1 after saying why."""
    errors = Console(stderr=True, highlight=False)
    with interruptible_once():
        try:
            return run_and_stop(options, work)
        except (LocalRedisError, TimeoutError) as error:
            errors.print(f"error: {error}", markup=False)
        except ChildDied as death:
            errors.print(f"error: {death}", markup=False)
            errors.print(death.log_tail, markup=False, soft_wrap=True)
        except KeyboardInterrupt:
            return INTERRUPTED
        return 1


def run_and_stop(options: StackOptions, work: Callable[[Stack], int]) -> int:
    """Does `work` and stops the stack."""
    with Stack(options) as stack:
        return work(stack)


@contextmanager
def interruptible_once() -> Iterator[None]:
    """The first SIGINT or SIGTERM raises KeyboardInterrupt; later ones do not disturb the drain, which is bounded."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def interrupt(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def start(stack: Stack, console: Console) -> None:
    """Starts the stack with a line a service that moves while models load, then prints what runs where."""
    with Live(console=console, transient=True) as live:
        stack.start(lambda: live.update(loading_table(stack)))
    console.print(running_table(stack))


def loading_table(stack: Stack) -> Table:
    """What is up, and what still loads."""
    table = Table.grid(padding=(0, 2))
    for name, child in stack.children.items():
        table.add_row(name, child.address or Spinner("dots", child.logged("event") or "starting"))
    return table


def running_table(stack: Stack) -> Table:
    """Addresses, and what was chosen where the command line said auto."""
    table = Table.grid(padding=(0, 2))
    if stack.redis is not None:
        table.add_row("redis", stack.redis.url, escape(find_server().name))
    else:
        table.add_row("cache", stack.options.cache_url or "none shared", "")
    for name in ("encoder", "decoder", "gateway"):
        child = stack.children[name]
        chosen = [value for field in ("dtype", "device") if (value := child.logged(field))]
        table.add_row(name, child.address or "", ", ".join(chosen))
    table.add_row("model", escape(stack.options.model), "")
    return table
