// The page: its form, its one or two players, and what happens between them.
import { canShare } from "./kept.js";
import { Session, Source, seconds } from "./session.js";
import { Spectrogram } from "./sound.js";
import { Timeline } from "./timeline.js";

const $ = (id) => document.getElementById(id);
const TICK = 250; // milliseconds between two messages of where the player is
const FIGURES = ["ttfc", "block", "factor", "steer", "buffer", "stalls", "dropped"];
const NO_SOURCE =
  "this browser cannot play a stream that still grows (it has no MediaSource); " +
  "use a current Chrome, Edge, Firefox or Safari";
let image = null;
let limits = null;
let muted = false;

// A player with its name, status and figures. The second one's ids end in "-beside".
class Pane {
  constructor(end, path) {
    this.end = end;
    this.path = path;
    this.first = end === "";
    this.session = null;
    this.video = this.$("video");
    this.hear = this.$("hear");
    this.video.addEventListener("waiting", () => this.session?.stall());
    this.video.addEventListener("error", () =>
      this.session?.fail(
        `the browser cannot play the stream: ${this.video.error?.message || "no reason given"}`,
      ),
    );
    const turn = () => {
      if (!this.session) return;
      if (this.video.paused) this.video.play();
      else this.video.pause();
    };
    this.video.addEventListener("click", turn);
    this.video.addEventListener("keydown", (event) => {
      if (event.key === " " || event.key === "Enter") {
        event.preventDefault();
        turn();
      }
    });
    this.hear.addEventListener("change", listen);
  }
  $(id) {
    return $(id + this.end);
  }
  say(text, error = false) {
    this.$("status").textContent = text;
    this.$("status").classList.toggle("error", error);
  }
  figure(name, value) {
    this.$(name).textContent = value;
  }
  begin(session) {
    this.session = session;
    for (const name of FIGURES) this.figure(name, "-");
    this.say("connecting");
  }
  show({ width, height }, name) {
    this.$("pane").style.setProperty("--ratio", width / height);
    this.$("name").textContent = name;
    this.$("label").hidden = panes.length === 1;
  }
}

const panes = [new Pane("", "stream")];
const spectrogram = new Spectrogram($("spectrogram"));
const timeline = new Timeline($("timeline"), $("track"), (text) => {
  $("spoken").textContent = text;
});
const heard = () => panes.find(({ hear }) => hear.checked);
const live = () =>
  panes.map(({ session }) => session).filter((session) => session && !session.ended);

// What a session tells the page.
const page = {
  started: (session) => {
    timeline.started(session);
    timeline.ask(live()); // at once: until the next tick, seconds of the stream could be made
  },
  received: (session, id) => timeline.received(session, id),
  applied: (session, id, block, from) => timeline.applied(session, id, block, from),
  dropped: (session, id, reason) => timeline.dropped(session, id, reason),
  paused: (on) => {
    $("pause").textContent = on ? "Resume" : "Pause";
  },
  warn: (text) => {
    $("warning").textContent = text;
  },
  kept: (session) => {
    if (session === heard().session) offer();
  },
  over: (session) => {
    if (!live().length) controls(false);
    ready().then(
      (state) => {
        if (!state.ready && !session.kept.size && !session.broken) session.say(state.reason, true);
      },
      () => {},
    );
  },
};

function controls(on) {
  $("pause").disabled = $("stop").disabled = !on;
  $("go").textContent = on ? "Steer" : "Start";
  $("pause").textContent = "Pause";
}

// What is kept of the stream that is heard.
function offer() {
  const kept = heard().session?.kept;
  $("download").hidden = !kept?.size;
  $("share").hidden = !kept?.size || !canShare();
  $("download").textContent = kept?.gone ? `Download from ${seconds(kept.start)} on` : "Download";
}

// To the chosen one alone.
function listen() {
  for (const pane of panes) pane.video.muted = muted || pane !== heard();
  if (heard().session) spectrogram.listen(heard().video);
  offer();
}

function begin(prompt) {
  if (!Source) {
    panes[0].say(NO_SOURCE, true);
    return;
  }
  const start = {
    prompt,
    seed: Number($("seed").value),
    seconds: Number($("seconds").value),
    image,
  };
  for (const { session } of panes) session?.end();
  timeline.begin(prompt, start.seconds);
  spectrogram.listen(heard().video);
  for (const pane of panes) {
    pane.begin(new Session(pane, start, $("token").value.trim(), page));
  }
  controls(true);
  listen();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = $("prompt").value;
  $("warning").textContent = "";
  if (live().length) timeline.steer({ prompt, rewrite: $("rewrite").checked }, live());
  else begin(prompt);
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
$("plan").onclick = () => {
  if (!$("prompt").reportValidity() || !$("at").reportValidity()) return;
  timeline.plan({
    prompt: $("prompt").value,
    rewrite: $("rewrite").checked,
    at: Number($("at").value),
  });
  $("at").value = Number($("at").value) + 10;
};
$("at").onkeydown = (event) => {
  if (event.key === "Enter") {
    event.preventDefault();
    $("plan").click();
  }
};
$("pause").onclick = () => {
  const type = $("pause").textContent === "Pause" ? "pause" : "resume";
  for (const session of live()) session.send(type);
};
$("stop").onclick = () => {
  for (const session of live()) session.send("stop");
};
$("download").onclick = () =>
  heard()
    .session.kept.save()
    .catch((error) => heard().say(`the browser does not save: ${error.message}`, true));
$("share").onclick = () =>
  heard()
    .session.kept.share("omniforcing")
    .catch((error) => heard().say(`the browser does not share: ${error.message}`, true));
$("mute").onclick = () => {
  muted = !muted;
  $("mute").setAttribute("aria-pressed", muted);
  listen();
};
document.addEventListener("visibilitychange", () => {
  for (const { session } of panes) session?.count();
});

// --- full screen ---
const stage = $("stage");
// An iPhone gives the whole screen to a video alone.
$("full").hidden = !stage.requestFullscreen && !panes[0].video.webkitEnterFullscreen;
$("full").onclick = () => {
  if (document.fullscreenElement) document.exitFullscreen();
  else if (stage.requestFullscreen)
    stage
      .requestFullscreen()
      .catch((error) => heard().say(`the browser refuses the full screen: ${error.message}`, true));
  else heard().video.webkitEnterFullscreen();
};
document.addEventListener("fullscreenchange", () => {
  if (document.fullscreenElement) heard().video.focus();
  else $("full").focus();
});

// --- the clock ---
// Browsers slow the timers of a hidden page down, to one a minute where it makes no sound; not
// those of a worker.
function tick() {
  for (const { session } of panes) session?.tick();
  const { session } = heard();
  if (!session) return;
  timeline.tick(session, live());
  const now = session.video.currentTime;
  if (Number($("at").value) < now && document.activeElement !== $("at"))
    $("at").value = Math.ceil(now / 10) * 10 + 10;
  $("caption").textContent = timeline.playing?.prompt ?? "";
}
function tickHere() {
  setInterval(tick, TICK);
}
try {
  const clock = new Worker(
    URL.createObjectURL(
      new Blob([`setInterval(() => postMessage(0), ${TICK})`], { type: "text/javascript" }),
    ),
  );
  clock.onmessage = tick;
  clock.onerror = () => {
    clock.terminate();
    tickHere();
  };
} catch {
  tickHere();
}

// --- the first frame ---
async function choose(file) {
  if (!file) return;
  if (!/^image\/(png|jpeg|webp)$/.test(file.type)) {
    panes[0].say("an image is PNG, JPEG or WebP", true);
    return;
  }
  if (limits && file.size > limits.image_bytes) {
    panes[0].say(`the image is larger than ${limits.image_bytes / 1e6} MB`, true);
    return;
  }
  image = await file.arrayBuffer();
  picture(file);
}
function picture(file) {
  URL.revokeObjectURL($("preview").src);
  if (file) $("preview").src = URL.createObjectURL(file);
  else $("preview").removeAttribute("src");
  $("dropped-name").textContent = file
    ? `First frame: ${file.name}`
    : "First frame: drop or choose";
  $("preview").hidden = $("forget").hidden = !file;
}
$("drop").onclick = () => $("file").click();
$("file").onchange = () => choose($("file").files[0]);
$("forget").onclick = () => {
  image = null;
  $("file").value = "";
  picture(null);
  $("drop").focus();
};
$("drop").ondragover = (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
};
$("drop").ondragleave = () => $("drop").classList.remove("over");
$("drop").ondrop = (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  choose(event.dataTransfer.files[0]);
};

// --- what the server is ---
// It says too whether pages of this address may connect, which the browser hides when a WebSocket
// is refused.
function ready() {
  return fetch(`ready?origin=${encodeURIComponent(location.origin)}`).then((answer) =>
    answer.json(),
  );
}
// a second player, a copy of the first with ids of its own
function addBeside({ path }) {
  const copy = $("pane").cloneNode(true);
  for (const element of [copy, ...copy.querySelectorAll("[id]")]) element.id += "-beside";
  copy.querySelector("input").checked = false;
  copy.querySelector("video").setAttribute("aria-label", "Second stream");
  $("panes").append(copy);
  for (const first of $("figures").querySelectorAll("dd")) {
    const second = first.cloneNode(true),
      [name, figure] = second.children;
    name.textContent = "second: ";
    figure.id += "-beside";
    first.after(second);
  }
  document.body.classList.add("two");
  panes.push(new Pane("-beside", path));
}
ready().then(
  (state) => {
    limits = state.limits;
    timeline.lead = limits.lead_seconds;
    timeline.longest = limits.prompt_chars;
    spectrogram.highest = Math.max(...state.streams.map(({ sample_rate }) => sample_rate)) / 2;
    $("spectrogram").title += `, 0 to ${spectrogram.highest / 1000} kHz`;
    $("seconds").max = $("at").max = limits.seconds;
    $("prompt").maxLength = limits.prompt_chars;
    $("tokenbox").hidden = !state.token;
    state.streams.slice(1).forEach(addBeside);
    const [{ width, height }] = state.streams;
    document.body.style.setProperty("--ratio", width / height);
    let names = state.streams.map(({ preset, method }) => `${preset}, ${method}`);
    $("about").textContent =
      names.length > 1 ? "two streams from one prompt and seed" : `${width}x${height}, ${names[0]}`;
    if (new Set(names).size < names.length)
      names = names.map((name, index) => `${name}, ${state.streams[index].artifact}`);
    panes.forEach((pane, index) => pane.show(state.streams[index], names[index]));
    if (!state.ready) panes[0].say(state.reason, true);
    else if (!Source) panes[0].say(NO_SOURCE, true);
  },
  () => panes[0].say("the server does not answer", true),
);

// For tests and the browser's console.
Object.assign(globalThis, { panes, spectrogram, timeline });
Object.defineProperty(globalThis, "session", { get: () => panes[0].session });
