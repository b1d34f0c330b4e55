"""The command line: one file a command, and presentation only."""
