"use strict";
for (const part of document.querySelectorAll("[data-needs-script]")) part.hidden = false;

// Sets and views: one panel of a run is shown.
for (const images of document.querySelectorAll("[data-images]")) {
  const panels = [...images.querySelectorAll("[data-set]")];
  const chosen = (name) => images.querySelector(`input[data-choice=${name}]:checked`)?.value;
  const show = () => {
    const set = chosen("set") ?? "0";
    const views = panels.filter((panel) => panel.dataset.set === set);
    const wanted = views.find((panel) => panel.dataset.view === chosen("view")) ?? views[0];
    for (const panel of panels) panel.hidden = panel !== wanted;
  };
  images.addEventListener("change", show);
  show();
}

// The slider over the iterations, and its player.
for (const history of document.querySelectorAll("[data-history]")) {
  const frames = [...history.querySelectorAll("[data-caption]")];
  const slider = history.querySelector("input");
  const output = history.querySelector("output");
  const button = history.querySelector("button");
  let timer = 0;
  const show = () => {
    const current = Number(slider.value);
    frames.forEach((frame, index) => (frame.hidden = index !== current));
    output.textContent = frames[current].dataset.caption;
    slider.setAttribute("aria-valuetext", output.textContent);
  };
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    button.textContent = "Play";
  };
  const step = () => {
    slider.value = Number(slider.value) + 1;
    show();
    if (Number(slider.value) >= frames.length - 1) stop();
  };
  slider.addEventListener("input", () => (stop(), show()));
  button.addEventListener("click", () => {
    if (timer) return stop();
    if (Number(slider.value) >= frames.length - 1) slider.value = 0;
    button.textContent = "Pause";
    show();
    timer = setInterval(step, 350);
  });
  show();
}

// Paper cannot be clicked.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
