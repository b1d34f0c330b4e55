"""What is run on this repository from time to time, and is no part of the package."""
