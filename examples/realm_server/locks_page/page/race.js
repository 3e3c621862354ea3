// The race: the same form as without scripts, but the page stays and the outcome comes as JSON.

function squares(writers) {
  const drawn = writers.flatMap((fates, row) =>
    fates.map((fate, column) =>
      shape("rect", { class: fate, x: column * 16 + 1, y: row * 16 + 1, width: 13, height: 13, rx: 3 }),
    ),
  );
  return shape("svg", { class: "squares", viewBox: "0 0 320 31", "aria-hidden": "true" }, ...drawn);
}

function raceRows(kind, name, lock, tally) {
  const count = (value, tone) => {
    const place = element("td", { class: "number" }, String(value));
    if (tone) place.dataset.tone = tone;
    return place;
  };
  const header = element("th", { scope: "row" }, `${name} `, element("span", { class: "origin" }, lock));
  const numbers = element("tr", { "data-kind": kind }, header, count(tally.acknowledged));
  numbers.append(count(tally.kept, "held"), count(tally.lost, tally.lost > 0 && "lost"));
  const picture = element("td", { colspan: "4" }, squares(tally.writers));
  return [numbers, element("tr", { class: "picture" }, picture)];
}

function showRace(outcome) {
  find("race-rows").replaceChildren(
    ...raceRows("without", "Without the lock", "as --lock off", outcome.without_lock),
    ...raceRows("with", "With the lock", outcome.lock, outcome.with_lock),
  );
  find("race-outcome").hidden = false;
  const { without_lock: without, with_lock: under } = outcome;
  return (
    `Without the lock ${without.lost} of ${without.acknowledged} writes were lost, ` +
    `with it ${under.lost} of ${under.acknowledged}.`
  );
}

async function runRace() {
  const answer = await fetch("/_locks/race", { method: "POST", headers: { Accept: "application/json" } });
  const document = await answer.json();
  if (!answer.ok) throw new Error(document.errors[0].detail);
  return showRace(document);
}

const raceButton = find("race-form").querySelector("button");

find("race-form").addEventListener("submit", async (submission) => {
  submission.preventDefault();
  // Not `disabled`: that would take the focus away from who pressed it.
  if (raceButton.ariaDisabled === "true") return;
  raceButton.ariaDisabled = "true";
  find("race-problem").hidden = true;
  say(find("race-state"), "Running…");
  try {
    const verdict = await runRace();
    say(find("race-state"), verdict);
    announce(verdict);
  } catch (problem) {
    say(find("race-state"), "");
    say(find("race-problem"), problem instanceof TypeError ? "The server does not answer." : problem.message);
    find("race-problem").hidden = false;
  } finally {
    raceButton.ariaDisabled = "false";
  }
});
