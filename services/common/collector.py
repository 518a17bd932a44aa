"""What Python's garbage collector looks at."""

import gc


def spare_what_is_loaded() -> None:
    """Collect once, and let later collections leave alone what is there now: modules, settings, the model's parts.

    A full collection looks at every object and stops every thread meanwhile, which was seen in how late a crowded
    gateway refused (tests/faults/overload.py). What calls leave behind is a small part of that.
    """
    gc.collect()
    gc.freeze()
