"""``python -m glmlike``: the command line."""

from glmlike.cli import main

main()
