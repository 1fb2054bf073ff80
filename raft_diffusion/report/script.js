"use strict";

// Before and after lie on each other, and a slider or the pointer moves the edge between them. Without this script they
// stand side by side.
const pairs = document.querySelector(".pairs");
const slider = document.querySelector("#split");

function slide() {
  pairs.style.setProperty("--split", slider.value + "%");
  slider.setAttribute("aria-valuetext", `${slider.value} % before, ${100 - slider.value} % after`);
}

if (pairs) {
  pairs.classList.add("slides");
  slider.addEventListener("input", slide);
  slide();
  for (const frame of pairs.querySelectorAll(".frame")) {
    frame.addEventListener("pointermove", (event) => {
      const box = frame.getBoundingClientRect();
      const share = (event.clientX - box.left) / box.width;
      frame.style.setProperty("--split", 100 * Math.min(1, Math.max(0, share)) + "%");
    });
    frame.addEventListener("pointerleave", () => frame.style.removeProperty("--split"));
  }
}

// While a run goes on, the page loads itself again, and a reader finds it as it was left.
const folds = [...document.querySelectorAll("details[id]")];
const views = [...document.querySelectorAll("input[name=view]")];
const places = [...document.querySelectorAll("section[id], details[id]")];

// The last place that begins in the upper part of the window: what comes in above it must not move what is read.
function anchor() {
  const tops = places.filter((place) => place.getClientRects().length).map((place) => [place.id, topOf(place)]);
  return tops.filter(([, top]) => top < innerHeight / 3).at(-1);
}

function topOf(place) {
  return place.getBoundingClientRect().top;
}

function remember() {
  const open = Object.fromEntries(folds.map((fold) => [fold.id, fold.open]));
  const view = views.findIndex((choice) => choice.checked);
  const focus = document.activeElement ? document.activeElement.id : "";
  history.replaceState({ anchor: anchor(), scroll: scrollY, open, view, split: slider?.value, focus }, "");
}

function recall(state) {
  for (const fold of folds) fold.open = state.open[fold.id] ?? fold.open;
  if (views[state.view]) views[state.view].checked = true;
  if (slider && state.split !== undefined) {
    slider.value = state.split;
    slide();
  }
  document.getElementById(state.focus)?.focus({ preventScroll: true });
  const place = state.anchor && document.getElementById(state.anchor[0]);
  const top = place ? scrollY + topOf(place) - state.anchor[1] : state.scroll;
  scrollTo({ top, behavior: "instant" });
}

const recalled = Boolean(history.state?.open);
if (recalled) {
  recall(history.state);
  history.replaceState(null, "");
}
const seconds = Number(document.body.dataset.refresh);
// The browser's own memory knows pixels alone, and would move the page away from the place just found again.
history.scrollRestoration = seconds || recalled ? "manual" : "auto";
if (seconds) {
  setTimeout(() => {
    remember();
    location.reload();
  }, 1000 * seconds);
}
