// The conversation as it is shown: a message and the answers to it.

const NAMES = ["A", "B"];

function node(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function button(label, name, act) {
  const made = node("button", "quiet", label);
  made.type = "button";
  made.setAttribute("aria-label", name);
  made.addEventListener("click", act);
  return made;
}

const milliseconds = value => (value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`);

/** Time to the first token, and tokens per second after it: the first came with the prompt's own forward. */
export class Pace {
  constructor() {
    this.start = performance.now();
    this.first = this.last = null;
    this.before = this.tokens = 0;
  }

  see(tokens) {
    if (tokens <= this.tokens) return;
    this.last = performance.now();
    if (this.first === null) [this.first, this.before] = [this.last, tokens];
    this.tokens = tokens;
  }

  get rate() {
    return this.tokens > this.before && this.last > this.first ? (1000 * (this.tokens - this.before)) / (this.last - this.first) : null;
  }

  words() {
    if (this.first === null) return [];
    const rate = this.rate === null ? [] : [`${this.rate.toFixed(this.rate < 10 ? 1 : 0)} tokens/s`];
    return [`${this.tokens} token${this.tokens === 1 ? "" : "s"}`, ...rate, `first token after ${milliseconds(this.first - this.start)}`];
  }
}

const ENDS = { length: "cut at max tokens", stopped: "stopped", cancelled: "stopped" };

/** One answer: its text as it grows, what it cost, or the error in its place. */
export class Answer {
  constructor(side, model, again) {
    this.side = side;
    this.model = model;
    this.text = "";
    this.failed = false;
    this.again = again;
    this.node = node("article", "answer card");
    this.node.setAttribute("aria-label", `${NAMES[side]}: ${model}`);
    const head = node("h3");
    head.append(node("span", "letter", NAMES[side]), node("span", "name", model));
    this.words = node("div", "text");
    this.stats = node("p", "stats");
    this.acts = node("p", "acts");
    this.foot = node("div", "foot");
    this.foot.append(this.stats, this.acts);
    this.node.append(head, this.words, this.foot);
    this.begin();
  }

  begin() {
    [this.text, this.failed, this.usage] = ["", false, null];
    this.grown = document.createTextNode("");
    this.words.replaceChildren(this.grown);
    this.words.className = "text";
    this.acts.replaceChildren();
    this.stats.textContent = "Waiting for the first token";
    this.node.setAttribute("aria-busy", "true");
    this.node.classList.add("running");
    this.pace = new Pace();
  }

  add({ text, tokens, usage }) {
    this.pace.see(tokens);
    if (usage) this.usage = usage;
    this.grown.appendData(text);
    this.text += text;
    this.stats.textContent = this.pace.words().join(", ") || "Waiting for the first token";
  }

  end(reason) {
    this.finish();
    const said = [...this.pace.words(), ENDS[reason]].filter(Boolean);
    this.stats.textContent = said.join(", ") || "no token";
    if (!this.text) {
      this.words.className = "text none";
      this.words.textContent = reason === "stopped" ? "Stopped before the first token." : "An empty answer.";
    }
    if (this.text && navigator.clipboard) this.offerCopy(); // a page that came unencrypted from another machine has no clipboard
    this.offerRetry();
  }

  fail(message) {
    this.finish();
    this.failed = true;
    this.stats.textContent = this.pace.words().join(", ");
    this.words.append(node("p", "error", message));
    this.offerRetry();
  }

  offerCopy() {
    const copy = button("Copy", `Copy the answer of ${this.model}`, async () => {
      await navigator.clipboard.writeText(this.text);
      copy.textContent = "Copied";
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    });
    this.acts.append(copy);
  }

  offerRetry() {
    const retry = button("Retry", `Ask ${this.model} again`, () => this.again(this));
    retry.classList.add("again");
    this.acts.append(retry);
  }

  finish() {
    this.node.removeAttribute("aria-busy");
    this.node.classList.remove("running");
  }

  /** What a screen reader is told once it is there. */
  told() {
    const what = this.failed ? this.words.querySelector(".error").textContent : this.text || this.words.textContent;
    return `${NAMES[this.side]}, ${this.model}: ${what}`;
  }
}

/** A message, the answers to it, and a line on them. */
export class Turn {
  constructor(message, number) {
    this.message = message;
    this.answers = [];
    this.node = node("section", "turn");
    this.node.setAttribute("aria-label", `Message ${number}`);
    this.pair = node("div", "pair");
    this.note = node("p", "note");
    this.node.append(node("h2", "asked", message), this.pair, this.note);
  }

  put(answer) {
    this.answers[answer.side] = answer;
    this.pair.append(answer.node);
  }

  /** Say so where both answers are the same. */
  compare() {
    const [a, b] = this.answers;
    const same = a && b && !a.failed && !b.failed && a.text && a.text === b.text;
    this.note.textContent = same ? "Both answers are the same." : "";
  }
}
