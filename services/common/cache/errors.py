"""What a store says when it has not done what it was asked."""


class StoreError(Exception):
    """The store did not do what it was asked: down, slow, full or read-only."""


class StoreDown(StoreError):  # noqa: N818
    """The store is known not to work at present, and was not asked."""
