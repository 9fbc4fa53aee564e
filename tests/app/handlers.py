"""What stands behind the buttons, for tests without a browser."""

from diffusers_xai.app.session import Session


def handler(demo, name):
    """The handler of a button, a new visitor, and the values that its inputs have when the page is opened."""
    (found,) = [function for function in demo.fns.values() if function.name == name]
    visitor = Session()
    return found.fn, visitor, [visitor, *(component.value for component in found.inputs[1:])]
