"use strict";
// The page around the views: what is chosen, tables, pictures, heat map.

const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const space = tag.startsWith("svg:") ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml"; // names, no addresses
  const element = document.createElementNS(space, tag.replace("svg:", ""));
  for (const [name, value] of Object.entries(attributes))
    typeof value === "function" ? element.addEventListener(name, value) : element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const state = { scene: 0, method: "all", threshold: 0 }; // threshold in shares of the scene's unit
let viewer, sorted, limit;

const scene = () => data.scenes[state.scene];
const numberOf = (metric, numbers) => (numbers[metric.key] === null ? "n/a" : numbers[metric.key].toFixed(metric.digits));
const significant = (value) => Number(value.toPrecision(3));

function readHash() {
  const chosen = new URLSearchParams(location.hash.slice(1));
  const index = data.scenes.findIndex((each) => each.name === chosen.get("scene"));
  state.scene = index < 0 ? state.scene : index;
  state.method = chosen.get("method") ?? "all";
}

function writeHash() {
  history.replaceState(null, "", "#" + new URLSearchParams({ scene: scene().name, method: state.method }));
}

function showScene() {
  find("scene").value = state.scene;
  sorted = scene().columns.map((column) => new Uint16Array(bytesOf(column.errors).buffer).sort());
  const ranked = (index, share) => { // among the points that are judged: all others have error 0 and come first
    const { drawn, judged } = scene().columns[index];
    return sorted[index][drawn - judged + Math.floor(share * (judged - 1))] / 65535;
  };
  const judged = scene().columns.map((_, index) => index).filter((i) => !scene().columns[i].isReference && scene().columns[i].judged);
  limit = Math.min(1, Math.max(0.01, ...judged.map((index) => ranked(index, 0.995))));
  viewer.load(scene());
  showMethods();
  setThreshold(judged.length ? ranked(judged[0], 0.98) : limit);
  showViews();
}

function showMethods() {
  const columns = scene().columns;
  if (!columns.some((column) => column.method === state.method)) state.method = "all";
  const chip = (method, name, key) =>
    make("button", { "aria-pressed": state.method === method, "data-method": method, title: `Key ${key}`, click: () => choose(method) }, name);
  find("methods").replaceChildren(chip("all", "Side by side", 0), ...columns.map((column, i) => chip(column.method, column.name, i + 1)));
  const shown = columns.map((_, index) => index).filter((i) => state.method === "all" || columns[i].method === state.method);
  const metrics = data.metrics.filter((metric) => scene().metrics.includes(metric.key) && metric.key !== "seconds");
  const panels = shown.map((index) => {
    const { name, numbers, isReference } = columns[index];
    const about = metrics.filter(({ key }) => key in numbers).map((metric) => `${metric.heading} ${numberOf(metric, numbers)}`);
    if (isReference && !scene().hasTruth) about.unshift("what the others are compared with");
    const lines = [make("b", {}, name), ...[about.slice(0, 2), about.slice(2)].map((line) => make("span", {}, line.join(" · ")))];
    return make("div", { class: "panel" }, ...lines, make("span", { "data-beyond": index }));
  });
  find("panels").replaceChildren(...panels);
  find("stage").className = panels.length === 1 ? "alone" : "";
  find("stage").style.setProperty("--panels", Math.min(4, panels.length));
  viewer.panels = shown.map((column, i) => ({ column, element: panels[i] }));
  const counts = columns.map(({ name, drawn, total, far }) =>
    `${name} ${drawn.toLocaleString("en")} of ${total.toLocaleString("en")}` + (far ? ` (${far.toLocaleString("en")} too far away)` : ""));
  find("drawn").textContent = `Points drawn, chosen by seed: ${counts.join(", ")}.`;
  showBeyond();
  writeHash();
}

function choose(method) { state.method = method; showMethods(); }

function setThreshold(share) {
  state.threshold = share;
  find("threshold").value = Math.sqrt(Math.min(1, share / limit)); // finer where errors are small
  find("exact").value = significant(share * scene().unit);
  find("share").textContent = `${significant(100 * share)} % of the mean distance from the first camera`;
  showBeyond();
}

function showBeyond() {
  const on = find("errors").checked;
  viewer.options.threshold = on ? state.threshold : 2;
  for (const element of document.querySelectorAll("[data-beyond]")) {
    const index = Number(element.dataset.beyond), { judged, isReference } = scene().columns[index];
    const beyond = sorted[index].reduce((count, error) => count + (error / 65535 > state.threshold), 0);
    element.textContent = on && judged && !isReference ? `${(100 * beyond / judged).toFixed(1)} % of points in green` : "";
  }
  viewer.redraw();
}

function showViews() {
  const { photos, viewNames, views, columns } = scene();
  find("about").textContent = `${scene().about}, against ${scene().hasTruth ? "ground truth" : "dense"}`;
  const picture = (source, text) => make("img", { src: source, alt: text, title: text, loading: "lazy" });
  const row = (name, cells) => make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((cell) => make("td", {}, cell)));
  const buttons = photos.map((source, i) =>
    make("button", { title: `Stand where ${viewNames[i]} was taken`, click: () => stand(views[i]) }, picture(source, viewNames[i])));
  const depths = columns.map((column) => row(`${column.name} depth`, column.depth.map((source, i) => picture(source, `${column.name}, depth of ${viewNames[i]}`))));
  find("views").replaceChildren(make("table", {}, row("Photos", buttons), ...depths));
}

function stand(view) { // at the reference's camera
  const { columns, middle } = scene();
  const corners = (columns.find((column) => column.isReference) ?? columns[0]).pyramids.slice(15 * view, 15 * view + 15);
  const [eye, ...image] = [0, 1, 2, 3, 4].map((i) => corners.slice(3 * i, 3 * i + 3));
  const ahead = unit(add(image.reduce((sum, corner) => add(sum, corner)), eye, -4));
  viewer.orbit.stand(eye, add(eye, ahead, Math.max(0.2 * scene().unit, dot(add(middle, eye, -1), ahead))));
  viewer.redraw();
}

function showTable() {
  const used = data.metrics.filter(({ key }) => data.scenes.some(({ metrics }) => metrics.includes(key)));
  const arrow = ({ key, higherIsBetter }) => (["density", "seconds"].includes(key) ? "" : higherIsBetter ? " ↑" : " ↓");
  const head = make("tr", {}, ...["Scene", "Method", ...used.map((metric) => metric.heading + arrow(metric))].map((text) => make("th", {}, text)));
  const rows = data.scenes.flatMap(({ name, metrics, columns }) =>
    columns.filter(({ numbers }) => "density" in numbers).map(({ name: method, numbers }, i) => {
      const cells = used.map((metric) => (metrics.includes(metric.key) ? numberOf(metric, numbers) : ""));
      return make("tr", i ? {} : { class: "first" }, ...[i ? "" : name, method, ...cells].map((text) => make("td", {}, text)));
    }));
  find("table").append(make("thead", {}, head), make("tbody", {}, ...rows));
  find("notes").append(...data.notes.map((note) => make("li", {}, note)));
  find("numbers").hidden = !rows.length;
}

function showHeat() {
  const panels = Object.entries(data.shares), top = Math.max(...panels.flatMap(([, rows]) => rows.flat()));
  const mix = (share) => `rgb(${[[252, 63], [251, 0], [253, 125]].map(([light, dark]) => Math.round(light + share * (dark - light))).join()})`;
  for (const [error, rows] of panels) {
    const layers = rows.length, heads = rows[0].length, cell = Math.max(9, Math.min(26, 620 / layers));
    const picture = make("svg:svg", { width: 30 + cell * layers, height: 24 + cell * heads, role: "img", "aria-label": `Scores for the ${error} error` });
    const label = (x, y, text, anchor) => picture.append(make("svg:text", { x, y, "text-anchor": anchor }, text));
    rows.forEach((row, layer) => row.forEach((share, head) => picture.append(make("svg:rect", {
      x: 28 + layer * cell, y: head * cell, width: cell - 1, height: cell - 1, fill: mix(share / top), "data-layer": layer, "data-head": head,
      pointermove: (event) => showTip(event, [`layer ${layer + 1}, head ${head + 1}`, ...panels.map(([name, each]) => `${name} ${each[layer][head].toFixed(4)}`)]),
      pointerleave: () => { find("tip").hidden = true; } }))));
    for (let layer = 0; layer < layers; layer += layers > 12 ? 2 : 1) label(28 + (layer + 0.5) * cell, heads * cell + 14, layer + 1, "middle");
    for (let head = 0; head < heads; head += heads > 12 ? 2 : 1) label(22, (head + 0.5) * cell + 4, head + 1, "end");
    find("maps").append(make("figure", {}, make("figcaption", {}, `${error === "camera" ? "Camera" : "Point"} error: heads over layers`), picture));
  }
  find("heat").hidden = false;
}

function showTip(event, lines) {
  Object.assign(find("tip"), { hidden: false, textContent: lines.join("\n") });
  Object.assign(find("tip").style, { left: `${Math.min(event.clientX + 14, innerWidth - 150)}px`, top: `${event.clientY + 14}px` });
}

function startViewer() {
  find("viewer").hidden = false;
  try { viewer = new Viewer(find("canvas")); } catch (error) {
    find("viewer").replaceChildren(make("p", { class: "message" }, error.message));
    return;
  }
  find("scene").append(...data.scenes.map(({ name }, index) => make("option", { value: index }, name)));
  find("scene").addEventListener("change", (event) => { state.scene = Number(event.target.value); showScene(); });
  find("reset").addEventListener("click", () => { viewer.orbit.reset(); viewer.redraw(); });
  find("errors").addEventListener("change", showBeyond);
  find("threshold").addEventListener("input", (event) => setThreshold(event.target.value ** 2 * limit));
  find("exact").addEventListener("change", (event) => setThreshold(Math.max(0, Number(event.target.value)) / scene().unit));
  find("cameras").addEventListener("change", (event) => { viewer.options.cameras = event.target.checked; viewer.redraw(); });
  find("size").addEventListener("input", (event) => { viewer.options.size = Number(event.target.value); viewer.redraw(); });
  addEventListener("hashchange", () => { readHash(); showScene(); });
  addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const methods = ["all", ...scene().columns.map(({ method }) => method)];
    if (methods[event.key] && /^\d$/.test(event.key)) choose(methods[event.key]);
    if (event.key === "r") find("reset").click();
  });
  readHash();
  showScene();
}

if (data.scenes.length) startViewer();
showTable();
if (data.shares) showHeat();
for (const [heading, values] of Object.entries(data.configurations))
  find("configuration").append(make("details", {}, make("summary", {}, heading), make("pre", {}, JSON.stringify(values, null, 2))));
find("configuration").hidden = !Object.keys(data.configurations).length;
