"""Processes without rights, one for each job, for code that reads bytes of strangers.

`pool.py` is the service's side, `zygote.py` and `child.py` are the workers'; these import none of what services need.
"""
