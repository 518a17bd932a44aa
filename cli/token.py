"""`diptych token`: a new bearer token, and what the gateway keeps of it."""

import sys

from services.common.identity import TENANT, Identity, new_token, token_line


def run(tenant: str, *, admin: bool) -> int:
    """Prints the token, then its line for the file of tokens; the token itself is kept nowhere."""
    if not TENANT.fullmatch(tenant):
        print("error: a tenant's name has 1 to 64 letters, digits, dots, dashes and underscores", file=sys.stderr)
        return 2
    token = new_token()
    print(token)
    print(token_line(token, Identity(tenant, "admin" if admin else "user")))
    return 0
