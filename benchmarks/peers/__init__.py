"""Others who run the same model: each measures the figures it can, in a process of its own."""
