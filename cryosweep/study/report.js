const config = {
  displaylogo: false, responsive: true,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
};
const config3d = {...config, modeBarButtons: [["toImage", "orbitRotation", "pan3d", "zoom3d", "resetCameraDefault3d"]]};
for (const [name, figure] of Object.entries(figures))
  Plotly.newPlot("plot-" + name, figure.data, figure.layout, config);

// FSC overlay: a curve shows when both its run (legend) and its type (tick box) are on.
const overlay = document.getElementById("plot-fsc");
const boxes = [...document.querySelectorAll(".curve-type")];
const everyRun = [...new Set(overlay.data.filter(t => t.meta).map(t => t.meta.run))];
const hidden = new Set();
function redraw() {
  const types = new Set(boxes.filter(box => box.checked).map(box => box.value));
  const visible = overlay.data.map(trace =>
    !trace.meta ? true : !trace.meta.type ? (hidden.has(trace.meta.run) ? "legendonly" : true)
                     : !hidden.has(trace.meta.run) && types.has(trace.meta.type));
  Plotly.restyle(overlay, {visible});
}
boxes.forEach(box => box.addEventListener("change", redraw));
overlay.on("plotly_legendclick", event => {
  if (!overlay.data[event.curveNumber].meta) return true;
  const run = overlay.data[event.curveNumber].meta.run;
  if (!hidden.delete(run)) hidden.add(run);
  redraw();
  return false;
});
overlay.on("plotly_legenddoubleclick", event => {
  if (!overlay.data[event.curveNumber].meta) return false;
  const run = overlay.data[event.curveNumber].meta.run;
  const alone = !hidden.has(run) && hidden.size === everyRun.length - 1;
  hidden.clear();
  if (!alone) everyRun.filter(other => other !== run).forEach(other => hidden.add(other));
  redraw();
  return false;
});

// Sortable tables: numbers as numbers, words as words, empty cells last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[column].dataset.value;
    const order = (a, b) => {
      if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
      const difference = key(a) - key(b);
      return (up ? 1 : -1) * (Number.isNaN(difference) ? key(a).localeCompare(key(b)) : difference);
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  }));
}

// Surfaces: two views of one list of meshes, turned together.
const sides = ["left", "right"].map(side => ({
  plot: document.getElementById("surface-" + side),
  choice: document.getElementById("choose-" + side),
}));
function draw(side) {
  // the layout is a copy, its camera that of the view as it is now
  const layout = structuredClone(surfaces.layout);
  const now = side.plot.layout && side.plot.layout.scene.camera;
  if (now) layout.scene.camera = structuredClone(now);
  return Plotly.react(side.plot, [{...surfaces.data[side.choice.value]}], layout, config3d);
}
let turning = false;
for (const side of sides) {
  const other = sides.find(each => each !== side);
  draw(side);
  side.choice.addEventListener("change", () => draw(side));
  side.plot.on("plotly_relayout", event => {
    const camera = event["scene.camera"];
    if (!camera || turning) return;
    turning = true;
    Plotly.relayout(other.plot, {"scene.camera": structuredClone(camera)}).finally(() => { turning = false; });
  });
}

// Copy buttons: the clipboard where the browser allows it to a page from disk, else a selection.
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
for (const button of document.querySelectorAll("button.copy"))
  button.addEventListener("click", async () => {
    const done = await copied(button.previousElementSibling.innerText);
    button.textContent = done ? "copied" : "select it and press Ctrl-C";
    setTimeout(() => { button.textContent = "copy"; }, 2000);
  });
