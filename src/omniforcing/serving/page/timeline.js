// Prompts on a timeline: what was asked for, what plays now, and steps that are still to come.
// A step that is to come is edited and removed in its place; it is sent shortly before its second.

const SOON = 3; // seconds before the server can be at a step's second at which it is sent

function make(tag, values = {}, ...children) {
  const element = Object.assign(document.createElement(tag), values);
  element.append(...children);
  return element;
}
function clock(value) {
  return `${Math.floor(value / 60)}:${(value % 60).toFixed(1).padStart(4, "0")}`;
}

class Step {
  constructor(timeline, { prompt, rewrite = true, at }) {
    Object.assign(this, { timeline, prompt, rewrite, at });
    this.sent = new Set(); // sessions
    this.from = new Map(); // session: second at which it began
    this.said = new Map(); // session: what became of it there
    this.item = make("li", { tabIndex: -1 });
    this.when = make("span", { className: "when" });
    this.note = make("small");
    this.what = make("span", { className: "what" });
  }
  get planned() {
    return !this.sent.size;
  }
  get order() {
    return Math.min(this.at ?? this.asked ?? 0, ...this.from.values());
  }
  // fields for one that is to come
  edit() {
    const at = make("input", {
      type: "number",
      min: 0,
      step: "any",
      value: this.at,
      className: "at",
    });
    const prompt = (this.field = make("input", {
      value: this.prompt,
      required: true,
      maxLength: this.timeline.longest,
    }));
    const remove = make("button", {
      type: "button",
      textContent: "\u2715",
      className: "remove",
    });
    const name = () => remove.setAttribute("aria-label", `Remove: at ${this.at} s, ${this.prompt}`);
    at.setAttribute("aria-label", "Second of the stream");
    prompt.setAttribute("aria-label", "Prompt from then on");
    at.onchange = () => {
      if (at.value === "" || !at.checkValidity()) {
        at.value = this.at;
        return;
      }
      this.at = Number(at.value);
      name();
      this.timeline.sort();
      this.timeline.speak(`moved to ${this.at} s: ${this.prompt}`);
    };
    prompt.onchange = () => {
      if (!prompt.value.trim()) {
        prompt.value = this.prompt;
        return;
      }
      this.prompt = prompt.value;
      name();
      this.timeline.speak(`at ${this.at} s now: ${this.prompt}`);
    };
    remove.onclick = () => this.timeline.remove(this);
    name();
    this.item.className = "planned";
    this.item.replaceChildren(make("label", { className: "second" }, at, " s"), prompt, remove);
  }
  // of what became of it, the first stream before the second
  say(session, text) {
    this.said.set(session, text);
    const sorted = [...this.said].sort(([a], [b]) => b.pane.first - a.pane.first);
    this.note.textContent = sorted
      .map(([{ pane }, words]) => `${pane.first ? "" : "second: "}${words}`)
      .join("; ");
  }
  // it is sent: no more fields
  fix() {
    const held = this.item.contains(document.activeElement);
    if (this.field?.value.trim()) this.prompt = this.field.value; // typed so far
    this.what.textContent = this.prompt;
    this.when.textContent = this.at === undefined ? "now" : clock(this.at);
    this.item.className = "sent";
    this.item.replaceChildren(this.when, this.what, this.note);
    if (held) this.item.focus();
  }
}

export class Timeline {
  constructor(list, track, speak) {
    this.list = list;
    this.track = track;
    this.speak = speak;
    this.steps = [];
    this.next = 0;
    this.playing = null;
    this.length = 60;
    this.longest = 1000;
    this.lead = 3;
    this.head = make("span", { className: "head" });
  }
  // A stream begins: steps with a second of their own stay, and are to come again.
  begin(prompt, length) {
    this.next = 0;
    this.playing = null;
    this.length = length;
    this.steps = this.steps.filter((step) => step.at !== undefined);
    for (const step of this.steps) {
      step.sent.clear();
      step.from.clear();
      step.said.clear();
      step.item.removeAttribute("aria-current");
      delete step.item.dataset.id;
      delete step.id;
      step.edit();
    }
    this.opening = this.add({ prompt });
    this.opening.asked = 0;
  }
  add(values) {
    const step = new Step(this, values);
    this.steps.push(step);
    if (step.at === undefined) {
      this.number(step);
      step.fix();
      step.note.textContent = "sent";
    } else step.edit();
    this.sort();
    return step;
  }
  plan(values) {
    this.add(values);
    this.speak(`planned at ${values.at} s: ${values.prompt}`);
  }
  steer(values, sessions) {
    const step = this.add(values);
    step.asked = sessions[0].video.currentTime;
    this.sort();
    for (const session of sessions) if (session.mime) this.send(step, session); // the others: tick
  }
  number(step) {
    step.id = this.next++;
    step.item.dataset.id = step.id;
  }
  remove(step) {
    const later = this.steps[this.steps.indexOf(step) + 1];
    this.steps = this.steps.filter((other) => other !== step);
    this.sort();
    (later?.item.querySelector(".remove") ?? document.getElementById("prompt")).focus();
    this.speak(`removed: ${step.prompt}`);
  }
  send(step, session) {
    if (step.planned && step.at !== undefined) {
      this.number(step);
      step.sent.add(session);
      step.fix();
    }
    step.sent.add(session);
    session.steer(step.id, step);
  }
  find(id) {
    return this.steps.find((step) => step.id === id);
  }
  started(session) {
    this.opening.sent.add(session);
    this.applied(session, 0, 0, 0);
  }
  received(session, id) {
    this.find(id).say(session, "received");
  }
  applied(session, id, block, from) {
    const step = this.find(id);
    const { item } = step;
    step.from.set(session, from);
    item.classList.add("applied");
    item.classList.remove("dropped");
    step.when.textContent = clock(Math.min(...step.from.values()));
    if (session.pane.first || item.dataset.block === undefined) {
      item.dataset.block = block;
      item.dataset.seconds = from;
    }
    step.say(session, `from ${from.toFixed(2)} s`);
    this.sort();
  }
  dropped(session, id, reason) {
    const step = this.find(id);
    step.say(session, reason);
    step.item.classList.toggle("dropped", !step.from.size);
  }
  // Ask the live sessions for the steps that are due
  ask(live) {
    for (const step of this.steps) {
      if (step === this.opening) continue;
      // The server generates so far ahead of the player: its lead, and a block more.
      const due = (each) => (step.at ?? 0) < each.video.currentTime + this.lead + 1 + SOON;
      for (const each of live)
        if (each.mime && !step.sent.has(each) && due(each)) this.send(step, each);
    }
  }
  // Where the player of the session that is heard is now.
  tick(session, live) {
    this.ask(live);
    const now = session.video.currentTime;
    const begun = this.steps.filter(
      (step) => step.from.has(session) && step.from.get(session) <= now + 0.05,
    );
    const playing = begun.at(-1) ?? null;
    if (playing !== this.playing && session.playing) {
      this.playing?.item.removeAttribute("aria-current");
      playing?.item.setAttribute("aria-current", "step");
      if (playing) this.list.scrollTop = playing.item.offsetTop - this.list.clientHeight / 3;
      if (playing && this.playing) this.speak(`plays now: ${playing.prompt}`);
      this.playing = playing;
      this.draw();
    }
    this.head.style.left = `${Math.min(100, (100 * now) / this.length)}%`;
  }
  sort() {
    this.steps.sort((a, b) => a.order - b.order || (a.id ?? Infinity) - (b.id ?? Infinity));
    const active = document.activeElement;
    this.steps.forEach(({ item }, index) => {
      // what stands right is not touched: a field in it may have the focus
      if (this.list.children[index] !== item)
        this.list.insertBefore(item, this.list.children[index] ?? null);
    });
    while (this.list.children.length > this.steps.length) this.list.lastChild.remove();
    if (this.list.contains(active)) active.focus(); // moved with its step
    this.draw();
  }
  // the same, as a bar for the eye
  draw() {
    const parts = this.steps.map((step, index) => {
      const end = this.steps[index + 1]?.order ?? this.length;
      const part = make("span", {
        className: step === this.playing ? "part playing" : step.planned ? "part planned" : "part",
        title: step.prompt,
      });
      const width = Math.max(0, Math.min(end, this.length) - step.order);
      part.style.left = `${(100 * step.order) / this.length}%`;
      part.style.width = `${(100 * width) / this.length}%`;
      return part;
    });
    this.track.replaceChildren(...parts, this.head);
  }
}
