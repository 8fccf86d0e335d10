// What can be downloaded of a stream: all of it on the disk, where the browser lets the page write
// there (of https and of this machine); else its newest blocks in memory. Nothing that is kept is
// copied on the way.

const KEPT = 256e6; // bytes of the stream that stay in memory for the download; older blocks go

export class Kept {
  constructor() {
    this.header = null;
    this.blocks = [];
    this.size = 0;
    this.gone = false;
    this.disk = null;
    this.spilled = 0; // the open file, and bytes in it
    this.name = `stream-${Date.now()}-${Math.random()}.mp4`;
    this.work = this.open().catch(() => this.close());
  }
  get start() {
    return this.blocks[0]?.start ?? 0;
  }
  add(data, start) {
    this.size += data.byteLength;
    if (!this.header) {
      this.header = data.slice(0, headerLength(data));
      data = data.slice(this.header.byteLength);
    }
    this.blocks.push({ data, start });
    if (this.disk) this.spill();
    else this.bound();
  }
  bound() {
    while (this.size > KEPT && this.blocks.length > 1) {
      this.size -= this.blocks.shift().data.byteLength;
      this.gone = true;
    }
  }
  async open() {
    this.folder = await navigator.storage.getDirectory();
    await new Promise((granted) =>
      navigator.locks.request(this.name, () => {
        granted();
        return new Promise((done) => {
          this.release = done;
        });
      }),
    );
    // Files of pages that are gone hold no lock any more.
    const live = (await navigator.locks.query()).held.map(({ name }) => name);
    for await (const old of this.folder.keys())
      if (!live.some((name) => old.startsWith(name)))
        await this.folder.removeEntry(old).catch(() => {});
    this.file = await this.folder.getFileHandle(this.name, { create: true });
    this.disk = await this.file.createWritable();
    this.spill();
  }
  // one write after the other
  spill() {
    this.work = this.work
      .then(async () => {
        while (this.disk && this.blocks.length) {
          const data = this.spilled ? this.blocks[0].data : this.header;
          await this.disk.write(data);
          this.spilled += data.byteLength;
          if (data !== this.header) this.blocks.shift();
        }
      })
      .catch(() => this.close()); // the disk is full
  }
  // what comes is kept in memory
  async close() {
    if (this.spilled) {
      this.gone = true;
      this.size -= this.spilled - this.header.byteLength;
    }
    this.disk = null;
    this.bound();
    if (this.file) await this.folder.removeEntry(this.name).catch(() => {});
    this.release?.();
  }
  // of the file that is downloaded
  pieces() {
    const pieces = this.work.then(async () => {
      if (!this.disk)
        return new Blob([this.header, ...this.blocks.map(({ data }) => data)], {
          type: "video/mp4",
        });
      await this.disk.close();
      const whole = await this.file.getFile();
      this.disk = await this.file.createWritable({ keepExistingData: true });
      await this.disk.seek(this.spilled);
      return whole;
    });
    this.work = pieces.catch(() => this.close());
    return pieces;
  }
  async save() {
    saveAs(await this.pieces());
  }
  // by the system's own dialogue; saved where there is none, or it does not open
  async share(title) {
    const clip = await this.pieces();
    const file = new File([clip], "stream.mp4", { type: "video/mp4" });
    try {
      await navigator.share({ files: [file], title });
    } catch (error) {
      if (error.name !== "AbortError") saveAs(clip); // that is the person's own "no"
    }
  }
  end() {
    this.spilled = 0;
    this.work = this.work.then(() => this.close());
  }
}

// Whether this browser hands a clip to other programs.
export function canShare() {
  return (
    navigator.canShare?.({ files: [new File([], "stream.mp4", { type: "video/mp4" })] }) ?? false
  );
}

function saveAs(clip) {
  const file = URL.createObjectURL(clip),
    link = document.createElement("a");
  link.href = file;
  link.download = "stream.mp4";
  link.click();
  // Not before the browser has begun to read it.
  setTimeout(() => URL.revokeObjectURL(file), 60_000);
}

// Length of the boxes before the first fragment, which every file of the stream begins with.
function headerLength(data) {
  const view = new DataView(data),
    moof = 0x6d6f6f66;
  let at = 0;
  while (at + 8 <= data.byteLength && view.getUint32(at + 4) !== moof) at += view.getUint32(at);
  return at;
}
