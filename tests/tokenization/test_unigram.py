"""The unigram vocabularies beside sentencepiece with the original code's steps around it, restated here."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmlike.errors import TokenizerError
from glmlike.tokenization import unigram
from glmlike.tokenization.sentencepiece_model import SentencePieceModel, read_model
from tests.tokenization.corpus import HARD, mixed_corpus, random_text

spm = pytest.importorskip("sentencepiece", reason="pip install sentencepiece")
