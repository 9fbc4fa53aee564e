"""The modules of the app, which lie beside `app.py` and find each other there."""

import importlib
import importlib.util
import sys
from pathlib import Path


FOLDER = Path(__file__).parents[2] / "spaces"


def module(name):
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


def load_app(monkeypatch):
    """`app.py` as it is loaded in the present environment."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("app_of_a_space", FOLDER / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    return app


def handler(demo, name):
    """The handler of a button, and the values that its inputs have when the page is opened."""
    (found,) = [function for function in demo.fns.values() if function.name == name]
    visitor = module("space_session").Session()
    return found.fn, visitor, [visitor, *(component.value for component in found.inputs[1:])]
