// Coordinates are pixels of the finest level; view.zoom is screen pixels per such pixel, (view.x, view.y) the middle.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const [canvas, model, layerChoice, opacity] = ["slide", "model", "layer", "opacity"].map(byId);
const pen = canvas.getContext("2d");
const [width, height] = data.levels.at(-1);
const asked = new URLSearchParams(location.hash.slice(1));
const view = { x: width / 2, y: height / 2, zoom: 0 };
const pictures = new Map();
let waiting = 0;
let missing = 0;
let untouched = true; // then the whole slide is shown, whatever the window

const layer = () => data.models[model.value]?.layers.find((one) => one.name === layerChoice.value);
const fit = () => Math.min(canvas.clientWidth / width, canvas.clientHeight / height) * 0.96;

function whole() {
  Object.assign(view, { x: width / 2, y: height / 2, zoom: fit() });
  untouched = true;
  draw();
}

function zoomBy(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const zoom = Math.min(8, Math.max(fit() / 2, view.zoom * factor));
  view.x += (x - canvas.clientWidth / 2) * (1 / view.zoom - 1 / zoom);
  view.y += (y - canvas.clientHeight / 2) * (1 / view.zoom - 1 / zoom);
  view.zoom = zoom;
  untouched = false;
  draw();
}

function move(dx, dy) {
  view.x = Math.min(width, Math.max(0, view.x - dx / view.zoom));
  view.y = Math.min(height, Math.max(0, view.y - dy / view.zoom));
  untouched = false;
  draw();
}

function picture(z, x, y) {
  const name = `${z}/${x}_${y}.jpg`;
  if (!pictures.has(name)) {
    const image = new Image();
    const done = () => {
      waiting -= 1;
      Object.assign(document.body.dataset, { waiting, missing });
      draw();
    };
    image.onload = done;
    image.onerror = () => { missing += 1; done(); };
    waiting += 1;
    image.src = `${data.folder}/${name}`;
    pictures.set(name, image);
  }
  const image = pictures.get(name);
  return image.complete && image.naturalWidth ? image : null;
}

function drawLevel(z, left, top, right, bottom) {
  const step = 2 ** (data.levels.length - 1 - z); // finest pixels per pixel of this level
  const side = data.tile * step;
  const [columns, rows] = data.levels[z].map((extent) => Math.ceil(extent / data.tile));
  for (let y = Math.max(0, Math.floor(top / side)); y < Math.min(rows, bottom / side); y++) {
    for (let x = Math.max(0, Math.floor(left / side)); x < Math.min(columns, right / side); x++) {
      const image = picture(z, x, y);
      if (image) pen.drawImage(image, x * side, y * side, image.naturalWidth * step, image.naturalHeight * step);
    }
  }
}

function shade(one, value) {
  const [low, middle, high] = one.ends;
  const share = value < middle ? 0.5 * (value - low) / (middle - low) : 0.5 + 0.5 * (value - middle) / (high - middle);
  const row = data.colours[one.colours];
  return row[Math.round(Math.min(1, Math.max(0, share)) * (row.length - 1))];
}

function drawTiles(left, top, right, bottom) {
  const one = layer();
  if (!one?.values) return;
  pen.globalAlpha = Number(opacity.value);
  data.views[data.models[model.value].view].forEach((c, i) => {
    if (Math.max(c[0], c[2], c[4], c[6]) < left || Math.min(c[0], c[2], c[4], c[6]) > right) return;
    if (Math.max(c[1], c[3], c[5], c[7]) < top || Math.min(c[1], c[3], c[5], c[7]) > bottom) return;
    pen.fillStyle = shade(one, one.values[i]);
    pen.beginPath();
    for (let k = 0; k < 8; k += 2) pen.lineTo(c[k], c[k + 1]);
    pen.fill();
  });
  pen.globalAlpha = 1;
}

function drawScaleBar() {
  const most = Math.min(160, canvas.clientWidth / 3) / view.zoom * data.um; // µm
  const power = 10 ** Math.floor(Math.log10(most));
  const um = [5, 2, 1].map((n) => n * power).find((n) => n <= most);
  const length = um / data.um * view.zoom;
  const text = um >= 1000 ? `${um / 1000} mm` : `${um} µm`;
  const bottom = canvas.clientHeight - 14;
  pen.fillStyle = "#ffffffd9";
  pen.fillRect(8, bottom - 24, length + 16, 32);
  pen.fillStyle = "#1b1b1b";
  pen.fillRect(16, bottom - 4, length, 4);
  pen.font = "13px system-ui, sans-serif";
  pen.fillText(text, 16, bottom - 9);
  document.body.dataset.bar = `${text} = ${length.toFixed(1)} px`;
}

let planned = false;
function draw() {
  if (!planned) requestAnimationFrame(paint);
  planned = true;
}

function paint() {
  planned = false;
  const ratio = devicePixelRatio;
  canvas.width = canvas.clientWidth * ratio;
  canvas.height = canvas.clientHeight * ratio;
  const [halfX, halfY] = [canvas.clientWidth / 2 / view.zoom, canvas.clientHeight / 2 / view.zoom];
  const box = [view.x - halfX, view.y - halfY, view.x + halfX, view.y + halfY];
  const scale = view.zoom * ratio;
  pen.setTransform(scale, 0, 0, scale, -box[0] * scale, -box[1] * scale);
  const finest = data.levels.length - 1;
  const wanted = Math.min(finest, Math.max(0, finest + Math.ceil(Math.log2(scale) - 0.01)));
  for (let z = Math.max(0, wanted - 2); z <= wanted; z++) drawLevel(z, ...box); // coarser ones beneath, until it is there
  drawTiles(...box);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  drawScaleBar();
  const place = canvas.getBoundingClientRect();
  Object.assign(document.body.dataset, { waiting, missing, level: wanted, zoom: view.zoom.toPrecision(6) });
  document.body.dataset.canvas = [place.left, place.top, place.width, place.height].join(" ");
}

function legend() {
  const one = layer();
  byId("what").textContent = one ? one.title.replace("\n", " ") : "";
  document.querySelector(".scale").hidden = !one?.values;
  document.querySelector(".scale").style.display = one?.values ? "" : "none";
  if (one?.values) {
    [byId("low").textContent, , byId("high").textContent] = one.ends.map((end) => Number(end.toPrecision(3)));
    const ramp = byId("ramp").getContext("2d");
    data.colours[one.colours].forEach((colour, i, row) => {
      ramp.fillStyle = colour;
      ramp.fillRect(i * 120 / row.length, 0, 120 / row.length + 1, 10);
    });
  }
  draw();
}

function inside(c, x, y) {
  let sign = 0;
  for (let k = 0; k < 8; k += 2) {
    const n = (k + 2) % 8;
    const side = Math.sign((c[n] - c[k]) * (y - c[k + 1]) - (c[n + 1] - c[k + 1]) * (x - c[k]));
    if (side && sign && side !== sign) return false;
    sign = side || sign;
  }
  return true;
}

function tell(event) {
  const own = data.models[model.value];
  if (!own) return;
  const x = view.x + (event.offsetX - canvas.clientWidth / 2) / view.zoom;
  const y = view.y + (event.offsetY - canvas.clientHeight / 2) / view.zoom;
  const i = data.views[own.view].findIndex((c) => inside(c, x, y));
  const numbers = own.layers.filter((one) => one.values).map((one) => `${one.name} ${one.values[i]}`);
  byId("tile").textContent = i < 0 ? "" : `tile ${data.ids[own.view][i]}: ${numbers.join(", ")}`;
}

const fingers = new Map();
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, event);
  tell(event);
});
canvas.addEventListener("pointermove", (event) => {
  const before = fingers.get(event.pointerId);
  if (!before) return tell(event);
  const [other] = [...fingers.values()].filter((one) => one.pointerId !== event.pointerId);
  if (other) {
    // The other finger rests for this event: what lies under it stays there, and so does what lies under this one.
    const apart = (one) => Math.hypot(one.offsetX - other.offsetX, one.offsetY - other.offsetY) || 1;
    zoomBy(apart(event) / apart(before), other.offsetX, other.offsetY);
  } else move(event.offsetX - before.offsetX, event.offsetY - before.offsetY);
  fingers.set(event.pointerId, event);
});
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoomBy(1.0015 ** -event.deltaY, event.offsetX, event.offsetY);
}, { passive: false });
canvas.addEventListener("dblclick", (event) => zoomBy(2, event.offsetX, event.offsetY));
canvas.addEventListener("keydown", (event) => {
  const keys = { ArrowLeft: [80, 0], ArrowRight: [-80, 0], ArrowUp: [0, 80], ArrowDown: [0, -80] };
  if (keys[event.key]) move(...keys[event.key]);
  else if (event.key === "+") zoomBy(1.5);
  else if (event.key === "-") zoomBy(1 / 1.5);
  else if (event.key === "0") whole();
  else return;
  event.preventDefault();
});
byId("closer").onclick = () => zoomBy(1.5);
byId("farther").onclick = () => zoomBy(1 / 1.5);
byId("whole").onclick = whole;
model.onchange = layerChoice.onchange = legend;
opacity.oninput = draw;
new ResizeObserver(() => {
  if (untouched) whole();
  paint(); // at once: a canvas that changed its size is empty
}).observe(canvas);

// A link may name what to show: #model=1&layer=score&opacity=0.8&x=500&y=400&zoom=2
model.value = asked.get("model") ?? "0";
layerChoice.value = asked.get("layer") ?? "contribution";
if (!layer()?.values && !asked.has("layer")) layerChoice.value = "attention";
opacity.value = asked.get("opacity") ?? "0.55";
legend();
view.zoom = fit();
for (const name of ["x", "y", "zoom"]) {
  if (!asked.has(name)) continue;
  view[name] = Number(asked.get(name));
  untouched = false;
}
paint();
