"""Texts are cut at added tokens where `tokenizers` cuts them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers

from glmlike.tokenization.stretches import AddedTokens, Stretch

CONTENTS = ("<a>", "<a>>", "<ab", "b", "sop", "中", "a b")
TOKENS = st.lists(
    st.builds(
        AddedToken,
        st.sampled_from(CONTENTS),
        lstrip=st.booleans(),
        rstrip=st.booleans(),
        normalized=st.booleans(),
        special=st.booleans(),
    ),
    max_size=4,
    unique_by=lambda token: token.content,
)
PARTS = st.sampled_from([*CONTENTS, " ", "  ", "\t", "\n", "\u3000", "\x1c", "\x85", "x", "é", "<", ">"])


def backend_with(tokens: list[AddedToken]) -> Tokenizer:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    backend.add_tokens(tokens)
    return backend


@settings(max_examples=400, deadline=None)
@given(tokens=TOKENS, parts=st.lists(PARTS, max_size=12), split=st.booleans())
def test_as_rust_cuts(tokens: list[AddedToken], parts: list[str], split: bool) -> None:
    backend, text = backend_with(tokens), "".join(parts)
    backend.encode_special_tokens = split
    found = backend.encode(text, add_special_tokens=False)
    names = [None if number == 0 else backend.id_to_token(number) for number in found.ids]
    expected = [Stretch(start, end, name) for (start, end), name in zip(found.offsets, names, strict=True)]
    added = AddedTokens(backend)
    assert added.exact
    assert added.stretches(text) == expected


def test_what_is_not_exact() -> None:
    word = backend_with([AddedToken("a", single_word=True, normalized=False)])
    assert not AddedTokens(word).exact
    normal = backend_with([AddedToken("a", normalized=True)])
    assert AddedTokens(normal).exact
    normal.normalizer = normalizers.Lowercase()
    assert not AddedTokens(normal).exact
    assert AddedTokens(backend_with([])).stretches("any") == [Stretch(0, 3, None)]
