"use strict";

// What page.html does beyond a plain form. Everything that a client or the model says is put into the page as text.

const AT_ONCE = 2; // requests
const SHOWN_AT_FIRST = 5; // labels; page.py has the same
const MOST_KEPT = 60; // pictures of a visit, with what the model said of them
const PATIENCE = 60_000; // milliseconds
const QUALITY = 0.95; // of the JPEG that a photo is shrunk to
const MAY_BE_TRANSPARENT = ["image/png", "image/gif", "image/webp"];
const WORTH_ANOTHER_TRY = [408, 429, 502, 503, 504];
const KEY_CODES = ["no_key", "bad_key"]; // another try, with another key
const LEAST_SIDE = 320; // pixels of the heatmap's canvas, also of a picture of 24
const MIDDLE = [0.4, 0.6]; // of a picture's width or height
const TURBO = [ // red, green, blue by powers of the heat, as in explain.py
  [0.13572138, 4.6153926, -42.66032258, 132.13108234, -152.94239396, 59.28637943],
  [0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604],
  [0.1066733, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973],
];
const COLOURS = Array.from({ length: 256 }, (_, level) =>
  TURBO.map((powers) => 255 * powers.reduceRight((sum, factor) => sum * (level / 255) + factor, 0)),
);

const $ = (id) => document.getElementById(id);
const set = document.body.dataset;
const usefulSide = Number(set.usefulSide) || null;
const maxBytes = Number(set.maxBytes);
const taken = $("image").accept.split(",");

const KEPT = $("kept").textContent;

let visit = []; // newest first
let selected = null;
let running = 0;

/* The pictures of this visit. Each is { name, file or url, sent, thumb, state, share, seconds, answer, problem, … } */

function send(sources) {
  const several = sources.length > 1;
  const pictures = sources.slice(0, MOST_KEPT).map((source) => ({
    name: "", sent: null, thumb: null, request: null, share: 0, heats: new Map(), label: null, all: false, problem: null, ...source,
    state: source.problem ? "failed" : "waiting",
  }));
  pictures.forEach(addTile);
  visit = [...pictures, ...visit];
  makeRoom();
  document.body.classList.add("answering");
  $("visit").hidden = false;
  $("kept").textContent = sources.length > MOST_KEPT ? `the first ${MOST_KEPT} of ${sources.length}` : KEPT;
  select(several ? null : pictures[0]);
  if (several) {
    comeIntoView($("visit"));
    say(`${pictures.length} pictures are being sent.`);
    pictures.forEach((picture) => { picture.batch = pictures; });
  }
  work();
}

/** The oldest go, those that are answered first; */
function makeRoom() {
  const isDone = ({ state }) => state === "answered" || state === "failed";
  while (visit.length > MOST_KEPT) {
    const oldest = visit.findLast(isDone) ?? visit.at(-1);
    visit.splice(visit.indexOf(oldest), 1);
    forget(oldest);
  }
}

function sendFiles(files) {
  const sources = [...files].map((file) => ({ file, name: file.name }));
  if (sources.length) send(sources);
}

function sendAddress(url) {
  send([{ url, name: url }]);
}

function work() {
  const next = visit.findLast((picture) => picture.state === "waiting");
  if (!next || running >= AT_ONCE) return;
  running += 1;
  next.state = "sending";
  ask(next).finally(() => {
    running -= 1;
    work();
  });
  work();
}

async function ask(picture) {
  if (picture.file && !picture.sent) {
    picture.sent = await shrunk(picture.file);
    if (picture.state === "gone") return;
    picture.thumb = URL.createObjectURL(picture.sent);
  }
  draw(picture);
  const began = performance.now();
  const { answer, problem } = await request(picture, { top: "all", ...(set.explains && { explain: "raw" }) });
  if (picture.state === "gone") return;
  picture.seconds = (performance.now() - began) / 1000;
  picture.state = answer ? "answered" : "failed";
  Object.assign(picture, { answer, problem });
  if (answer?.explanation) learn(picture, answer.explanation);
  draw(picture);
  announce(picture);
}

function learn(picture, explanation) {
  picture.crop = explanation.picture;
  picture.label = explanation.label;
  picture.heats.set(explanation.label, explanation.heatmap);
}

function forget(picture) {
  picture.state = "gone";
  picture.request?.abort();
  if (picture.thumb) URL.revokeObjectURL(picture.thumb);
  picture.tile.remove();
  if (picture === selected) select(null);
}

/** The picture, no larger than is of use to the model; as it is where that is wanted, or the browser cannot decode it. */
async function shrunk(file) {
  if (!usefulSide || $("originals").checked) return file;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" }); // upright; colours as the service reads them
  } catch {
    return file;
  }
  const scale = Math.min(1, usefulSide / Math.min(bitmap.width, bitmap.height));
  const isTaken = taken.includes(file.type); // others that the browser can read, like AVIF, are drawn anew
  if (scale === 1 && isTaken) {
    bitmap.close();
    return file;
  }
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(bitmap.width * scale);
  canvas.height = Math.round(bitmap.height * scale);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const type = MAY_BE_TRANSPARENT.includes(file.type) || !isTaken ? "image/png" : "image/jpeg";
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, type, QUALITY));
  return blob && (blob.size < file.size || !isTaken) ? blob : file;
}

/* Asking the service */

/** { answer } or { problem: { sentence, id, again } }; never throws. */
function request(picture, options) {
  if (picture.url) return post(picture, "/predict", JSON.stringify({ url: picture.url, ...options }), "application/json");
  if (picture.sent.size > maxBytes) {
    const most = (maxBytes / 2 ** 20).toLocaleString("en-GB", { maximumFractionDigits: 1 });
    const size = (picture.sent.size / 2 ** 20).toLocaleString("en-GB", { maximumFractionDigits: 1 });
    return Promise.resolve({ problem: { sentence: `the file has ${size} MiB; at most ${most} MiB are accepted.` } });
  }
  const form = new FormData();
  form.append("image", picture.sent, picture.name || "photo");
  return post(picture, `/predict?${new URLSearchParams(options)}`, form);
}

function post(picture, address, body, type) {
  return new Promise((resolve) => {
    const request = new XMLHttpRequest(); // fetch() does not tell how much has been sent
    const fail = (sentence) => () => resolve({ problem: { sentence, again: true } });
    picture.request = request;
    request.open("POST", address);
    if (type) request.setRequestHeader("Content-Type", type);
    if ($("key")?.value) request.setRequestHeader("X-API-Key", $("key").value.trim());
    request.timeout = PATIENCE;
    request.upload.addEventListener("progress", (event) => {
      picture.share = event.lengthComputable ? event.loaded / event.total : 0;
      draw(picture);
    });
    request.addEventListener("load", () => resolve(read(request)));
    request.addEventListener("error", fail("The service cannot be reached. Are you online?"));
    request.addEventListener("timeout", fail("There was no answer within a minute."));
    request.addEventListener("abort", fail("It was stopped."));
    request.send(body);
  });
}

function read(request) {
  let answer = null;
  try {
    answer = JSON.parse(request.responseText);
  } catch {
    // a proxy's page, or gunicorn's
  }
  if (request.status === 200 && answer) return { answer };
  const sentence = answer?.error ?? `The service answered with status ${request.status}, and without a word.`;
  return { problem: { sentence, id: answer?.request_id, again: WORTH_ANOTHER_TRY.includes(request.status) || KEY_CODES.includes(answer?.code) } };
}

async function explain(picture, label) {
  picture.label = label;
  if (!picture.heats.get(label)) {
    picture.heats.delete(label);
    draw(picture);
    const { answer, problem } = await request(picture, { explain: "raw", explain_label: label });
    if (picture.state === "gone") return;
    picture.heats.set(label, answer?.explanation.heatmap ?? null); // null: another click tries again
    picture.whyNot = problem?.sentence;
  }
  draw(picture);
  if (picture === selected && picture.label === label) say($("caption").textContent);
}

/* Drawing */

function draw(picture) {
  drawTile(picture);
  if (picture === selected) drawAnswer(picture);
}

function select(picture) {
  if (selected) selected.tile.firstElementChild.removeAttribute("aria-current");
  selected = picture;
  $("answer").hidden = !picture;
  drawCurl(picture);
  if (!picture) return;
  picture.tile.firstElementChild.setAttribute("aria-current", "true");
  $("bars").replaceChildren();
  drawAnswer(picture);
  comeIntoView($("answer"));
}

function addTile(picture) {
  picture.tile = $("tile").content.firstElementChild.cloneNode(true);
  picture.tile.firstElementChild.addEventListener("click", () => {
    select(picture);
    announce(picture);
  });
  picture.tile.querySelector("img").addEventListener("error", (event) => { event.target.hidden = true; });
  drawTile(picture);
  const first = visit[0]?.tile ?? null;
  $("tiles").insertBefore(picture.tile, first);
}

function drawTile(picture) {
  const button = picture.tile.firstElementChild;
  const image = button.querySelector("img");
  const source = picture.thumb ?? picture.crop;
  if (source && image.getAttribute("src") !== source) image.src = source;
  button.classList.toggle("failed", picture.state === "failed");
  button.querySelector(".tile-label").textContent = inShort(picture);
  button.querySelector(".tile-detail").textContent =
    picture.state === "answered" && isSingle(picture) ? percent(best(picture)) : shortName(picture);
  button.querySelector(".filling").style.width = picture.state === "sending" ? `${picture.share * 100}%` : "0";
  button.title = picture.name;
}

function inShort(picture) {
  if (picture.state === "answered") return labels(picture);
  if (picture.state === "failed") return "Did not work";
  if (picture.state === "waiting") return "Waiting";
  return picture.share > 0 && picture.share < 1 ? "Sending" : "Looking";
}

function drawAnswer(picture) {
  const { state, problem, answer } = picture;
  $("answer").classList.toggle("failed", state === "failed");
  $("answer").classList.toggle("busy", state === "waiting" || state === "sending");
  $("file").textContent = picture.name || "Your picture";
  $("label").textContent = heading(picture);
  $("sure").textContent = detail(picture);
  $("progress").hidden = state !== "sending" && state !== "waiting";
  if (picture.share > 0 && picture.share < 1) $("progress").value = picture.share;
  else $("progress").removeAttribute("value");
  $("again").hidden = !problem?.again;
  $("reported").hidden = !problem?.id;
  $("reported").querySelector("code").textContent = problem?.id ?? "";
  drawBars(picture, answer?.predictions ?? []);
  drawSeen(picture);
}

function heading({ state, share, ...picture }) {
  if (state === "answered") return labels(picture);
  if (state === "failed") return "That did not work";
  return share > 0 && share < 1 ? `Sending, ${percent(share)}` : "Looking at it";
}

function detail(picture) {
  if (picture.state === "failed") return picture.problem.sentence;
  if (picture.state !== "answered") return "";
  const time = `answered in ${picture.seconds.toFixed(picture.seconds < 1 ? 2 : 1)} s`;
  return isSingle(picture) ? `${percent(best(picture))}, ${time}` : time;
}

function drawBars(picture, predictions) {
  const some = picture.all ? predictions : predictions.slice(0, SHOWN_AT_FIRST);
  const list = $("bars");
  // those that are there stay, so that a bar that has the focus keeps it
  while (list.children.length > some.length) list.lastElementChild.remove();
  while (list.children.length < some.length) list.append($("bar").content.firstElementChild.cloneNode(true));
  some.forEach(({ label, probability }, index) => {
    const bar = list.children[index].firstElementChild;
    bar.querySelector(".bar-label").textContent = label;
    bar.querySelector(".bar-percent").textContent = percent(probability);
    bar.querySelector(".track span").style.width = `${probability * 100}%`;
    bar.setAttribute("aria-pressed", String(label === picture.label));
    bar.toggleAttribute("aria-busy", false);
    if (label === picture.label && !picture.heats.has(label)) bar.setAttribute("aria-busy", "true");
    bar.onclick = () => explain(picture, label);
    if (!set.explains) asText(bar);
  });
  $("more").hidden = predictions.length <= SHOWN_AT_FIRST;
  $("more").textContent = picture.all ? `The first ${SHOWN_AT_FIRST} only` : `All ${predictions.length} labels`;
  $("more").setAttribute("aria-expanded", String(picture.all));
  $("how").hidden = !set.explains || !predictions.length;
}

/** Where nothing can be shown for a label, its bar is no button. */
function asText(bar) {
  const text = document.createElement("div");
  text.className = bar.className;
  text.append(...bar.childNodes);
  bar.replaceWith(text);
}

function drawSeen(picture) {
  const image = $("crop");
  const source = picture.crop ?? picture.thumb;
  const seen = $("answer").querySelector(".seen");
  seen.hidden = !source || picture.broken;
  if (source && image.getAttribute("src") !== source) image.src = source;
  if (!source) image.removeAttribute("src");
  image.alt = picture.crop ? "The photo as the model saw it, cut and resized" : "The photo that was sent";
  const heat = picture.heats.get(picture.label);
  $("heat").hidden = $("tools").hidden = !heat;
  const told = heat ? ["Where it looked for ", bold(picture.label), `: ${place(heat)}`] : picture.crop ? [waiting(picture)] : [];
  $("caption").replaceChildren(...told);
  if (!heat) return;
  $("heat").setAttribute("aria-label", `Heatmap: for ${picture.label} the model looked ${place(heat)}`);
  image.decode().then(() => picture === selected && drawHeat($("heat"), heat, image), () => {});
}

function waiting(picture) {
  return picture.heats.has(picture.label) ? picture.whyNot : "Finding out where it looked";
}

function bold(text) {
  const element = document.createElement("b");
  element.textContent = text;
  return element;
}

/** The heat, enlarged to the picture's shape, in the colours of Turbo. */
function drawHeat(canvas, rows, { naturalWidth, naturalHeight }) {
  const scale = Math.max(1, LEAST_SIDE / Math.min(naturalWidth, naturalHeight));
  const width = (canvas.width = Math.round(naturalWidth * scale));
  const height = (canvas.height = Math.round(naturalHeight * scale));
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const across = weights(width, rows[0].length);
  const wide = rows.map((row) => across.map((shares) => shares.reduce((sum, [cell, share]) => sum + row[cell] * share, 0)));
  weights(height, rows.length).forEach((shares, y) => {
    for (let x = 0; x < width; x += 1) {
      let heat = 0;
      for (const [cell, share] of shares) heat += wide[cell][x] * share;
      const at = 4 * (y * width + x);
      pixels.data.set(COLOURS[Math.round(255 * Math.min(1, Math.max(0, heat)))], at); // its type clamps
      pixels.data[at + 3] = 255;
    }
  });
  context.putImageData(pixels, 0, 0);
}

/**
 * For each pixel, the four cells around it with their shares: Catmull and Rom's cubic, which keeps the cells' values.
 * Between straight lines, as in the service's overlay, the eye sees the cells of a grid of 4 by 4.
 */
function weights(pixels, cells) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const place = ((pixel + 0.5) * cells) / pixels - 0.5;
    const first = Math.floor(place);
    const t = place - first;
    const shares = [-t + 2 * t ** 2 - t ** 3, 2 - 5 * t ** 2 + 3 * t ** 3, t + 4 * t ** 2 - 3 * t ** 3, t ** 3 - t ** 2];
    return shares.map((share, index) => [Math.min(cells - 1, Math.max(0, first - 1 + index)), share / 2]);
  });
}

/** Where the heat lies, in words, as page.py says it. */
function place(rows) {
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const weights = rows.map((row) => row.map((heat) => heat ** 3));
  const total = sum(weights.flat());
  if (!(total > 0)) return "nowhere in particular";
  const named = (shares, [first, last]) => {
    const centre = sum(shares.map((share, index) => share * (index + 0.5))) / total / shares.length;
    return centre < MIDDLE[0] ? first : centre > MIDDLE[1] ? last : "";
  };
  const down = named(weights.map(sum), ["top", "bottom"]);
  const across = named(weights[0].map((_, column) => sum(weights.map((row) => row[column]))), ["left", "right"]);
  return down || across ? `most at the ${[down, across].filter(Boolean).join(" ")}` : "most in the middle";
}

/* Words */

function labels({ answer }) {
  return [answer.success].flat().join(", ") || "None of its labels";
}

function isSingle({ answer }) {
  return typeof answer.success === "string";
}

function best({ answer }) {
  return answer.predictions.find(({ label }) => label === answer.success).probability;
}

function percent(probability) {
  if (probability > 0 && probability < 0.001) return "below 0.1%";
  return `${(probability * 100).toFixed(probability > 0 && probability < 0.0995 ? 1 : 0)}%`;
}

function shortName({ name }) {
  return name.length > 24 ? `${name.slice(0, 14)}…${name.slice(-8)}` : name;
}

function say(sentence) {
  $("status").textContent = sentence;
}

function announce(picture) {
  const batch = picture.batch ?? [picture];
  if (picture === selected) {
    if (picture.state === "failed") say(`That did not work: ${picture.problem.sentence}`);
    else if (picture.state === "answered") say(`${labels(picture)}, ${detail(picture)}. ${$("caption").textContent}`);
  } else if (batch.length === 1) {
    say(`${picture.name}: ${inShort(picture)}.`);
  } else if (batch.every(({ state }) => state === "answered" || state === "failed")) {
    say(`${batch.length} pictures: ${batch.map(inShort).join("; ")}.`);
  }
}

/* The same request with curl */

function drawCurl(picture) {
  const curl = $("key") ? 'curl -H "X-API-Key: $KEY"' : "curl"; // the key itself is not for show
  $("line").textContent = picture?.url
    ? `${curl} --json ${quoted(JSON.stringify({ url: picture.url, top: "all" }))} ${location.origin}/predict`
    : `${curl} -F ${curlFile(picture?.name || "photo.jpg")} "${location.origin}/predict?top=all"`;
}

/** curl takes a name in double quotes apart from what may follow it; the shell takes all as it stands; - is no file. */
function curlFile(name) {
  const plain = name.replace(/[\p{C}\u2028\u2029]/gu, "");
  return /^\w[\w.-]*$/.test(plain) ? `image=@${plain}` : quoted(`image=@"./${plain.replace(/["\\]/g, "\\$&")}"`);
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("line").textContent);
  } catch { // without https there is no clipboard
    getSelection().selectAllChildren($("line"));
    document.execCommand("copy");
  }
  $("copy").textContent = "Copied";
  say("Copied.");
  setTimeout(() => { $("copy").textContent = "Copy"; }, 2000);
}

/* What people do */

function comeIntoView(element) {
  const { top, bottom } = element.getBoundingClientRect();
  if (top >= 0 && bottom <= innerHeight) return;
  const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
  element.scrollIntoView({ behavior, block: "start" });
}

function addressIn(data) {
  const text = data.getData("text/uri-list") || data.getData("text/plain");
  return set.fetches && /^https?:\/\/\S+$/.test(text.trim()) ? text.trim() : null;
}

function take(event, data) {
  const address = data.files.length ? null : addressIn(data);
  if (!data.files.length && !address) return;
  event.preventDefault();
  if (address) sendAddress(address);
  else sendFiles(data.files);
}

function listenToDrops() {
  const isMeant = ({ dataTransfer }) =>
    dataTransfer && (dataTransfer.types.includes("Files") || (set.fetches && dataTransfer.types.includes("text/uri-list")));
  const show = (is) => document.body.classList.toggle("dropping", is);
  for (const kind of ["dragenter", "dragover"]) {
    addEventListener(kind, (event) => {
      if (!isMeant(event)) return;
      event.preventDefault();
      show(true);
    });
  }
  addEventListener("dragleave", (event) => event.relatedTarget ?? show(false));
  addEventListener("drop", (event) => {
    show(false);
    if (isMeant(event)) event.preventDefault(); // else the browser leaves for what was dropped
    take(event, event.dataTransfer);
  });
}

function listen() {
  for (const input of [$("image"), $("camera")]) {
    input.addEventListener("change", () => {
      sendFiles(input.files);
      input.value = ""; // so that the same file can be chosen again
    });
  }
  document.querySelectorAll(".example").forEach((button, index) => {
    button.addEventListener("click", async (event) => {
      event.preventDefault();
      const name = `example-${index + 1}`;
      try {
        const answer = await fetch(`/examples/${button.value}`);
        if (!answer.ok) throw new Error(answer.status);
        const file = await answer.blob();
        send([{ file, name: `${name}.${file.type.replace("image/", "").replace("jpeg", "jpg")}` }]);
      } catch {
        send([{ name, problem: { sentence: "The example cannot be had at the moment." } }]);
      }
    });
  });
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const address = $("url")?.value.trim();
    if (address) sendAddress(address);
  });
  addEventListener("paste", (event) => {
    if (!["url", "key"].includes(event.target.id) || event.clipboardData.files.length) take(event, event.clipboardData);
  });
  listenToDrops();
  $("opacity").addEventListener("input", ({ target }) => {
    $("heat").style.opacity = target.value / 100;
    target.setAttribute("aria-valuetext", `${target.value}%`);
  });
  $("more").addEventListener("click", () => {
    selected.all = !selected.all;
    draw(selected);
  });
  $("again").addEventListener("click", () => {
    selected.state = "waiting";
    selected.problem = null;
    selected.share = 0;
    draw(selected);
    $("label").focus(); // the button that had it is gone
    work();
  });
  $("clear").addEventListener("click", () => {
    visit.forEach(forget);
    visit = [];
    $("visit").hidden = true;
    document.body.classList.remove("answering");
    $("image").focus();
    say("Cleared.");
  });
  $("crop").addEventListener("error", () => {
    if (selected) selected.broken = true; // the browser cannot show it, like HEIC
    $("answer").querySelector(".seen").hidden = true;
  });
  $("copy").addEventListener("click", copy);
}

/** The key stays until the tab is closed, in this tab only. */
function rememberKey() {
  const key = $("key");
  if (!key) return;
  try {
    key.value = sessionStorage.getItem("key") ?? "";
    key.addEventListener("input", () => sessionStorage.setItem("key", key.value));
  } catch {
    // a browser may forbid it; then the key is in the field alone
  }
}

document.documentElement.classList.add("js");
listen();
rememberKey();
drawCurl(null);
