// The page: choose two models, type once, read both answers.

import { answer, models } from "./api.js";
import { chatting, sampling, systemPrompt, watchSettings, wrong } from "./settings.js";
import { Answer, Turn } from "./turns.js";

const at = id => document.getElementById(id);
const selects = [at("model-a"), at("model-b")];
const facts = [at("facts-a"), at("facts-b")];
const KEY = "graft-api-key";

let key = sessionStorage.getItem(KEY) ?? "";
let known = [];
let turns = [];
const running = new Map();

const base = () => known.find(each => !each.parent);

// what the server has

async function open() {
  try {
    known = await models(key);
  } catch (error) {
    if (error.status === 401 || error.status === 403) return askForKey(error);
    return showTrouble(error);
  }
  if (key) sessionStorage.setItem(KEY, key);
  show({ door: false, trouble: false, sides: true, composer: true });
  fillSelects();
  at("where").textContent = `${base()?.id ?? "no base"}, ${count(known.length - 1, "adapter")}`;
  watchSettings(base()?.chat !== false);
  at("message").focus();
}

const count = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;

function show(parts) {
  for (const [id, shown] of Object.entries(parts)) at(id).hidden = !shown;
}

function askForKey(error) {
  at("door-error").textContent = error.message;
  show({ door: true, "door-error": key !== "", sides: false, composer: false, trouble: false });
  sessionStorage.removeItem(KEY);
  key = "";
  at("key").focus();
}

function showTrouble(error) {
  at("trouble-text").textContent = error.message;
  show({ trouble: true, sides: false, composer: false, door: false });
}

function fillSelects() {
  const names = known.map(each => each.id);
  const first = Math.min(1, names.length - 1);
  const wanted = [names[first], names[names.length > 2 ? 2 : 0]];
  selects.forEach((select, side) => {
    const before = select.value;
    const chosen = select.options.length && (before === "" || names.includes(before)) ? before : wanted[side];
    const options = known.map(each => new Option(each.parent ? each.id : `${each.id} (base)`, each.id));
    if (side === 1) options.push(new Option("None", ""));
    select.replaceChildren(...options);
    select.value = chosen;
    showFacts(side);
  });
}

function showFacts(side) {
  const found = known.find(each => each.id === selects[side].value);
  facts[side].textContent = found ? describe(found) : "One answer only";
}

function describe(model) {
  if (!model.parent) return "The base model as it is";
  const virtual = model.virtual_tokens ? count(model.virtual_tokens, "virtual token") : "";
  return [model.methods || "not read yet", virtual, model.bytes ? size(model.bytes) : ""].filter(Boolean).join(", ");
}

function size(bytes) {
  const mega = bytes / 1e6;
  return mega < 0.1 ? `${(bytes / 1e3).toFixed(1)} kB` : `${mega.toFixed(mega < 10 ? 1 : 0)} MB`;
}

// asking

function messages(turn, side) {
  const said = [];
  for (const each of turns.slice(0, turns.indexOf(turn))) {
    const given = each.answers[side];
    if (given?.text && !given.failed) said.push({ role: "user", content: each.message }, { role: "assistant", content: given.text });
  }
  const system = systemPrompt();
  return [...(system ? [{ role: "system", content: system }] : []), ...said, { role: "user", content: turn.message }];
}

async function ask(turn, given) {
  const stop = new AbortController();
  const [path, prompt] = chatting()
    ? ["v1/chat/completions", { messages: messages(turn, given.side) }]
    : ["v1/completions", { prompt: turn.message }];
  given.begin();
  running.set(given, stop);
  busy();
  let reason = "";
  try {
    await answer(path, { model: given.model, ...prompt, ...sampling() }, key, stop.signal, event => following(() => {
      given.add(event);
      reason = event.reason || reason;
    }));
    following(() => given.end(reason));
  } catch (error) {
    following(() => (error.name === "AbortError" ? given.end("stopped") : given.fail(error.message)));
    if (error.status === 401) askForKey(error);
  }
  running.delete(given);
  if (!running.size) await settled(turn);
}

async function settled(turn) {
  following(() => turn.compare());
  busy();
  at("status").textContent = turn.answers.map(each => each.told()).join(". ");
  try {
    known = await models(key);
    fillSelects();
  } catch { /* told with the next message */ }
}

function busy() {
  const on = running.size > 0;
  const held = document.activeElement === at("send") || document.activeElement === at("stop-all");
  show({ send: !on, "stop-all": on, fresh: turns.length > 0 });
  if (held) at(on ? "stop-all" : "send").focus();
}

function send() {
  const message = at("message").value;
  if (!message.trim() || running.size || wrong()) return;
  const turn = new Turn(message, turns.length + 1);
  turns.push(turn);
  document.body.classList.add("talking");
  at("turns").append(turn.node);
  at("message").value = "";
  at("settings").open = false;
  grow();
  const chosen = selects.map(select => select.value);
  turn.node.classList.toggle("single", !chosen[1]);
  chosen.forEach((model, side) => model && turn.put(new Answer(side, model, given => !running.size && ask(turn, given))));
  at("status").textContent = `Asking ${chosen.filter(Boolean).join(" and ")}`;
  turn.answers.forEach(given => ask(turn, given));
  window.scrollTo(0, document.documentElement.scrollHeight);
}

function stopAll() {
  for (const stop of running.values()) stop.abort();
}

function fresh() {
  stopAll();
  turns = [];
  at("turns").replaceChildren();
  document.body.classList.remove("talking");
  show({ fresh: false });
  at("message").focus();
}

// the window

/** Keep the end in sight where it was, and else leave the reader where they are. */
function following(change) {
  const page = document.documentElement;
  const close = page.scrollHeight - page.clientHeight - window.scrollY < 80;
  change();
  if (close) window.scrollTo(0, page.scrollHeight);
}

function grow() {
  const box = at("message");
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight, 200)}px`;
}

at("composer").addEventListener("submit", event => { event.preventDefault(); send(); });
at("message").addEventListener("input", grow);
at("message").addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", event => { if (event.key === "Escape") stopAll(); });
at("stop-all").addEventListener("click", stopAll);
at("fresh").addEventListener("click", fresh);
at("again").addEventListener("click", open);
at("door").addEventListener("submit", event => {
  event.preventDefault();
  key = at("key").value.trim();
  open();
});
selects.forEach((select, side) => select.addEventListener("change", () => showFacts(side)));
open();
