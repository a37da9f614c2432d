"""Run by every Python process that ``glmlike exec`` starts: it imports glmlike when transformers is imported.

This folder is on PYTHONPATH then, and Python imports a ``sitecustomize`` from there when it starts. A process that
never imports transformers pays a line in ``sys.meta_path``. A ``sitecustomize`` that this one hides is run as well.
"""

import sys
from importlib.machinery import PathFinder

_HERE = __file__.rpartition("/")[0] or __file__.rpartition("\\")[0]
_PACKAGE = _HERE.removesuffix("startup").rstrip("/\\")


class _BeforeTransformers:
    """A meta-path finder that finds nothing: it imports glmlike before transformers, once, and removes itself."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != "transformers":
            return
        sys.meta_path.remove(cls)
        try:
            if PathFinder.find_spec("glmlike") is None:
                sys.meta_path.append(_FromHere)
            import glmlike  # noqa: F401  (it registers with transformers as that loads)
        except Exception as error:
            print(f"glmlike exec: glmlike cannot be imported by {sys.executable}: {error}", file=sys.stderr)
        return


class _FromHere:
    """Finds glmlike itself, for a Python that it is not installed in."""

    @staticmethod
    def find_spec(name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != "glmlike":
            return None
        from importlib.util import spec_from_file_location

        return spec_from_file_location(name, f"{_PACKAGE}/__init__.py", submodule_search_locations=[_PACKAGE])


def _run_hidden() -> None:
    """Run the ``sitecustomize`` that Python would have run without this one."""
    spec = PathFinder.find_spec("sitecustomize", [place for place in sys.path if place != _HERE])
    if spec is not None and spec.loader is not None:
        from importlib.util import module_from_spec  # costs milliseconds, so only here

        sys.modules["sitecustomize"] = module = module_from_spec(spec)
        spec.loader.exec_module(module)


sys.meta_path.insert(0, _BeforeTransformers)
_run_hidden()
