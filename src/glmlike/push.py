"""A folder pushed to the Hub: looked at first, converted where asked, uploaded as one commit.

Everything that can be wrong with the folder is found before anything is created. The commit appears whole or not at
all, and takes the weight files of an earlier push with it: of two sets side by side, loaders would take either.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmlike.checkpoint.convert import Detection, convert, detect
from glmlike.checkpoint.tokenizers import PATTERNS, rewrite
from glmlike.errors import PushError, TokenizerError
from glmlike.hub_json import FORMATS
from glmlike.push_checks import (
    ADAPTER,
    card_notes,
    class_of_no_transformers,
    files_to_push,
    require_adapter,
    require_repo_id,
    require_tokenizer,
)
from glmlike.remote_code import FILE, write_remote_code

if TYPE_CHECKING:
    from huggingface_hub import HfApi

REMOTE_CODE = "remote-code"
_REPLACED = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin*", "consolidated.*", FILE)
"""Files of an earlier push that must not stand beside another set of weights."""


@dataclass(frozen=True)
class Upload:
    """What will be, or was, pushed: ``files`` maps paths in the repository to files here."""

    folder: Path
    repo: str
    revision: str
    private: bool
    found_format: str
    format: str
    files: dict[str, Path]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    url: str | None = None
    commit: str | None = None
    changed: bool | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: path.stat().st_size for name, path in self.files.items()}

    def facts(self) -> dict[str, Any]:
        """Everything as plain values; to be asked while the files are there."""
        return {
            "folder": str(self.folder),
            "target": self.repo,
            "revision": self.revision,
            "private": self.private,
            "found_format": self.found_format,
            "format": self.format,
            "files": self.sizes,
            "bytes": sum(self.sizes.values()),
            "left_out": list(self.left_out),
            "replaced": list(self.replaced),
            "notes": list(self.notes),
            "url": self.url,
            "commit": self.commit,
            "changed": self.changed,
        }


@contextmanager
def prepared(
    folder: str | Path,
    repo: str,
    *,
    to: str | None = None,
    private: bool = False,
    revision: str | None = None,
    tokenizer: bool = True,
    generation: Any = None,
    spec: Any = None,
) -> Iterator[Upload]:
    """What pushing ``folder`` to ``repo`` would upload, all checks passed; what was converted is there in the body.

    ``to`` is a format of :func:`glmlike.convert`, or ``"remote-code"``: native, with the decoder's source beside it
    (see :mod:`glmlike.remote_code`) and a tokenizer of transformers' own class. Folders of PEFT adapters are pushed as
    they are. The Hub is not asked.

    Raises:
        PushError: the name is none, the folder lacks a part, or there is no room to convert it.
        GlmLikeError: the folder is not what it says it is, or the format cannot say it.
    """
    folder = Path(folder)
    require_repo_id(repo)
    if to is not None and to not in (*FORMATS, REMOTE_CODE):
        raise PushError(f"--as {to}: expected one of {', '.join((*FORMATS, REMOTE_CODE))}.")
    base = Upload(folder, repo, revision or "main", private, "", "", {})
    if (folder / ADAPTER).is_file() and not (folder / "config.json").is_file():
        yield _adapter(base, to)
        return
    found = detect(folder, generation=generation, spec=spec)
    if tokenizer:
        require_tokenizer(folder)
    notes = (*found.notes, *card_notes(folder))
    with tempfile.TemporaryDirectory(prefix="glmlike-push-") as room:
        converted, fmt = _converted(found, to, Path(room), {"generation": generation, "spec": spec})
        files, left_out = files_to_push(converted)
        if to == REMOTE_CODE:
            files, said = _with_plain_tokenizer(files, converted, found.folder, Path(room) / "tokenizer")
            notes = (*notes, *said)
            files |= {path.name: path for path in write_remote_code(converted, Path(room))}
        yield replace(
            base,
            found_format=found.format,
            format=fmt if to != REMOTE_CODE else f"{fmt} with {FILE}",
            files=dict(sorted(files.items())),
            left_out=left_out,
            notes=notes,
        )


def push(folder: str | Path, repo: str, *, dry_run: bool = False, **options: Any) -> dict[str, Any]:
    """Push ``folder`` to ``repo``, and return what was done; ``options`` are those of :func:`prepared`.

    Raises:
        PushError, GlmLikeError: see :func:`prepared` and :func:`send`.
    """
    with prepared(folder, repo, **options) as upload:
        return (upload if dry_run else send(upload)).facts()


def send(upload: Upload) -> Upload:
    """Create the repository and the branch where they are not there, and make one commit; what was done.

    A push of what the repository has already makes no commit.

    Raises:
        PushError: no login, no right to write, or a public repository that was to be private.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    api = HfApi(library_name="glmlike")
    try:
        before = _target(api, upload)
        there = set(api.list_repo_files(upload.repo, revision=upload.revision))
        stale = sorted(name for name in there - upload.files.keys() if _is_replaced(name, upload))
        added = [CommitOperationAdd(name, path) for name, path in upload.files.items()]
        done = api.create_commit(
            upload.repo,
            [*added, *(CommitOperationDelete(name) for name in stale)],
            commit_message=f"Push {upload.format}",
            revision=upload.revision,
        )
    except LocalTokenNotFoundError:
        raise PushError(f"{upload.repo}: not logged in. Run `hf auth login`, or set HF_TOKEN.") from None
    except (OSError, RuntimeError) as error:  # HfHubHTTPError and the Xet client's; huggingface_hub 1.x wraps them
        code = _refusal(error)
        if code is None:
            raise
        raise PushError(
            f"{upload.repo}: the Hub refuses ({code}). Log in with a token that may write there: `hf auth login`, or "
            "set HF_TOKEN."
        ) from None
    changed = done.oid != before
    return replace(upload, replaced=tuple(stale), url=done.commit_url, commit=done.oid, changed=changed)


def _target(api: HfApi, upload: Upload) -> str | None:
    """The newest commit of the repository and branch, which are there afterwards."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(upload.repo)
    except RepositoryNotFoundError:
        api.create_repo(upload.repo, private=upload.private or None, exist_ok=True)
        info = api.model_info(upload.repo)
    if upload.private and info.private is False:
        raise PushError(
            f"{upload.repo}: is there and public, so --private cannot hide what is pushed. Make it private on its "
            "settings page first, or choose another name."
        )
    if upload.revision == "main":
        return info.sha
    api.create_branch(upload.repo, branch=upload.revision, exist_ok=True)
    return api.model_info(upload.repo, revision=upload.revision).sha


def _refusal(error: BaseException) -> int | None:
    """401 or 403, if that is what the Hub answered; the Xet client says it in words alone."""
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
    response = getattr(cause, "response", None)
    said = re.search(r"\b(401 Unauthorized|403 Forbidden)\b", str(cause))
    code = response.status_code if response is not None else int(said[1][:3]) if said else None
    return code if code in (401, 403) else None


def _is_replaced(name: str, upload: Upload) -> bool:
    patterns = ("adapter_model.*",) if upload.found_format == "peft" else _REPLACED
    return any(fnmatch(name, pattern) for pattern in patterns)


def _adapter(base: Upload, to: str | None) -> Upload:
    if to is not None:
        raise PushError(f"{base.folder}: an adapter, which --as {to} cannot convert. Leave --as out.")
    model = require_adapter(base.folder)
    files, left_out = files_to_push(base.folder)
    notes = (f"an adapter of {model}", *card_notes(base.folder))
    return replace(base, found_format="peft", format="peft", files=files, left_out=left_out, notes=notes)


def _with_plain_tokenizer(
    files: dict[str, Path], folder: Path, origin: Path, room: Path
) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The files with a tokenizer that people without glmlike can load, and what to say of one that was made so.

    The folder's own is taken where it is of a class of transformers. Else ``origin``, which was converted, is read.

    Raises:
        PushError: neither is a tokenizer that can be written for transformers alone.
    """
    name = class_of_no_transformers(folder)
    if name is None or not any(path.is_file() for pattern in PATTERNS for path in folder.glob(pattern)):
        return files, ()
    try:
        made = rewrite(folder, room, "glmlike", plain=True)
    except TokenizerError as error:
        raise PushError(str(error)) from None
    if made.folder is None:
        raise PushError(
            f"{origin}: tokenizer_class={name!r} is no class of transformers, so people without glmlike could not load "
            f"it, and {made.note}. Save it as a tokenizer.json (TokenizersBackend), or push in another format."
        )
    kept = {path: file for path, file in files.items() if not any(fnmatch(path, pattern) for pattern in PATTERNS)}
    return kept | {path.name: path for path in made.folder.iterdir()}, (made.note or "",)


def _converted(found: Detection, to: str | None, room: Path, options: dict[str, Any]) -> tuple[Path, str]:
    """The folder to upload from, which is the folder itself where its format is asked for, and its format.

    Of a pre-quantized folder, remote code takes the floats that its integers become.
    """
    fmt = found.format if to is None else "glmlike" if to == REMOTE_CODE else to
    if fmt == found.format and not (to == REMOTE_CODE and found.bits is not None):
        return found.folder, fmt
    needed = max(sum(path.stat().st_size for path in found.checkpoint.files), 2 * found.spec.num_parameters)
    free = shutil.disk_usage(room).free
    if free < needed:
        raise PushError(
            f"{found.folder}: about {needed:,} bytes to convert into {room}, where {free:,} are free. Set TMPDIR to a "
            "place with more."
        )
    convert(found.folder, room / "converted", to=fmt, **options)  # type: ignore[call-overload]
    return room / "converted", fmt
