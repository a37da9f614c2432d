"""Tokenizers of every generation."""
