// One stream: its WebSocket, its player's buffer, and the figures of both.
import { Kept } from "./kept.js";

const HEAD_START = 1.5; // seconds that are buffered before the player starts
const BEHIND = 30; // seconds behind the player that stay in its buffer
const PROTOCOL = "omniforcing.v2";
// Safari on an iPhone has the managed kind alone.
export const Source = globalThis.MediaSource ?? globalThis.ManagedMediaSource;

const ENDS = { idle: "the server let go of a stream that stood still for long," };

export function seconds(value) {
  return `${value.toFixed(2)} s`;
}

export class Session {
  // pane: where it plays; start: the message that begins it; page: what else must know (main.js)
  constructor(pane, start, token, page) {
    this.pane = pane;
    this.video = pane.video;
    this.page = page;
    this.start = start;
    this.queue = [];
    this.kept = new Kept(); // for the download
    this.stalls = 0;
    this.ended = false;
    this.playing = false;
    this.asked = performance.now();
    this.times = [];
    this.excused = false; // the buffer runs dry because of a pause
    this.dropped = 0;
    this.counted = 0; // frames dropped while the page was seen, and all so far
    this.steered = new Map(); // where the player was when a prompt was asked for at once
    this.media = new Source();
    // The managed kind opens only where no television can take the picture away.
    if (!globalThis.MediaSource) this.video.disableRemotePlayback = true;
    this.video.src = this.address = URL.createObjectURL(this.media);
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const path = location.pathname.replace(/[^/]*$/, "");
    this.socket = new WebSocket(
      `${scheme}://${location.host}${path}${pane.path}`,
      token ? [PROTOCOL, `bearer.${token}`] : [PROTOCOL],
    );
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = ({ data }) => {
      if (pane.session !== this) return; // another stream has begun
      if (typeof data === "string") this.hear(JSON.parse(data));
      else this.take(data);
    };
    this.socket.onclose = ({ code, reason }) => this.close(code, reason);
  }
  say(text, error = false) {
    this.pane.say(text, error);
  }
  send(type, values = {}) {
    if (this.socket.readyState !== WebSocket.OPEN) return;
    if (type === "start") this.begun = true;
    // The server takes nothing else before it.
    if (this.begun || type === "stop") this.socket.send(JSON.stringify({ type, ...values }));
  }
  hear(message) {
    if (message.type === "hello") {
      if (this.start.image) this.socket.send(this.start.image);
      this.send("start", { ...this.start, image: Boolean(this.start.image) });
    } else if (message.type === "started") {
      this.mime = message.mime;
      if (!Source.isTypeSupported(this.mime)) {
        this.fail(`this browser cannot play ${this.mime}; use one with H.264 and AAC`);
        return;
      }
      this.open();
      this.page.started(this);
    } else if (message.type === "block") this.block(message);
    else if (message.type === "received") this.page.received(this, message.id);
    else if (message.type === "applied") this.applied(message);
    else if (message.type === "dropped") this.page.dropped(this, message.id, message.reason);
    else if (message.type === "paused") {
      this.paused = this.excused = true;
      this.page.paused(true);
      this.say("paused: what is buffered still plays");
    } else if (message.type === "resumed") {
      this.paused = false;
      this.page.paused(false);
      this.say("streaming");
    } else if (message.type === "warning") this.page.warn(message.message);
    else if (message.type === "error") {
      this.say(message.message, true);
      this.failed = true;
      if (!this.mime) this.socket.close(); // it does not begin; another start is another session
    } else if (message.type === "ended") {
      this.ended = true;
      if (!this.broken)
        this.say(`${ENDS[message.reason] ?? message.reason} after ${seconds(message.seconds)}`);
    }
  }
  // the browser cannot go on: its sentence stays
  fail(sentence) {
    if (this.broken) return;
    this.broken = true;
    this.say(sentence, true);
    this.send("stop");
  }
  open() {
    const begin = () => {
      this.buffer = this.media.addSourceBuffer(this.mime);
      this.buffer.addEventListener("updateend", () => this.feed());
      this.feed();
    };
    if (this.media.readyState === "open") begin();
    else this.media.addEventListener("sourceopen", begin, { once: true });
    this.say("waiting for the first second");
  }
  take(data) {
    if (this.broken) return;
    this.keep(data);
    this.queue.push(data);
    this.feed();
  }
  keep(data) {
    this.kept.add(data, this.begins);
    this.page.kept(this);
  }
  feed() {
    if (!this.buffer || this.buffer.updating || this.media.readyState === "closed") return;
    // A stream that has ended still begins to play: the seek to its beginning can last longer.
    if (this.media.readyState === "open") this.fill();
    this.play();
  }
  fill() {
    const { buffered } = this.buffer;
    const old = this.video.currentTime - BEHIND;
    if (buffered.length && buffered.start(0) < old - BEHIND) this.buffer.remove(0, old);
    else if (this.queue.length) this.append();
    else if (this.ended) this.media.endOfStream();
  }
  append() {
    try {
      this.buffer.appendBuffer(this.queue[0]);
      this.queue.shift();
    } catch (error) {
      // The buffer is full: what was played goes, and the next tick tries again.
      if (error.name === "QuotaExceededError") {
        if (this.video.currentTime > 1) this.buffer.remove(0, this.video.currentTime - 1);
      } else this.fail(`the browser does not take the stream: ${error.message}`);
    }
  }
  ahead() {
    const { buffered, currentTime } = this.video;
    return buffered.length ? buffered.end(buffered.length - 1) - currentTime : 0;
  }
  play() {
    const { video } = this;
    if (this.playing || !(this.ahead() >= HEAD_START || this.ended)) return;
    // Where a browser ignores edit lists, picture and sound begin together a little after 0.
    // WebKitGTK fails on a seek before much is buffered, and hangs on one to the very beginning.
    if (video.buffered.length && video.currentTime < video.buffered.start(0)) {
      video.currentTime = video.buffered.start(0) + 1 / 24;
      return;
    }
    if (video.seeking) return;
    this.playing = true;
    video.play().catch((error) => this.say(`the browser does not play: ${error.message}`, true));
  }
  block(message) {
    this.begins = message.start;
    if (message.end > 1 / 24 + 1e-6 && !this.first) {
      this.first = (performance.now() - this.asked) / 1000;
      this.pane.figure("ttfc", seconds(this.first));
      if (!this.paused) this.say("streaming");
    }
    this.times.push(Math.max(message.generate_s, message.decode_s));
    this.times = this.times.slice(-20);
    const mean = this.times.reduce((a, b) => a + b) / this.times.length;
    this.pane.figure("block", seconds(mean));
    if (message.end - message.start > 0.1)
      this.pane.figure("factor", ((message.end - message.start) / mean).toFixed(1));
  }
  // at: second of the stream; none: as soon as possible
  steer(id, { prompt, rewrite, at }) {
    if (at === undefined) this.steered.set(id, this.video.currentTime);
    this.send("prompt", { id, prompt, rewrite, ...(at === undefined ? {} : { at }) });
  }
  applied({ id, block, seconds: from }) {
    if (this.steered.has(id))
      this.pane.figure("steer", seconds(Math.max(0, from - this.steered.get(id))));
    this.page.applied(this, id, block, from);
  }
  tick() {
    const ahead = this.ahead();
    if (this.excused && !this.paused && ahead >= HEAD_START) this.excused = false;
    this.count();
    this.pane.figure("buffer", seconds(ahead));
    this.pane.figure("stalls", this.stalls);
    this.pane.figure("dropped", this.video.getVideoPlaybackQuality ? this.dropped : "-");
    this.send("position", { seconds: this.video.currentTime, stalls: this.stalls });
    this.feed();
  }
  // nobody sees the frames that a hidden page leaves out
  count() {
    const dropped = this.video.getVideoPlaybackQuality?.().droppedVideoFrames ?? 0;
    if (!this.hidden && !document.hidden) this.dropped += dropped - this.counted;
    this.counted = dropped;
    this.hidden = document.hidden;
  }
  stall() {
    if (this.playing && !this.ended && !this.excused && !this.video.paused && !this.video.seeking)
      this.stalls += 1;
  }
  close(code, reason) {
    if (this.pane.session !== this) return;
    if (!this.ended && !this.failed && !this.broken)
      this.say(
        reason ||
          (code === 1006
            ? "the server is not there, is full, or wants another token"
            : `closed (${code})`),
        true,
      );
    this.ended = true;
    this.feed();
    this.page.over(this);
  }
  end() {
    this.socket.close();
    this.kept.end();
    URL.revokeObjectURL(this.address);
  }
}
