"""Probe a real engine: sample with it, score the same tokens with a trainer's forward, write both as records."""
