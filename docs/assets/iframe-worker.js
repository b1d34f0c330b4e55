// Opened from a folder, without a server, a page may start no worker; the search then runs in a hidden frame.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.title = "search";
      this.inside = new Promise((ready) => frame.addEventListener("load", () => ready(frame.contentWindow)));
      const answer = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.inside.then((inside) => (inside.postMessage = answer));
      frame.srcdoc = `<script src="${url}"></script>`;
      document.body.append(frame);
    }
    postMessage(data) {
      this.inside.then((inside) => inside.dispatchEvent(new inside.MessageEvent("message", { data })));
    }
  };
  window.Worker = window.IFrameWorker;
}
