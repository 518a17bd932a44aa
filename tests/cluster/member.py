"""`python -m tests.cluster.member`: a gateway whose names are looked up in the cluster's file.

The file stands in for the DNS of headless Services: a line a name, with the addresses of its pods. Only the look-up
itself is replaced; everything that the gateway does with its answer is the real thing.
"""

import os
import socket
from pathlib import Path
from typing import Any

from gateway.__main__ import main

NAMES_VARIABLE = "CLUSTER_NAMES"

_system = socket.getaddrinfo


def look_up(host: Any, port: Any, *args: Any, **more: Any) -> Any:
    """As `socket.getaddrinfo`, with the file's names first."""
    lines = (line.split() for line in Path(os.environ[NAMES_VARIABLE]).read_text().splitlines())
    for name, *addresses in lines:
        if name == host:
            if not addresses:
                raise socket.gaierror(socket.EAI_NONAME, "no pods")
            return [entry for address in addresses for entry in _system(address, port, *args, **more)]
    return _system(host, port, *args, **more)


if __name__ == "__main__":
    socket.getaddrinfo = look_up
    main()
