// The visible texts whose contrast to what lies behind them is below WCAG's 4.5 : 1, as [ratio, text, colours].
() => {
  const parse = (color) => {
    if (!/^rgba?\(/.test(color)) throw new Error(`unknown colour ${color}`);
    const [r, g, b, a = 1] = color.match(/[\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (top, bottom) => [0, 1, 2].map((i) => top[i] * top[3] + bottom[i] * (1 - top[3]));
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const holds = (box, x, y) => box.left <= x && x <= box.right && box.top <= y && y <= box.bottom;
  // The layers behind an element, the nearest first: its ancestors, and in a drawing the shapes below the text.
  const behind = (element, x, y) => {
    const layers = [];
    const plot = element.closest("svg") && element.closest(".js-plotly-plot");
    if (plot) {
      const shapes = [...plot.querySelectorAll(".shapelayer path, .bg, .legend rect")].reverse();
      for (const shape of shapes.filter((s) => holds(s.getBoundingClientRect(), x, y))) {
        const style = getComputedStyle(shape);
        const [r, g, b, a] = style.fill === "none" ? [0, 0, 0, 0] : parse(style.fill);
        layers.push([r, g, b, a * style.fillOpacity * style.opacity]);
      }
    }
    for (let at = element; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers;
  };
  const texts = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    if (text) texts.set(walker.currentNode.parentElement, text);
  }
  for (const input of document.querySelectorAll("input:not([type=checkbox], [type=range]), textarea")) {
    if (input.value) texts.set(input, input.value);
  }
  const failures = [];
  let checked = 0;
  for (const [element, text] of texts) {
    const box = element.getBoundingClientRect();
    const isVisible = element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    if (!isVisible || box.width * box.height < 4) continue;
    if (element.closest("script, style, noscript, [aria-hidden=true], :disabled")) continue;
    checked += 1;
    const style = getComputedStyle(element);
    const layers = behind(element, box.left + box.width / 2, box.top + box.height / 2);
    let background = [255, 255, 255];
    for (const layer of layers.reverse()) background = over(layer, background);
    const drawing = element.closest("svg");
    const color = parse(drawing ? style.fill : style.color);
    if (drawing) color[3] *= style.fillOpacity;
    for (let at = element; at; at = at.parentElement) color[3] *= getComputedStyle(at).opacity;
    const ratio = contrast(over(color, background), background);
    if (ratio < 4.5) failures.push([ratio.toFixed(2), text.slice(0, 50), color.join(), background.join()]);
  }
  return { failures, checked };
}
