// What every part uses: finding and making elements, and saying numbers. Text goes in as text only.

const find = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Changes text only where it differs, so that a selection or a screen reader is left in peace. */
function say(place, text) {
  if (place.textContent !== String(text)) place.textContent = text;
}

/** As the server says it. */
function duration(millis) {
  if (millis < 1000) return `${millis} ms`;
  if (millis < 60000) return `${(Math.floor(millis / 100) / 10).toFixed(1)} s`;
  return `${Math.floor(millis / 60000)} min ${Math.floor((millis % 60000) / 1000)} s`;
}

/** A URL up to its path, and the path. */
function parts(url) {
  const authority = url.indexOf("://") + 3;
  const path = url.indexOf("/", authority);
  return authority < 3 || path < 0 ? [url, ""] : [url.slice(0, path), url.slice(path)];
}

/** For screen readers, and seldom: what a glance at the page would tell. */
function announce(text) {
  say(find("announcement"), text);
}
