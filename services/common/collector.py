"""What Python's garbage collector looks at."""

import gc


def spare_what_is_loaded() -> None:
    """Collect once, and let later collections leave alone what is there now: modules, settings, the model's parts.

    A full collection looks at every object and stops every thread meanwhile, which was seen in how late a crowded
    gateway refused (tests/faults/overload.py). What calls leave behind is a small part of that.

    The second collection has next to nothing to look at. It tells the collector so: it waits for the next full one
    until a quarter as many objects are new as the last one has left, and counts those that are spared since.
    """
    gc.collect()
    gc.freeze()
    gc.collect()
