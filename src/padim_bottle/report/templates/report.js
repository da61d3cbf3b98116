
"use strict";
// The threshold slider and the gallery's filters. An image is called anomalous when score >= threshold.

const { images, types, start, logarithmic } = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const slider = element("slider");
const cards = [...element("gallery").children]; // in the order of the images
const scores = images.map((image) => image.score).sort((a, b) => a - b);
const buttons = [...document.querySelectorAll("button[data-threshold]")];

let threshold = start; // exactly; the slider's own place is rounded

// Defects score many times higher than good images: the slider then moves on a logarithmic scale.
const toPlace = logarithmic ? Math.log : (score) => score;
const fromPlace = logarithmic ? Math.exp : (place) => place;

const spell = (value) => (Number.isNaN(value) ? "–" : value.toFixed(3)); // 0 / 0: undefined

function verdictOf(image) {
  const called = image.score >= threshold;
  if (image.label) return called ? "found" : "missed";
  return called ? "false alarm" : "passed";
}

function recount() {
  const number = { found: 0, missed: 0, "false alarm": 0, passed: 0 };
  const perType = new Map(types.map((name) => [name, [0, 0]]));
  images.forEach((image, i) => {
    const verdict = verdictOf(image);
    number[verdict] += 1;
    const type = perType.get(image.type);
    type[0] += verdict === "found";
    type[1] += 1;
    cards[i].querySelector(".verdict").textContent = verdict;
    cards[i].classList.toggle("error", verdict === "missed" || verdict === "false alarm");
  });
  const { found, missed, passed, "false alarm": alarms } = number;
  element("true_positive").textContent = found;
  element("false_negative").textContent = missed;
  element("false_positive").textContent = alarms;
  element("true_negative").textContent = passed;
  element("precision").textContent = spell(found / (found + alarms));
  element("recall").textContent = spell(found / (found + missed));
  element("f1").textContent = spell(found + missed ? (2 * found) / (2 * found + alarms + missed) : NaN);
  element("false_alarm_rate").textContent = spell(alarms / (alarms + passed));
  for (const cell of document.querySelectorAll("[data-type]")) {
    cell.textContent = perType.get(cell.dataset.type).join(" of ");
  }
  element("value").value = threshold.toFixed(3);
  element("value").dataset.exactly = threshold;
  slider.setAttribute("aria-valuetext", threshold.toFixed(3));
  element("counts").textContent =
    `${found} of ${found + missed} defects found, ${alarms} false alarm${alarms === 1 ? "" : "s"}` +
    ` on ${alarms + passed} good images`;
  const place = `${(100 * (toPlace(threshold) - slider.min)) / (slider.max - slider.min)}%`;
  element("current").setAttribute("x1", place);
  element("current").setAttribute("x2", place);
  for (const button of buttons) {
    button.setAttribute("aria-pressed", Number(button.dataset.threshold) === threshold);
  }
  filter();
}

function filter() {
  const type = Number(new FormData(element("filters")).get("type")); // 0: all of them
  const verdict = element("verdict").value;
  let shown = 0;
  cards.forEach((card, i) => {
    const matches = type === 0 || images[i].type === types[type - 1];
    card.hidden = !(matches && (verdict === "" || verdictOf(images[i]) === verdict));
    shown += !card.hidden;
  });
  element("shown").textContent = `${shown} of ${images.length} images`;
}

function moveTo(score) {
  threshold = score;
  slider.value = toPlace(score);
  recount();
}

slider.addEventListener("input", () => {
  threshold = fromPlace(slider.valueAsNumber);
  recount();
});
for (const button of buttons) {
  button.addEventListener("click", () => moveTo(Number(button.dataset.threshold)));
}
element("more").addEventListener("click", () => {
  const next = scores.filter((score) => score < threshold).at(-1);
  if (next !== undefined) moveTo(next);
});
element("fewer").addEventListener("click", () => {
  const lowest = scores.find((score) => score >= threshold);
  moveTo(scores.find((score) => score > lowest) ?? fromPlace(Number(slider.max)));
});
element("filters").addEventListener("change", filter);
element("filters").addEventListener("submit", (event) => event.preventDefault());
element("order").addEventListener("change", () => {
  element("gallery").append(...(element("order").value === "down" ? cards : [...cards].reverse()));
});
element("large")?.addEventListener("change", () => {
  element("gallery").classList.toggle("large", element("large").checked);
});
moveTo(threshold);
