// The spectrogram of the video that is heard.
// A copy of the sound is looked at. An audio graph between player and speakers would delay it
// against the picture, by 40 ms and more.

export class Spectrogram {
  constructor(canvas) {
    this.canvas = canvas;
    this.highest = 8000; // frequency in the stream's sound, Hz
    this.sound = this.analyser = this.tapped = this.heard = null;
    this.copies = new Map();
  }
  listen(video) {
    const changed = this.heard !== video;
    this.heard = video;
    this.sound?.resume();
    // Not Firefox's mozCaptureStream, which takes the sound away from the speakers.
    if (!video.captureStream) {
      this.canvas.hidden = true;
      return;
    }
    if (!this.sound) {
      this.sound = new AudioContext();
      this.analyser = new AnalyserNode(this.sound, {
        fftSize: 2048,
        smoothingTimeConstant: 0.3,
      });
      this.draw();
    }
    const copy = this.copies.get(video) ?? this.copy(video);
    if (changed)
      copy
        .getTracks()
        .filter(({ readyState }) => readyState === "live")
        .forEach((track) => this.tap(video, track));
  }
  copy(video) {
    const copy = video.captureStream();
    // Each stream brings tracks of its own.
    copy.addEventListener("addtrack", ({ track }) => this.tap(video, track));
    this.copies.set(video, copy);
    return copy;
  }
  tap(video, track) {
    if (track.kind === "video") {
      track.stop();
      return;
    } // or every frame would be copied for nobody
    if (video !== this.heard) return;
    this.tapped?.disconnect();
    this.tapped = this.sound.createMediaStreamSource(new MediaStream([track]));
    this.tapped.connect(this.analyser);
  }
  draw() {
    const { canvas, analyser } = this,
      context = canvas.getContext("2d", { willReadFrequently: true });
    const bins = new Uint8Array(analyser.frequencyBinCount);
    const next = () => {
      requestAnimationFrame(next);
      if (this.heard.paused) return;
      const top = Math.min(bins.length, Math.round((this.highest / this.sound.sampleRate) * 2048));
      analyser.getByteFrequencyData(bins);
      context.drawImage(canvas, -1, 0);
      for (let y = 0; y < canvas.height; y++) {
        const level = bins[Math.floor((1 - (y + 1) / canvas.height) * (top - 1))];
        context.fillStyle = `hsl(${260 - level * 0.8}, 90%, ${level / 3.6}%)`;
        context.fillRect(canvas.width - 1, y, 1, 1);
      }
    };
    next();
  }
}
