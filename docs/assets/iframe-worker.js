// A page that was opened as a file may not start a worker, and the search runs in one. Here a hidden frame takes its place.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      const frame = document.createElement("iframe")
      frame.hidden = true
      const begin = () => {
        document.body.append(frame)
        const inside = frame.contentWindow
        inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
        inside.importScripts = async (...urls) => { for (const each of urls) await load(inside, each) }
        load(inside, url).then(() => {
          this.inside = inside
          for (const data of this.waiting.splice(0)) this.postMessage(data)
        })
      }
      const load = (inside, source) => new Promise((resolve, reject) => {
        const script = inside.document.createElement("script")
        script.src = source
        script.onload = resolve
        script.onerror = reject
        inside.document.body.append(script)
      })
      if (document.body) begin()
      else addEventListener("DOMContentLoaded", begin)
    }
    postMessage(data) {
      if (this.inside) this.inside.dispatchEvent(new MessageEvent("message", { data }))
      else this.waiting.push(data)
    }
    terminate() { }
  }
}
