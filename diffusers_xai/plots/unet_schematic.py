"""The blocks of a U-Net as a drawing."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from diffusers_xai.plots.style import LINE_COLORS, MUTED_COLOR, TEMPLATE, TEXT_COLOR


def unet_schematic(blocks: Sequence[str], lit: Mapping[str, str] | None = None) -> go.Figure:
    """Draws the blocks as a U, from the input at the left to the output at the right, the chosen ones lit.

    Args:
        blocks (`Sequence[str]`): Names in the order of the forward pass. The half before the middle one goes down.
        lit (`Mapping[str, str]`, *optional*): Block -> the text to print in it, such as the layer that is recorded.

    Raises:
        ValueError: for a lit block that is not among the blocks, or no blocks.
    """
    lit = dict(lit or {})
    unknown = sorted(set(lit) - set(blocks))
    if unknown or not blocks:
        raise ValueError(f"Expected lit blocks from {list(blocks)}, got {unknown}.")
    middle = (len(blocks) - 1) / 2
    figure = go.Figure()
    levels = [min(i, len(blocks) - 1 - i) for i in range(len(blocks))]
    for i, level in enumerate(levels):
        if i < middle - 0.5:  # the skip to the other side
            figure.add_shape(
                type="line", x0=i + 0.4, x1=len(blocks) - 1.4 - i, y0=-level, y1=-level,
                line={"color": MUTED_COLOR, "dash": "dot", "width": 1}, layer="below",
            )  # fmt: skip
        if i:
            figure.add_shape(
                type="line", x0=i - 1, y0=-levels[i - 1], x1=i, y1=-level,
                line={"color": MUTED_COLOR, "width": 2}, layer="below",
            )  # fmt: skip
    for i, (block, level) in enumerate(zip(blocks, levels, strict=True)):
        on = block in lit
        figure.add_shape(
            type="rect", x0=i - 0.46, x1=i + 0.46, y0=-level - 0.36, y1=-level + 0.36,
            fillcolor=LINE_COLORS[0] if on else "#eef1f4",
            line={"color": TEXT_COLOR if on else MUTED_COLOR, "width": 3 if on else 1},
        )  # fmt: skip
        figure.add_annotation(
            x=i, y=-level, showarrow=False, text=f"<b>● {block}</b><br>{lit[block]}" if on else block,
            font={"color": "white" if on else TEXT_COLOR, "size": 11},
        )  # fmt: skip
    bare = {"visible": False, "fixedrange": True}
    figure.update_layout(
        template=TEMPLATE, height=70 + 62 * (max(levels) + 1), margin={"l": 8, "r": 8, "t": 8, "b": 8}, dragmode=False,
        xaxis={**bare, "range": [-0.6, len(blocks) - 0.4]}, yaxis={**bare, "range": [-max(levels) - 0.6, 0.6]},
    )  # fmt: skip
    return figure
