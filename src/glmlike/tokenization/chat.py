"""STAND-IN for the integrator to replace."""


class SafeChatMixin:
    """Nothing."""
