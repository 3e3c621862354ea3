// The live realms and the locks in PostgreSQL. A row stays the same element while its subject is there.

/** How long a freed realm stays in sight, greyed: most holds end before anybody could read the row. */
const LINGER_MS = 2500;

const realmRows = new Map();

function lines(place, texts) {
  if (place.dataset.lines === JSON.stringify(texts)) return;
  place.dataset.lines = JSON.stringify(texts);
  place.replaceChildren(...texts.map((text) => element("span", { class: "line" }, text)));
}

function cell(label, ...classes) {
  return element("td", { role: "cell", "data-label": label, class: classes.join(" ") });
}

function newRealmRow(name) {
  const [origin, path] = parts(name);
  const header = element("th", { role: "rowheader", scope: "row" });
  header.append(element("span", { class: "path" }, path), element("span", { class: "origin" }, origin));
  const row = element("tr", { role: "row" });
  const [holder, held, waiting, longest] = [
    cell("Holder"),
    cell("Held for", "number"),
    cell("Waiting", "number"),
    cell("Longest wait", "number"),
  ];
  row.append(header, holder, held, waiting, longest);
  return { row, holder, held, waiting, longest, seen: 0 };
}

function fillRealmRow(it, realm) {
  const holders = realm.holders.map((holder) => `a claim on ${holder.extent}`);
  if (realm.more_holders > 0) holders.push(`and ${realm.more_holders} more`);
  lines(it.holder, holders.length ? holders : ["none on this replica"]);
  lines(it.held, realm.holders.length ? realm.holders.map((holder) => duration(holder.held_ms)) : ["–"]);
  lines(it.waiting, [realm.waiting]);
  lines(it.longest, [realm.waiting > 0 ? duration(realm.longest_wait_ms) : "–"]);
  for (const place of [it.waiting, it.longest]) place.toggleAttribute("data-tone", realm.waiting > 0);
  if (realm.waiting > 0) for (const place of [it.waiting, it.longest]) place.dataset.tone = "wait";
  it.row.classList.remove("freed");
}

function freeRealmRow(it) {
  lines(it.holder, ["free again"]);
  lines(it.held, ["–"]);
  lines(it.waiting, ["0"]);
  lines(it.longest, ["–"]);
  it.row.classList.add("freed");
}

function showRealms(snapshot) {
  const body = find("realms-rows");
  // What the server had drawn for browsers without scripts.
  if (realmRows.size === 0) body.replaceChildren();
  const now = performance.now();
  for (const realm of snapshot.realms) {
    if (!realmRows.has(realm.realm)) {
      const made = newRealmRow(realm.realm);
      realmRows.set(realm.realm, made);
      body.append(made.row);
    }
    const it = realmRows.get(realm.realm);
    it.seen = now;
    fillRealmRow(it, realm);
  }
  for (const [name, it] of realmRows) {
    if (it.seen === now) continue;
    if (now - it.seen > LINGER_MS || realmRows.size > 200) {
      it.row.remove();
      realmRows.delete(name);
    } else {
      freeRealmRow(it);
    }
  }
  find("realms-table").hidden = realmRows.size === 0;
  find("realms-empty").hidden = realmRows.size > 0;
  find("realms-more").hidden = snapshot.more_realms === 0;
  say(find("realms-more-count"), snapshot.more_realms);
}

function showFigures(snapshot) {
  say(find("replica"), snapshot.replica);
  say(find("lock"), snapshot.lock);
  const figures = { held: snapshot.held, waiting: snapshot.waiting };
  for (const [id, count] of Object.entries(figures)) {
    say(find(id), count);
    find(id).classList.toggle("nothing", count === 0);
  }
  say(find("longest"), snapshot.waiting > 0 ? duration(snapshot.longest_wait_ms) : "–");
  find("longest").classList.toggle("nothing", snapshot.waiting === 0);
}

function databaseRow(lock) {
  const header = element("th", { role: "rowheader", scope: "row" });
  const [origin, path] = parts(lock.claim ?? "");
  header.append(
    element("span", { class: "path" }, path),
    element("span", { class: "origin" }, origin),
    element("span", { class: "origin" }, `key ${lock.key}`),
  );
  const state = cell("State");
  const tone = lock.granted ? "held" : "wait";
  state.append(
    element("span", { class: "pill", "data-tone": tone }, lock.granted ? "holds" : "waits"),
    " ",
    element("span", { class: "origin" }, lock.mode),
  );
  const session = cell("Session");
  const from = [lock.application, lock.client].filter(Boolean).join(" at ") || "–";
  session.append(element("span", { class: "line" }, from), element("span", { class: "origin" }, lock.state ?? "–"));
  const process = cell("Process", "number");
  process.append(lock.pid);
  const time = cell("Transaction open for", "number");
  time.append(lock.for_ms === null ? "–" : duration(lock.for_ms));
  const row = element("tr", { role: "row" });
  row.append(header, state, session, process, time);
  return row;
}

let databaseSeen = "";

function showDatabase(snapshot) {
  const { database, database_problem: problem } = snapshot;
  find("database").hidden = database === null && !problem;
  find("database-problem").hidden = !problem;
  say(find("database-problem"), problem ?? "");
  const seen = JSON.stringify(database);
  if (seen === databaseSeen) return;
  databaseSeen = seen;
  find("database-rows").replaceChildren(...(database ?? []).map(databaseRow));
  find("database-table").hidden = !database?.length;
  find("database-empty").hidden = database === null || database.length > 0;
}
