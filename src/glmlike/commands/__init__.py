"""Commands of the command line, one a module; each is a function that :mod:`glmlike.cli` registers."""
