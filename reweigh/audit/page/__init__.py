"""The audit's page: what is in its tables, and the files that it is made of."""
