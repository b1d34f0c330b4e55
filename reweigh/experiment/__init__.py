"""A run of RL small enough for a laptop, in which a stale or quantised sampler does what it does to large ones."""
