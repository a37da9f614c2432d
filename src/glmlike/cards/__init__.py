"""Model cards: check one without a network, and write one for a fine-tune from what its folder holds.

The cards of the published families are written by ``model_cards/write_cards.py`` over ``glmlike.cards.parts``.
"""

from __future__ import annotations

from glmlike.cards.checks import check_card
from glmlike.cards.finetune import About, Card, card_for
from glmlike.cards.readme import write_card

__all__ = ["About", "Card", "card_for", "check_card", "write_card"]
