"""STAND-IN for the integrator to replace."""


def chat_template(generation: str) -> str | None:
    """No template."""
    return None
