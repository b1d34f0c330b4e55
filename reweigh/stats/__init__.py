"""Statistics of raw ratios: sums that merge, intervals, refusals, and the verdict."""
