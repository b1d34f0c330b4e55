"""Theory of importance ratios: their laws, bounds, the lemma of gradient ascent, and exact small worlds."""
