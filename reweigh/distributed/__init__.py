"""The same sums over many processes: two collectives of tens of kilobytes, whatever the batch."""

from reweigh.distributed.context import context_weights, whole_sequences
from reweigh.distributed.merge import all_reduce, log_normaliser
from reweigh.distributed.normaliser import Normaliser

__all__ = ["Normaliser", "all_reduce", "context_weights", "log_normaliser", "whole_sequences"]
