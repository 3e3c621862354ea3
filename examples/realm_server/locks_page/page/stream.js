// The stream of samples: what it brings is shown, that it breaks is said, and it comes back by itself.

/** From here on waiting is worth a word to those who do not see the chart. */
const LONG_WAIT_MS = 1000;

let samples = [];
let latest = null;
let paused = false;
let source = null;
let longWait = false;

function setState(state, words) {
  const place = find("connection");
  if (place.dataset.state === state) return;
  const before = place.dataset.state;
  place.dataset.state = state;
  say(place, words);
  if (state === "broken") announce("The connection to the server is lost. Trying again.");
  if (state === "live" && before === "broken") announce("The connection to the server is back.");
}

function show() {
  if (paused || latest === null) return;
  showFigures(latest);
  showRealms(latest);
  showDatabase(latest);
  for (const chart of charts) chart.draw(samples, latest.at_ms);
  const long = latest.waiting > 0 && latest.longest_wait_ms >= LONG_WAIT_MS;
  if (long && !longWait) announce(`Writes wait: ${latest.waiting} now, the longest for more than a second.`);
  // It ends with the queue: a wait about the threshold is told once.
  longWait = long || (longWait && latest.waiting > 0);
}

function take(snapshot, earlier) {
  latest = snapshot;
  samples = [...earlier, ...snapshot.waits].filter((sample) => snapshot.at_ms - sample.at_ms <= SPAN_MS);
  setState(paused ? "paused" : "live", paused ? "Paused" : "Live");
  show();
}

function open() {
  source = new EventSource("/_locks/events");
  source.addEventListener("snapshot", (event) => take(JSON.parse(event.data), []));
  source.addEventListener("sample", (event) => take(JSON.parse(event.data), samples));
  source.addEventListener("error", () => {
    setState("broken", "Reconnecting");
    // A broken connection the browser mends; one that was answered with an error it gives up.
    if (source?.readyState === EventSource.CLOSED) {
      close();
      setTimeout(openIfSeen, 2000);
    }
  });
}

function close() {
  source?.close();
  source = null;
}

/** Nobody looks at a hidden page: the server need not look for it either. */
function openIfSeen() {
  if (document.hidden) close();
  else if (source === null) open();
}

find("pause").addEventListener("click", () => {
  paused = !paused;
  say(find("pause"), paused ? "Resume" : "Pause");
  if (find("connection").dataset.state !== "broken") setState(paused ? "paused" : "live", paused ? "Paused" : "Live");
  show();
});
document.addEventListener("visibilitychange", openIfSeen);
addEventListener("resize", show);

for (const part of document.querySelectorAll("[data-script]")) part.hidden = false;
openIfSeen();
