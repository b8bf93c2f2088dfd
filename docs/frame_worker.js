// Search runs in a Worker, which browsers refuse to pages that are read from the disk (file://). There
// a hidden frame does its work, and nothing is fetched from another place for it. A Worker elsewhere.
class FrameWorker extends EventTarget {
  constructor(url) {
    super();
    this.onmessage = null;
    const frame = document.createElement("iframe");
    frame.hidden = true;
    document.body.appendChild(frame);
    this.inner = frame.contentWindow;
    window.addEventListener("message", (event) => {
      if (event.source !== this.inner) return;
      const copy = new MessageEvent("message", { data: event.data });
      this.dispatchEvent(copy);
      if (this.onmessage) this.onmessage(copy);
    });
    const inner = frame.contentDocument;
    inner.open();
    inner.write(
      "<!doctype html><script>" +
        "window.postMessage = (data) => parent.postMessage(data, '*');" +
        "window.importScripts = (...urls) => Promise.all(urls.map((url) => new Promise((done, no) => {" +
        "const one = document.createElement('script'); one.src = url; one.onload = done;" +
        "one.onerror = no; document.body.appendChild(one); })));" +
        "</" + "script><body><script src='" + encodeURI(String(url)) + "'></" + "script>",
    );
    inner.close();
    this.ready = new Promise((done) => {
      if (inner.readyState === "complete") done();
      else this.inner.addEventListener("load", done);
    });
  }

  postMessage(data) {
    this.ready.then(() => this.inner.dispatchEvent(new MessageEvent("message", { data })));
  }

  terminate() {
    this.inner.frameElement.remove();
  }
}

if (location.protocol === "file:") window.Worker = FrameWorker;
