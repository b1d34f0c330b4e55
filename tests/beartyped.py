"""The runtime type checker that the test run puts on the core's annotations, shapes included."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for every type checker
