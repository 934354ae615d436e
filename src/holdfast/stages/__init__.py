"""The stages: one function and one set of options each, file to file."""
