"""How the page looks, by day and by night."""

from typing import Any

import gradio as gr
import plotly.graph_objects as go
import plotly.io

from diffusers_xai.plots.style import GRID_COLOR, LINE_COLORS, MUTED_COLOR, TEXT_COLOR
from diffusers_xai.plots.tiles import fit_width


WIDTH = 820  # CSS pixels of a figure: a phone is swiped over them, a wide screen has a little more


CSS = (
    f".figure .js-plotly-plot {{min-width: {WIDTH}px}}"
    + """
.gradio-container {max-width: 1400px !important}
.figure {background: white; border-radius: 8px; overflow-x: auto; padding: 4px}
.dark .figure {background: #18181b}
.explained:not(:has(.figure)) {display: none}
@media (pointer: coarse) {.modebar {display: none !important}}  /* which nothing hides where there is no pointer */
.table + p {margin-top: 8px}
.table {
  overflow-x: auto;
  background: linear-gradient(to right, var(--body-background-fill) 40%, transparent) left / 48px 100% no-repeat local,
    linear-gradient(to left, var(--body-background-fill) 40%, transparent) right / 48px 100% no-repeat local,
    linear-gradient(to right, #888b, transparent) left / 20px 100% no-repeat,
    linear-gradient(to left, #888b, transparent) right / 20px 100% no-repeat
}
.table :is(th, td) {padding: 4px 8px !important; font-size: 13px; white-space: nowrap}
.table :is(th, td):first-child {white-space: normal; min-width: 7em}
details summary {cursor: pointer; padding: 8px 0}
:is(#experiment, #words) input {text-overflow: ellipsis; padding-right: 24px}
.gradio-container a {color: var(--link-text-color); text-decoration: underline}
.tab-container button.selected {color: var(--link-text-color)}
#status {min-height: 2.2em}
.block.status {display: flex; flex-direction: column}
.status .pending {opacity: 1}
.block.status > .wrap.full {
  position: static !important; order: 1; align-items: stretch; min-height: 0; overflow: visible; background: none;
  border: none
}
.block.status > .wrap.full > :is(.eta-bar, div:has(> svg)) {display: none}
.block.status > .wrap:has(.progress-level) .progress-text {display: none}
.block.status .progress-text {position: static; justify-content: flex-start; transform: none; padding: 0}
.block.status .progress-level {align-items: stretch; width: 100%}
.block.status .progress-level-inner {margin: 4px 0; font-size: 12px}
.block.status .progress-bar-wrap {width: 100%; height: 6px}
.status {scroll-margin-bottom: 6em}
#sweep-images .grid-wrap {min-height: 0 !important; height: auto !important; max-height: none !important}
#definitions dt {margin-top: .8em} #definitions dd {margin-left: 1em}
@media (max-width: 700px) {
  #sample, #cancel {min-height: 48px}
  #live [data-testid=block-label] {clip-path: inset(50%)}
  .tab-container button {padding: 0 2px; font-size: 11px; letter-spacing: -.1px}
  #sweep-images .grid-container {grid-template-columns: repeat(3, 1fr) !important}
  .figure::before {content: "Swipe sideways to see all of it."; color: var(--body-text-color-subdued); font-size: 12px}
}
"""
)

# What the browser tells about the theme, for the handler of the page's start.
# A table that goes on beyond an edge has a shadow there, which what is scrolled covers at the ends.
# Gradio shows a picture inside a button without a name: it gets that of the picture.
# With a base, the page's own folder anyway, colour bars and links to definitions would not outlive a new address.
# Of the region's editor it is told when something may have been painted or undone.
# A double click on a button that starts a run is one press: the second one counts if something was told meanwhile.
# What is told of a run stands below its button, and is scrolled to where that is at the lower edge of the window.
# The page's margin on a phone is set here, since Gradio puts what is in CSS inside that margin.
HEAD = """<style>
@media (max-width: 700px) {.gradio-container > .main.fillable {padding: 16px 10px !important}}
</style>
<script>
new MutationObserver(() => {
  document.querySelector("base[href]")?.removeAttribute("href");
  for (const button of document.querySelectorAll("button:has(> .image-frame):not([aria-label])")) {
    button.setAttribute("aria-label", button.closest(".block")?.querySelector("label")?.innerText.trim() || "Picture");
  }
}).observe(document.documentElement, {childList: true, subtree: true});
let painting = false;
addEventListener("pointerdown", event => painting = Boolean(event.target.closest?.("#mask")), true);
addEventListener("pointerup", () => {
  if (painting) setTimeout(() => document.querySelector("#painted")?.click());
  painting = false;
}, true);
let toldBefore = "";
addEventListener("click", event => {
  if (!event.target.closest?.("button.primary")) return;
  const now = [...document.querySelectorAll("[id$=status]")].map(status => status.innerText).join();
  if (event.detail > 1 && now === toldBefore) event.stopImmediatePropagation();
  toldBefore = now;
  const button = event.target.closest("button").id;
  document.querySelector(button === "sample" ? "#status" : `#${button.replace("-run", "")}-status`)
    ?.scrollIntoView({block: "nearest"});
}, true);
</script>"""

IS_DARK = "(session, _) => [session, document.body.classList.contains('dark')]"

# The whole link of a query; the address of a result is that of its settings, so that reload and back keep them.
WHOLE_LINK = "(query) => window.location.origin + window.location.pathname + query"
ADDRESS = """(query) => {
  const link = new URL(query, window.location.origin + window.location.pathname)
  const address = new URL(link)
  const theme = new URLSearchParams(window.location.search).get('__theme')
  if (theme) address.searchParams.set('__theme', theme)
  window.history.replaceState(window.history.state, '', address)
  return query && link.href
}"""
# On a phone the picture lies below the controls; what is refused is told beside these.
TO_PICTURE = """status => {
  if (window.innerWidth >= 700 || !status.startsWith('Done')) return
  document.querySelector('#live').scrollIntoView({behavior: 'smooth', block: 'start'})
}"""

THEME = gr.themes.Soft(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    block_label_text_color="*neutral_800",
    block_title_text_color="*neutral_800",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_800",
    button_primary_text_color="white",
    button_secondary_background_fill_hover_dark="*primary_700",
    button_border_width="1px",
    button_secondary_border_color="*neutral_400",
    checkbox_border_color="*neutral_500",
    checkbox_label_background_fill_selected="*primary_700",
    checkbox_label_background_fill_selected_dark="*primary_700",
    input_border_width="1px",
    input_border_color="*neutral_400",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_300",
    link_text_color="*primary_700",
    link_text_color_dark="*primary_300",
)

# The colours of text, lines and areas in the figures of the package -> what can be seen on a dark page.
_DARK = {
    TEXT_COLOR: "#f4f4f5", MUTED_COLOR: "#c3c9d2", GRID_COLOR: "#3f3f46", "#000000": "#f4f4f5", "#eef1f4": "#27272a",
    "#fafbfc": "#18181b",
}  # fmt: skip
_DARK_LINE = "#2f95dc"  # of curves and marks in the darkest of the colours, which is weak even on its own band


def themed(figure: go.Figure, dark: bool) -> go.Figure:
    """The figure with a transparent background, in colours that can be read on the page's theme."""
    if dark:
        text = figure.to_json()
        for light, other in _DARK.items():
            text = text.replace(f'"{light}"', f'"{other}"')
        figure = plotly.io.from_json(text, skip_invalid=True)
        figure.update_layout(hoverlabel={"bgcolor": "#27272a", "font": {"color": "#f4f4f5"}})
        figure.update_traces(line_color=_DARK_LINE, selector={"line_color": LINE_COLORS[0]})
        figure.update_traces(marker_color=_DARK_LINE, selector={"marker_color": LINE_COLORS[0]})
        figure.update_traces(error_x_color=_DARK_LINE, selector={"error_x_color": LINE_COLORS[0]})
    for axis in figure.select_yaxes():
        if axis.minor.showgrid:  # else Plotly would mix their colour with the background, which is clear
            axis.minor.gridcolor = _DARK[GRID_COLOR] if dark else GRID_COLOR
    clear: Any = "rgba(0,0,0,0)"
    return fit_width(figure, WIDTH).update_layout(paper_bgcolor=clear, plot_bgcolor=clear)
