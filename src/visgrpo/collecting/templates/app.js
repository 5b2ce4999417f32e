"use strict";

// Everything that comes from the server is put on the page as text, never as HTML.
const $ = (id) => document.getElementById(id);
const QUESTIONS = {
  click: "Which label fits best?",
  rank: "Name the labels from the best to the worst",
  grade: "How well does each label fit?",
};
const KEYS = {
  click: "Keys: 1–9 choose, 0 or N none of these, S skip, U or Backspace undo.",
  rank: "Keys: 1–9 name the next best, Enter saves, Esc clears, 0 or N none of these, S skip, U or Backspace undo. Labels that you leave out count as worse than all you named.",
  grade: "Keys: 1 (wrong) to 5 (fits) grade the marked label, ↑ ↓ move, Enter saves, Esc clears, S skip, U or Backspace undo.",
};
const HIGHEST_GRADE = 5;
// The answer that is under way is kept here too: a reload or a crash of the browser loses none.
const UNSAVED = "visgrpo-unsaved";

let ask = "click";
let question = ""; // in the words of whoever asks; QUESTIONS[ask] where there are none
let offer = null; // {key, labels}
let picks = []; // rank: places in the order they were named. grade: the grade of each place, or null
let marked = 0; // grade: the place that a key grades
let busy = true; // an answer is under way, or the image is not there yet
let again = null; // what "Try again" does

// ---- talking to the server -----------------------------------------------------------------

class Trouble extends Error {
  constructor(message, status, content) {
    super(message);
    this.status = status; // 0 where no answer came
    this.content = content;
  }
}

async function call(path, body) {
  const request = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  let response, content;
  try {
    response = await fetch(path, request);
  } catch {
    throw new Trouble("the server cannot be reached", 0, {});
  }
  try {
    content = await response.json();
  } catch {
    throw new Trouble(`the server answered ${response.status} without a reason`, response.status, {});
  }
  if (!response.ok) throw new Trouble(content.error, response.status, content);
  return content;
}

// Do something with the server; a person sees whatever went wrong and how to go on.
async function attempt(what, work) {
  busy = true;
  showTrouble(null);
  draw();
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    if (error.content.needs === "name") return showName();
    showTrouble(`${what}: ${error.message}`, () => attempt(what, work));
  }
}

async function next() {
  const answer = await call("/api/next");
  ask = answer.ask;
  question = answer.question;
  $("figure").classList.remove("zoomed");
  offer = answer.offer;
  picks = offer && ask === "grade" ? offer.labels.map(() => null) : [];
  marked = 0;
  showProgress(answer);
  show(offer ? "judge" : "done");
  if (offer) await showImage(`/image/${offer.key}`);
  busy = false;
  draw();
}

const showNext = () => attempt("The next image did not come", next);

function save(answer) {
  if (busy || !offer) return;
  localStorage.setItem(UNSAVED, JSON.stringify({ offer: offer.key, answer }));
  showNotice(null);
  saveUnsaved();
}

function saveUnsaved() {
  return attempt("Not saved yet", async () => {
    const unsaved = JSON.parse(localStorage.getItem(UNSAVED));
    try {
      showProgress(await call("/api/judge", unsaved));
    } catch (error) {
      if (!(error instanceof Trouble) || ![404, 409, 422].includes(error.status)) throw error;
      const stored = JSON.stringify(error.content.answer);
      if (stored !== JSON.stringify(unsaved.answer)) {
        showNotice(`Your last answer was not saved: ${error.message}`);
      } // else it had been saved, and only the reply was lost
    }
    localStorage.removeItem(UNSAVED);
    showNext(); // with a trouble of its own: this answer is safe
  });
}

// Who cannot tell passes an image over: that says nothing of its labels, unlike "none of these".
function skip() {
  if (busy || !offer) return;
  showNotice(null);
  attempt("Not skipped", async () => {
    await call("/api/skip", { offer: offer.key });
    await next();
  });
}

function undo() {
  if (busy) return;
  if (ask === "rank" && picks.length) {
    picks.pop();
    draw();
    return;
  }
  showNotice(null);
  attempt("Not undone", async () => {
    try {
      showProgress(await call("/api/undo", {}));
    } catch (error) {
      if (!(error instanceof Trouble) || error.status !== 409) throw error;
      showNotice(error.message);
      busy = false;
      draw();
      return;
    }
    await next();
  });
}

// ---- showing -------------------------------------------------------------------------------

function show(id) {
  for (const part of ["judge", "done", "name"]) $(part).hidden = part !== id;
}

function showTrouble(text, retry) {
  again = text ? retry : null;
  $("trouble").hidden = !text;
  $("trouble-text").textContent = text || "";
}

function showNotice(text) {
  $("notice").hidden = !text;
  $("notice").textContent = text || "";
}

function showName() {
  show("name");
  $("name-field").value = $("person").textContent;
  $("name-field").focus();
}

async function showImage(address) {
  const image = $("image");
  image.classList.add("waiting");
  image.src = address;
  try {
    await image.decode();
  } catch {
    throw new Trouble("its picture cannot be shown", 0, {});
  }
  image.classList.remove("waiting");
}

const percent = (share) => `${Math.round(100 * share)} %`;

function showProgress({ person, progress, learning }) {
  $("person").textContent = person;
  $("person").hidden = false;
  $("bar").max = Math.max(1, progress.images);
  $("bar").value = progress.judged_images;
  const people = `${progress.people} ${progress.people === 1 ? "person" : "people"}`;
  const skipped = progress.skipped ? ` · ${progress.skipped} cannot be shown` : "";
  $("progress").textContent =
    `${progress.judged_images} of ${progress.images} images · ${people} · ${progress.own} by you${skipped}`;
  // Folded until it is asked for: who reads it while judging may judge by it.
  $("agreement").textContent = agreementText(progress, learning);
  $("model").hidden = !$("agreement").textContent;
  $("past").hidden = !progress.own;
  for (const id of ["past", "model"]) unfold(id);
  $("learning").hidden = !learning || (learning.state === "idle" && !learning.rounds);
  $("learning").textContent = learning ? learningText(learning) : "";
  if (learning && learning.state === "learning") refreshSoon();
}

function agreementText(progress, learning) {
  if (progress.agreement === null) return "";
  const number = (mean) => (ask === "grade" ? mean.toFixed(1) : percent(mean));
  const what = {
    click: "The model's first choice was yours",
    rank: "The model's first choice was first",
    grade: "Mean grade of the model's first choice",
  }[ask];
  const since = learning && learning.rounds && progress.agreement_now !== null
    ? ` (since it learned: ${number(progress.agreement_now)})` : "";
  return `${what}: ${number(progress.agreement)}${since}`;
}

// What is folded is fetched when it is opened, and again after each judgement.
async function unfold(id) {
  if ($(id).hidden || !$(id).open) return;
  try {
    if (id === "past") $("past-list").replaceChildren(...(await call("/api/last")).map(pastRow));
    else $("compared").textContent = comparedText(await call("/api/agreement"));
  } catch (error) {
    if (!(error instanceof Trouble)) throw error; // said when an answer cannot be saved
  }
}

function pastRow({ key, labels, answer }) {
  const image = element("img", "");
  image.src = `/image/${key}`;
  image.alt = "";
  const said = ask === "grade" ? labels.map((label, place) => `${label} ${answer[place]}`) : answer;
  const row = element("li", "");
  row.append(image, element("span", "", said.join(ask === "rank" ? " > " : ", ") || "none of these"));
  return row;
}

function comparedText({ pairs, people, verdict }) {
  const said = [];
  if (pairs) said.push(`People agree with each other in ${percent(people)} of ${pairs} comparable pairs.`);
  if (verdict) said.push(verdict);
  return said.length ? `. ${said.join(" ")}` : "";
}

function learningText({ state, rounds, detail }) {
  const learned = rounds ? `The model has learned ${rounds} time${rounds === 1 ? "" : "s"}. ` : "";
  if (state === "learning") return `${learned}It is learning now; go on.`;
  if (state === "failed") return `${learned}Learning failed: ${detail}`;
  return learned;
}

let timer = 0;
function refreshSoon() {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    try {
      showProgress(await call("/api/progress"));
    } catch (error) {
      // What is wrong is said when an answer cannot be saved: until then nothing is lost.
      if (!(error instanceof Trouble)) throw error;
    }
  }, 3000);
}

function element(kind, className, text) {
  const made = document.createElement(kind);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function draw() {
  if (!offer) return;
  $("question").textContent = question || QUESTIONS[ask];
  $("keys").textContent = KEYS[ask];
  $("labels").replaceChildren(...offer.labels.map(ask === "grade" ? gradeRow : labelButton));
  $("none").hidden = ask === "grade";
  $("submit").hidden = $("clear").hidden = ask === "click";
  $("submit").disabled = busy || !complete();
  $("clear").disabled = busy || picks.every((pick) => pick === null);
  for (const id of ["none", "skip", "undo"]) $(id).disabled = busy;
}

function labelButton(label, place) {
  const button = element("button", "label");
  button.type = "button";
  button.disabled = busy;
  const rank = picks.indexOf(place) + 1;
  button.classList.toggle("chosen", rank > 0);
  button.append(element("kbd", "", String(place + 1)), element("span", "text", label));
  if (rank) button.append(element("span", "place", `${rank}.`));
  button.addEventListener("click", () => choose(place));
  return button;
}

function gradeRow(label, place) {
  const row = element("div", "label");
  row.classList.toggle("chosen", place === marked);
  const grades = element("div", "grades");
  grades.setAttribute("role", "group");
  grades.setAttribute("aria-label", label);
  for (let grade = 1; grade <= HIGHEST_GRADE; grade += 1) {
    const button = element("button", picks[place] === grade ? "chosen" : "", String(grade));
    button.type = "button";
    button.disabled = busy;
    button.setAttribute("aria-pressed", String(picks[place] === grade));
    button.addEventListener("click", () => giveGrade(place, grade));
    grades.append(button);
  }
  row.append(element("span", "text", label), grades);
  return row;
}

// ---- answering -----------------------------------------------------------------------------

function choose(place) {
  if (busy || place >= offer.labels.length) return;
  if (ask === "click") return save([offer.labels[place]]);
  picks = picks.includes(place) ? picks.filter((other) => other !== place) : [...picks, place];
  draw();
}

function giveGrade(place, grade) {
  if (busy) return;
  picks[place] = grade;
  marked = Math.min(place + 1, picks.length - 1);
  draw();
}

function complete() {
  return ask === "grade" ? !picks.includes(null) : picks.length > 0;
}

function submit() {
  if (ask === "click" || !complete()) return;
  save(ask === "grade" ? picks : picks.map((place) => offer.labels[place]));
}

function clear() {
  if (busy) return;
  picks = ask === "grade" ? picks.map(() => null) : [];
  marked = 0;
  draw();
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || !$("name").hidden) return;
  const key = event.key.toLowerCase();
  const onButton = document.activeElement instanceof HTMLButtonElement;
  if (key === "enter" && onButton) return; // the button's own
  if (key === "enter" && again) return again();
  if (key === "u" || key === "backspace") undo();
  else if (!offer) return;
  else if (key === "s") skip();
  else if (key === "enter") submit();
  else if (key === "escape") clear();
  else if (ask === "grade" && key === "arrowdown") marked = Math.min(marked + 1, picks.length - 1);
  else if (ask === "grade" && key === "arrowup") marked = Math.max(marked - 1, 0);
  else if (ask === "grade" && /^[1-5]$/.test(key)) giveGrade(marked, Number(key));
  else if (ask !== "grade" && (key === "0" || key === "n")) save([]);
  else if (ask !== "grade" && /^[1-9]$/.test(key)) choose(Number(key) - 1);
  else return;
  event.preventDefault();
  draw();
}

function begin() {
  return localStorage.getItem(UNSAVED) ? saveUnsaved() : showNext();
}

$("figure").addEventListener("click", () => $("figure").classList.toggle("zoomed"));
$("none").addEventListener("click", () => save([]));
$("submit").addEventListener("click", submit);
$("clear").addEventListener("click", clear);
$("undo").addEventListener("click", undo);
$("skip").addEventListener("click", skip);
for (const id of ["past", "model"]) $(id).addEventListener("toggle", () => unfold(id));
$("undo-done").addEventListener("click", undo);
$("person").addEventListener("click", showName);
$("retry").addEventListener("click", () => again && again());
$("name-form").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt("Your name was not taken", async () => {
    await call("/api/person", { name: $("name-field").value });
    begin();
  });
});
document.addEventListener("keydown", onKey);
// A button that was pressed by hand must not take the next Enter for itself.
document.addEventListener("click", (event) => {
  if (event.detail > 0 && document.activeElement instanceof HTMLButtonElement) document.activeElement.blur();
});
// The token is in a cookie now: keep it out of the address, and so out of the history.
if (location.search) history.replaceState(null, "", location.pathname);
begin();
