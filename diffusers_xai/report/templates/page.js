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
