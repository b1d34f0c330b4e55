"""The parts of fault injection: a small language model, an engine that samples from it, a trainer that scores it."""
