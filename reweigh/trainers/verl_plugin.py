"""What verl loads in each of its processes: installs the correction that the environment names, or stops."""

from reweigh.trainers.verl import load

try:
    LOADED = load()
except Exception as error:
    # verl logs what a plugin raises at DEBUG and trains on, uncorrected. Only an exit gets through.
    raise SystemExit(f"reweigh: {error}") from error
