"""What the services tell of themselves: metrics that Prometheus reads, traces that go to an OTLP collector.

`catalogue.py` owns the name, the meaning and the labels of every metric, `attributes.py` those of every span. Nothing
here holds what a user sent: labels and attributes take what is counted, measured or chosen from a fixed set.
"""
