"""STAND-IN for the integrator to replace."""


class PromptHelpersMixin:
    """Nothing."""
