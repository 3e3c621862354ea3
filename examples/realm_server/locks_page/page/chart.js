// Two pictures of the last two minutes: the longest wait and the length of the queue.

const SPAN_MS = 120000;
const HEIGHT = 168;
const EDGE = { left: 52, right: 8, top: 10, bottom: 24 };

/** Samples further apart than this have a gap between them: nobody looked. */
const GAP_MS = 2000;

/** The smallest round number, 1, 2 or 5 with noughts, that is not below the value. */
function ceiling(value, least) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, least)));
  return [1, 2, 5, 10].map((step) => step * power).find((round) => round >= Math.max(value, least));
}

class Chart {
  constructor(figure, { value, words, least, summary }) {
    Object.assign(this, { figure, value, words, least, summary });
    this.peak = figure.querySelector(".peak");
    const name = `${figure.id}-name`;
    const description = `${figure.id}-description`;
    this.name = shape("title", { id: name }, figure.querySelector("figcaption").firstChild.textContent.trim());
    this.description = shape("desc", { id: description });
    this.plot = shape("g");
    this.svg = shape("svg", { class: "chart", role: "img", "aria-labelledby": name, "aria-describedby": description });
    this.svg.append(this.name, this.description, this.plot);
    figure.append(this.svg);
  }

  draw(samples, now) {
    const width = Math.max(this.figure.clientWidth, 200);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const most = samples.reduce((most, sample) => Math.max(most, this.value(sample)), 0);
    const top = ceiling(most, this.least);
    const across = (at) => EDGE.left + (1 - (now - at) / SPAN_MS) * (width - EDGE.left - EDGE.right);
    const up = (value) => HEIGHT - EDGE.bottom - (value / top) * (HEIGHT - EDGE.top - EDGE.bottom);
    this.plot.replaceChildren(...this.axes(width, top, across, up), ...this.curves(samples, across, up));
    const last = samples.length ? this.value(samples[samples.length - 1]) : 0;
    say(this.peak, `now ${this.words(last)} · peak ${this.words(most)}`);
    say(this.description, this.summary(this.words(most), this.words(last)));
  }

  axes(width, top, across, up) {
    const drawn = [];
    for (const value of [0, top / 2, top]) {
      if (!Number.isInteger(value)) continue;
      const y = up(value);
      drawn.push(shape("line", { class: "rule", x1: EDGE.left, x2: width - EDGE.right, y1: y, y2: y }));
      drawn.push(shape("text", { x: EDGE.left - 8, y: y + 4, "text-anchor": "end" }, this.words(value)));
    }
    const y = HEIGHT - 6;
    drawn.push(shape("text", { x: EDGE.left, y }, "2 min ago"));
    drawn.push(shape("text", { x: (EDGE.left + width - EDGE.right) / 2, y, "text-anchor": "middle" }, "1 min ago"));
    drawn.push(shape("text", { x: width - EDGE.right, y, "text-anchor": "end" }, "now"));
    return drawn;
  }

  curves(samples, across, up) {
    const runs = [];
    let before = -Infinity;
    for (const sample of samples) {
      if (sample.at_ms - before > GAP_MS) runs.push([]);
      before = sample.at_ms;
      runs[runs.length - 1].push(sample);
    }
    return runs.flatMap((run) => {
      const points = run.map((it) => `${across(it.at_ms).toFixed(1)},${up(this.value(it)).toFixed(1)}`).join(" ");
      const from = across(run[0].at_ms).toFixed(1);
      const to = across(run[run.length - 1].at_ms).toFixed(1);
      return [
        shape("polygon", { class: "area", points: `${from},${up(0)} ${points} ${to},${up(0)}` }),
        shape("polyline", { class: "curve", points }),
      ];
    });
  }
}

const charts = [
  new Chart(find("longest-chart"), {
    value: (sample) => sample.longest_wait_ms,
    words: (millis) => (millis >= 1000 ? `${Math.round(millis / 100) / 10} s` : `${millis} ms`),
    least: 100,
    summary: (peak, now) => `In the last two minutes the longest wait was ${peak}; it is ${now} now.`,
  }),
  new Chart(find("waiting-chart"), {
    value: (sample) => sample.waiting,
    words: String,
    least: 5,
    summary: (peak, now) => `In the last two minutes at most ${peak} writes waited; ${now} wait now.`,
  }),
];
