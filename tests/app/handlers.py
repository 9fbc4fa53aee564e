"""What stands behind the buttons, for tests without a browser."""

from types import SimpleNamespace

from diffusers_xai.app.session import Session


REQUEST = SimpleNamespace(session_hash=None)


def handler(app, name):
    """The handler of a button, a new visitor, and the values that its inputs have when the page is opened.

    A run's handler is called with these values alone: what Gradio adds, the request and the progress, is given here.
    """
    found = of_page(app, name)
    visitor = Session()
    values = [visitor, *(component.value for component in found.inputs[1:])]
    if name not in ("sample", "sweep", "experiment"):
        return found.fn, visitor, values
    return (lambda session, run, *rest: found.fn(REQUEST, session, run, lambda *a, **k: None, *rest)), visitor, values


def of_page(app, name):
    """What Gradio knows of a handler of the page; endpoints for programs may have its name."""
    (found,) = [f for f in app.demo.fns.values() if f.name == name and f.api_visibility == "private"]
    return found
