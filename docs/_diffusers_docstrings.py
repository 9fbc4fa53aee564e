"""For the API reference: in docstrings, types are Markdown (``(`int`, *optional*)``), as diffusers writes them."""

import re

import griffe


_TYPED_NAME = re.compile(r"^( +\w+) \((.+?)\):", re.MULTILINE)
_MARKDOWN = re.compile(r", \*optional\*(, defaults to .*)?$|, defaults to .*$|\[`~?|`\]|`")


class DiffusersDocstrings(griffe.Extension):
    """Takes the Markdown out of types, which are shown as code, and what the signature says beside them."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Called for every object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = _TYPED_NAME.sub(_plain_type, obj.docstring.value)


def _plain_type(match: re.Match) -> str:
    return f"{match[1]} ({_MARKDOWN.sub('', match[2])}):"
