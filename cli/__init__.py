"""The `diptych` command."""
