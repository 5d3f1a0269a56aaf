"use strict";
// Values under the pointer: the nearest step of each curve.
for (const plot of document.querySelectorAll(".curve")) {
  const set = plot.dataset, svg = plot.querySelector("svg"), cursor = plot.querySelector(".cursor");
  const names = [...plot.querySelectorAll(".key b")], latest = names.map((each) => each.textContent);
  const at = plot.querySelector(".at");
  let lines;
  svg.addEventListener("pointermove", (event) => {
    lines ??= JSON.parse(set.lines);
    const box = svg.getBoundingClientRect(), left = Number(set.left), right = Number(set.right);
    const x = ((event.clientX - box.left) / box.width) * Number(set.width);
    const share = Math.min(1, Math.max(0, (x - left) / (right - left)));
    const step = Number(set.first) + share * (Number(set.last) - Number(set.first));
    lines.forEach((line, i) => {
      let best = 0;
      line.steps.forEach((each, j) => { if (Math.abs(each - step) < Math.abs(line.steps[best] - step)) best = j; });
      names[i].textContent = line.means[best];
    });
    at.textContent = "at " + Math.round(step).toLocaleString("en");
    const place = left + share * (right - left);
    cursor.setAttribute("x1", place);
    cursor.setAttribute("x2", place);
    cursor.setAttribute("visibility", "visible");
  });
  svg.addEventListener("pointerleave", () => {
    names.forEach((each, i) => { each.textContent = latest[i]; });
    at.textContent = "";
    cursor.setAttribute("visibility", "hidden");
  });
}

// The slider of the previews. Its place is kept in the address, so that it is still there after the page has loaded again.
for (const box of document.querySelectorAll(".frames")) {
  const frames = [...box.querySelectorAll(".frame")], label = box.querySelector(".slider");
  if (!label) continue;
  const slider = label.querySelector("input"), output = label.querySelector("output");
  const show = () => {
    frames.forEach((frame, i) => { frame.hidden = i !== Number(slider.value); });
    output.textContent = frames[slider.value].dataset.name;
  };
  label.hidden = frames.length < 2;
  const kept = frames.findIndex((frame) => "#" + encodeURIComponent(frame.dataset.name) === location.hash);
  if (kept >= 0) slider.value = kept;
  show();
  slider.addEventListener("input", () => {
    show();
    const last = Number(slider.value) === frames.length - 1;
    history.replaceState(null, "", last ? location.pathname : "#" + encodeURIComponent(output.textContent));
  });
}

// While the run goes on, the page is loaded again; not while a button is pressed or nobody sees it.
const every = Number(document.body.dataset.refresh);
if (every) {
  let pressed = false;
  addEventListener("pointerdown", () => { pressed = true; });
  addEventListener("pointerup", () => { pressed = false; });
  setInterval(() => { if (!document.hidden && !pressed) location.reload(); }, every * 1000);
}
