"""How many of its kernels oneDNN keeps.

It makes one for each layer and number of rows, in a fraction of a millisecond, and prompts come in every length. Left
to itself it keeps a thousand of them, and PyTorch as many descriptions of theirs, half a megabyte for each pair: a
server would grow by hundreds of megabytes for as long as it meets new lengths.
"""

import os
from typing import Final

# A kernel counts twice, inside its layer's and alone. Enough for the last half dozen lengths.
NUM_DESCRIPTIONS: Final = 32
CAPACITIES: Final = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": 2 * NUM_DESCRIPTIONS,
    "LRU_CACHE_CAPACITY": NUM_DESCRIPTIONS,  # PyTorch's
}


def keep_few_kernels() -> None:
    """Both caches read their size when they are first used. What the environment says already stays."""
    for variable, capacity in CAPACITIES.items():
        os.environ.setdefault(variable, str(capacity))
