"""The HTML around the content: styles, plotly.js and the film's few lines of JavaScript."""

import html
from collections.abc import Sequence

from plotly.offline import get_plotlyjs

from diffusers_xai.plots.style import FONT_FAMILY, MUTED_COLOR, TEXT_COLOR


# The page asks the browser itself to load nothing from anywhere.
_POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_STYLE = f"""
:root {{ color-scheme: light; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: #f3f5f8; color: {TEXT_COLOR}; font: 16px/1.55 {FONT_FAMILY}; }}
main {{ max-width: 1180px; margin: 0 auto; padding: 24px 20px 48px; }}
header, section {{ background: white; border: 1px solid #dfe3e8; border-radius: 10px; padding: 24px 28px;
  margin-bottom: 20px; }}
h1 {{ font-size: 2rem; line-height: 1.2; margin: 0 0 12px; }}
h2 {{ font-size: 1.3rem; line-height: 1.3; margin: 0 0 6px; }}
section > p {{ max-width: 76ch; margin: 0 0 12px; }}
.source {{ color: {MUTED_COLOR}; font-size: .875rem; margin: 8px 0 0; }}
.warning {{ background: #fff4e5; border-left: 4px solid #d55e00; padding: 8px 12px; }}
.facts {{ display: flex; flex-wrap: wrap; gap: 6px 32px; margin: 0 0 20px; }}
.facts dt {{ color: {MUTED_COLOR}; font-size: .875rem; }}
.facts dd {{ margin: 0; font-weight: 600; }}
.pictures {{ display: flex; flex-wrap: wrap; gap: 16px; }}
.pictures figure {{ flex: 1 1 140px; max-width: 340px; }}
figure {{ margin: 0; }}
figcaption {{ color: {MUTED_COLOR}; font-size: .875rem; margin-top: 4px; }}
.pixels {{ display: block; width: 100%; image-rendering: pixelated; border-radius: 6px; }}
.player {{ display: flex; align-items: center; gap: 12px; margin-top: 16px; max-width: 1052px; }}
.player input {{ flex: 1; min-width: 0; accent-color: #0072b2; height: 28px; }}
.player output {{ min-width: 5em; font-variant-numeric: tabular-nums; }}
button {{ font: inherit; padding: 4px 16px; border: 1px solid #0072b2; border-radius: 6px; background: #0072b2;
  color: white; cursor: pointer; }}
:focus-visible {{ outline: 3px solid #e69f00; outline-offset: 2px; }}
.figure, .table {{ overflow-x: auto; }}
.wide > * {{ min-width: 1040px; }}
table {{ border-collapse: collapse; width: 100%; font-size: .9375rem; }}
th, td {{ text-align: left; vertical-align: top; padding: 5px 12px 5px 0; border-bottom: 1px solid #e4e7eb; }}
th {{ color: {MUTED_COLOR}; font-weight: 500; width: 12em; }}
td {{ overflow-wrap: anywhere; }}
.table td {{ overflow-wrap: normal; min-width: 84px; }}
h3 {{ font-size: 1rem; margin: 18px 0 6px; }}
pre {{ background: #f3f5f8; border-radius: 6px; padding: 12px 14px; overflow-x: auto; font-size: .875rem; margin: 0; }}
details {{ margin-top: 14px; }}
summary {{ cursor: pointer; }}
@media (max-width: 1120px) {{
  .wide::before {{ content: "Scroll sideways to see all →"; color: {MUTED_COLOR}; font-size: .875rem; }}
}}
@media (max-width: 600px) {{
  main {{ padding: 10px 8px 32px; }}
  header, section {{ padding: 18px 14px; }}
  h1 {{ font-size: 1.6rem; }}
  .pictures figure:first-child:nth-last-child(odd) {{ flex-basis: 100%; }}
  th {{ width: 7em; }}
}}
@media print {{ body {{ background: white; }} section, header {{ break-inside: avoid; }} }}
"""

_SCRIPT = """
for (const player of document.querySelectorAll('.player')) {
  const slider = player.querySelector('input'), button = player.querySelector('button');
  const labels = player.dataset.labels.split('|'), last = labels.length - 1;
  const films = player.parentElement.querySelectorAll('.film');
  let timer = null;
  const show = () => {
    const label = labels[slider.value];
    player.querySelector('output').textContent = label;
    slider.setAttribute('aria-valuetext', label);
    for (const film of films) film.style.backgroundPosition = `0 ${last ? 100 * slider.value / last : 0}%`;
  };
  const stop = () => { clearInterval(timer); timer = null; button.textContent = 'Play'; };
  slider.addEventListener('input', () => { stop(); show(); });
  button.addEventListener('click', () => {
    if (timer) return stop();
    if (slider.value == last) slider.value = 0;
    button.textContent = 'Pause';
    show();
    timer = setInterval(() => { slider.value = +slider.value + 1; show(); if (slider.value == last) stop(); }, 80);
  });
}
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole HTML document with plotly.js inside.

    Args:
        title (`str`): Plain text.
        body (`Sequence[str]`): HTML of the page's parts.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><script>{get_plotlyjs()}</script></head>\n"
        f"<body><main>{''.join(body)}</main><script>{_SCRIPT}</script></body></html>\n"
    )
