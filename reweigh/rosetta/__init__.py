"""What trainers' options compute, in one vocabulary: a profile for each framework, and a check against recordings."""
