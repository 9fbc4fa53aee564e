"""Code of this package as one file, which works where the package is not installed."""

import ast
import inspect
import sys


_PACKAGE = __name__.partition(".")[0]


def one_file(module: str) -> str:
    """The source of a module, below that of the modules of this package that it imports.

    diffusers downloads one file for each component of a pipeline, so what a repository carries cannot be several.

    Args:
        module (`str`): Name of an imported module. It and what it imports of this package have their imports at the
            top, those of this package as `from … import …`, and no two of them give one name to different things.
    """
    imports: dict[str, None] = {}
    bodies: dict[str, str] = {}

    def add(name: str) -> None:
        source = inspect.getsource(sys.modules[name])
        found = [node for node in ast.parse(source).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        for node in found:
            own = node.module if isinstance(node, ast.ImportFrom) else None
            if own is None or own.partition(".")[0] != _PACKAGE:
                imports[ast.unparse(node)] = None
            elif own not in bodies:
                add(own)
        bodies[name] = "\n".join(source.splitlines()[found[-1].end_lineno :]).strip()

    add(module)
    title = inspect.cleandoc(sys.modules[module].__doc__ or "").partition("\n")[0]
    return "\n\n\n".join([f'"""{title}"""\n\n' + "\n".join(imports), *bodies.values()]) + "\n"
