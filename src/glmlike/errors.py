"""The errors a user can cause. Each message says what was found, what was expected, and what to do."""

from __future__ import annotations

from contextvars import ContextVar


class GlmLikeError(ValueError):
    """Base of every error glmlike raises for bad input; the command line prints these as one sentence."""


class SpecError(GlmLikeError):
    """A decoder that cannot exist, or that nothing published uses."""


class ConfigError(GlmLikeError):
    """A config.json that names no known format, or that says what its format never does."""


class CannotExpressError(SpecError):
    """The target format has no way to say this decoder; the message names what, and the formats that can."""


class CheckpointError(GlmLikeError, RuntimeError):
    """Files that are damaged, incomplete, contradictory or unsafe to read.

    A RuntimeError as well, since that is what transformers raises for weights that do not fit a model.
    """


class PushError(GlmLikeError):
    """A folder that is not fit to be pushed to the Hub, or a Hub that refuses it; nothing was created or changed."""


class PruningError(GlmLikeError):
    """A model that cannot be cut, tied or untied as asked; it is as it was."""


class TokenizerError(GlmLikeError):
    """Vocabulary files that are none, are damaged, or do not fit together or their checkpoint."""


class VocabularyError(GlmLikeError, IndexError):
    """Token ids, or learned positions, that have no row in the tables; an IndexError as torch's own is."""


conversion_failures: ContextVar[list[str] | None] = ContextVar("conversion_failures", default=None)
"""Where on-the-fly loading leaves its messages: transformers' loader turns the exceptions themselves into a log."""
