// The review page: draws what `round` says, sends every click to `act`, and shows what came back. Words from prompts are
// only ever set as text.
"use strict";

const $ = (id) => document.getElementById(id);
let round = null; // what the server said of the round
let choices = null; // and what was chosen so far
let at = 0; // the prompt on the page; round.groups.length is the end
let busy = Promise.resolve();

async function ask(path, message) {
  const options = message ? { method: "POST", body: JSON.stringify(message) } : {};
  const answer = await fetch(path, options);
  const body = answer.headers.get("Content-Type") === "application/json" ? await answer.json() : {};
  return { status: answer.status, body };
}

function trouble(words) {
  $("trouble").hidden = !words;
  $("trouble").textContent = words || "";
}

function say(words) {
  $("said").textContent = words;
}

const LOST = "No answer: the run, or the review, was stopped. What you chose is kept. To go on, start the same command " +
  "again and open the address that it prints.";

// Shows the round that is open now; where none is, the run may be drawing the next one, so the page looks again later.
async function load() {
  try {
    const { status, body } = await ask("round");
    if (status !== 200) return trouble(body.error || LOST);
    trouble("");
    round = body.round === null ? null : body;
    choices = round && round.choices;
    $("where").textContent = body.run + (round ? `, round ${round.round} of ${round.rounds}` : "");
  } catch {
    return trouble(LOST);
  }
  if (round && !choices.finished) return show(firstOpen(0));
  end();
  wait();
}

function wait() {
  if (round && !round.waits) return;
  setTimeout(async () => {
    const answer = await fetch("round").catch(() => null);
    if (answer?.ok) return load();
    tell("You can close this page", "There is no answer any more: the run has ended or was stopped. What you chose is kept.");
  }, 1500);
}

// Clicks are done one after the other, in the order in which they were made. message() is asked for when its turn comes;
// null sends nothing.
function act(message, then) {
  busy = busy.then(async () => {
    const meant = message();
    if (!meant) return;
    try {
      const { status, body } = await ask("act", { ...meant, round: round.round, revision: choices.revision });
      if (status === 409) {
        await load();
        return trouble(`${body.error}: this is how it stands now.`);
      }
      if (status !== 200) return trouble(body.error || LOST);
      trouble("");
      const before = choices;
      choices = body;
      then(before, meant);
    } catch {
      trouble(LOST);
    }
  });
}

function firstOpen(from) {
  const count = round.groups.length;
  for (let step = 0; step < count; step++) {
    const p = (from + step) % count;
    if (!choices.groups[p].done) return p;
  }
  return count;
}

const done = () => choices.groups.filter((group) => group.done).length;

function show(place) {
  at = place;
  if (at >= round.groups.length) return end();
  const { prompt, pictures } = round.groups[at];
  $("choose").hidden = $("bar").hidden = false;
  $("end").hidden = true;
  $("next").hidden = $("hint").hidden = false;
  $("place").textContent = `Prompt ${at + 1} of ${round.groups.length}`;
  $("prompt").textContent = prompt;
  const many = round.best === 1 ? "Click the picture that you like best" : `Click the best pictures, up to ${round.best}`;
  $("task").replaceChildren(strong(many), ". If you like, reject what is bad. Nothing good? Go on without choosing.");
  $("pictures").replaceChildren(...Array.from({ length: pictures }, (_, s) => card(s, pictures)));
  mark();
  scrollTo(0, 0);
  $("prompt").focus({ preventScroll: true });
}

function strong(words) {
  const element = document.createElement("strong");
  element.textContent = words;
  return element;
}

function button(kind, listener) {
  const element = document.createElement("button");
  element.type = "button";
  element.className = kind;
  element.addEventListener("click", listener);
  return element;
}

function span(kind, words) {
  const element = document.createElement("span");
  element.className = kind;
  element.textContent = words;
  return element;
}

function card(s, pictures) {
  const image = new Image();
  image.loading = "lazy";
  image.style.aspectRatio = round.shape;
  image.alt = `Picture ${s + 1} of ${pictures}`;
  image.addEventListener("load", () => image.classList.toggle("hard", image.naturalWidth <= 128));
  image.src = `picture/${round.round}/${at}/${s}`;
  const number = span("number", s + 1);
  number.setAttribute("aria-hidden", "true");
  const group = at;
  const pick = button("pick", () => toggle(s, "choose", group));
  pick.append(image, number, span("verdict", ""));
  const reject = button("reject", () => toggle(s, "reject", group));
  reject.append(span("word", ""), span("visually-hidden", ` picture ${s + 1}`));
  const item = document.createElement("li");
  item.append(pick, reject);
  return item;
}

// Everything on the page that follows from the choices.
function mark() {
  const count = round.groups.length;
  $("progress").max = count;
  $("progress").value = done();
  $("count").textContent = `${done()} of ${count} done`;
  $("undo").setAttribute("aria-disabled", choices.revision === 0);
  $("back").setAttribute("aria-disabled", at === 0);
  if (at >= count) return;
  const { chosen, rejected } = choices.groups[at];
  [...$("pictures").children].forEach((item, s) => {
    const [good, bad] = [chosen.includes(s), rejected.includes(s)];
    item.className = good ? "chosen" : bad ? "rejected" : "";
    item.querySelector(".verdict").textContent = good ? (round.best === 1 ? "✓ best" : "✓ chosen") : "";
    item.querySelector(".pick").setAttribute("aria-pressed", good);
    item.querySelector(".word").textContent = bad ? "✕ Rejected" : "Reject";
  });
  $("next").textContent = chosen.length ? "Next" : "None of these, next";
}

// A click belongs to the prompt that it was made on, a key to the one on the page when its turn comes.
function toggle(s, verb, clicked) {
  act(() => {
    const group = clicked ?? at;
    if (!(s < round.groups[group]?.pictures)) return null;
    const marked = choices.groups[group][verb === "choose" ? "chosen" : "rejected"];
    return { do: marked.includes(s) ? "clear" : verb, group, place: s };
  }, (_, { group }) => {
    mark();
    const { chosen, rejected } = choices.groups[group];
    say(`Picture ${s + 1} ${chosen.includes(s) ? "chosen" : rejected.includes(s) ? "rejected" : "neither chosen nor rejected"}`);
  });
}

function next() {
  act(() => at < round.groups.length ? { do: "done", group: at } : null, (_, { group }) => {
    say(`${done()} of ${round.groups.length} prompts done`);
    show(done() < round.groups.length && group + 1 === round.groups.length ? firstOpen(0) : group + 1);
  });
}

function back() {
  busy = busy.then(() => at > 0 && show(at - 1));
}

function undo() {
  act(() => choices.revision ? { do: "undo" } : null, (before) => {
    if (at === before.last) mark();
    else show(before.last);
    say("Taken back");
  });
}

// After the last prompt, and where there is nothing to choose.
function end() {
  $("choose").hidden = true;
  $("end").hidden = false;
  const open = round && !choices.finished;
  $("bar").hidden = !open;
  $("next").hidden = $("hint").hidden = true;
  if (!round) {
    tell("The run goes on", "It learns from what you chose and draws the pictures of the next round. They will appear " +
      "here by themselves. After the last round there is nothing more to do: you can close this page.");
  } else if (choices.finished) {
    tell(`Round ${round.round} is chosen`, round.waits
      ? "The run goes on with your choices. If it was stopped, start it again with the same command."
      : "Your choices are kept. The command that the review has printed tunes the round again.", "Look again and change");
  } else {
    const some = choices.groups.filter((group) => group.chosen.length).length;
    const none = round.groups.length - some;
    const later = round.later ? ` The ${round.later === 1 ? "round" : `${round.later} rounds`} after it will be made anew; what is there now is kept.` : "";
    tell("Every prompt is done", !some
      ? "You chose no picture at all, so the round would teach nothing. Go back and choose at least one."
      : `${some} of ${round.groups.length} prompts have a best picture` + (none ? `; ${none} ${none === 1 ? "has" : "have"} none, which teaches nothing.` : ".") +
        (round.waits ? "" : " This round will be tuned again on them." + later), some ? (round.waits ? "Go on with the run" : "These win") : "");
  }
  if (round) mark();
  $("end-title").focus({ preventScroll: true });
}

function tell(title, words, action) {
  $("end-title").textContent = title;
  $("end-words").textContent = words;
  $("finish").hidden = !action;
  $("finish").textContent = action || "";
}

function move(key) {
  const picks = [...document.querySelectorAll(".pick")];
  const from = picks.indexOf(document.activeElement?.closest("li")?.querySelector(".pick"));
  const columns = picks.filter((pick) => pick.getBoundingClientRect().top === picks[0].getBoundingClientRect().top).length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[key];
  const to = from < 0 ? 0 : from + step;
  if (picks[to]) picks[to].focus();
}

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.altKey || event.ctrlKey || event.metaKey || !$("shortcuts").checked || $("bar").hidden) return;
  const target = event.target;
  const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
  const choosing = !$("choose").hidden;
  const here = [...$("pictures").children].indexOf(target.closest("li"));
  let handled = true;
  if (event.key.toLowerCase() === "u") undo();
  else if (event.key.toLowerCase() === "b") back();
  else if (!choosing) handled = false;
  else if (digit) toggle(digit[1] - 1, event.shiftKey ? "reject" : "choose");
  else if (event.key.toLowerCase() === "n" || (event.key === "Enter" && !target.closest("button, summary, input"))) next();
  else if (event.key.toLowerCase() === "x" && here >= 0) toggle(here, "reject");
  else if (event.key.startsWith("Arrow") && !target.closest("input")) move(event.key);
  else handled = false;
  if (handled) event.preventDefault();
});

$("next").addEventListener("click", next);
$("back").addEventListener("click", back);
$("undo").addEventListener("click", undo);
$("finish").addEventListener("click", () => {
  if (choices.finished) return show(0);
  act(() => ({ do: "finish" }), () => {
    end();
    wait();
  });
});
load();
