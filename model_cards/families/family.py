"""What is known of a family of checkpoints and is in no spec: names, licences, prompts, limits."""

from __future__ import annotations

from dataclasses import dataclass

MODEL_LICENSE = "see the MODEL_LICENSE of the original repository"


@dataclass(frozen=True)
class Checkpoint:
    """A published repository: its id, its decoder's name in ``glmlike.published``, and its licence where known."""

    repository: str
    decoder: str
    licence: str

    @property
    def folder(self) -> str:
        """The repository without its owner, as a folder would be called."""
        return self.repository.rsplit("/", 1)[-1]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One card. ``generations`` are those of ``chat_template``; ``prompt`` describes what no template does.

    ``main`` is the folder that the code blocks load: the first checkpoint's, unless files are called otherwise.
    ``fills`` is a text with a blank, for models that fill blanks; ``completes`` one to go on from, for those that do
    not chat.
    """

    name: str
    title: str
    intro: str
    checkpoints: tuple[Checkpoint, ...]
    license: str
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ("zh", "en")
    base_model: str | None = None
    tags: tuple[str, ...] = ()
    generations: tuple[str, ...] = ()
    prompt: str = ""
    fills: str | None = None
    completes: str | None = None
    terms: str
    limits: tuple[str, ...]
    papers: tuple[str, ...] = ()
    main: str = ""

    @property
    def folder(self) -> str:
        """What the code blocks load."""
        return self.main or self.checkpoints[0].folder
