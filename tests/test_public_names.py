"""The names at the package's top level, and what it costs to import it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import diffusers_xai


STUB = Path(diffusers_xai.__file__).with_suffix(".pyi")


def test_every_name_of_the_stub_is_there():
    tree = ast.parse(STUB.read_text(encoding="utf-8"))
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    (listed,) = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)]
    assert imported == set(listed) == set(diffusers_xai.__all__) <= set(dir(diffusers_xai))
    assert listed == sorted(listed)
    for name in listed:
        assert getattr(diffusers_xai, name).__name__ == name


def test_neither_the_package_nor_a_name_of_another_kind_waits_for_torch():
    code = """
import sys
import diffusers_xai
assert not hasattr(diffusers_xai, "Sample")
diffusers_xai.demo_checkpoint()
print(sorted({"torch", "diffusers", "xarray", "plotly"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_api_reference_has_every_public_name():
    reference = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^::: diffusers_xai\.(\w+)$", reference, flags=re.MULTILINE))
    # `ModelMixin` is diffusers' own, which looks it up in the package of a class that it loads.
    modules = {"measures", "plots", "analysis"}
    assert documented - modules == set(diffusers_xai.__all__) - {"ModelMixin"}
