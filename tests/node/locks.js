// The write locks of a realm server of cardstack/boxel, as it takes them since its pull request
// 6171. A test is the other server.
//
// Each line of the input is a command, and each of the output an event of the command with this `id`:
//
//   {id, lock: {...}}                                  held, when the lock is granted
//   {id, release: true}                                released
//   {id, rounds, directory, lock: {url, paths}}        done, with the codes of errors, if any
const { createHash } = require('node:crypto');
const { readFile, writeFile } = require('node:fs/promises');
const { createInterface } = require('node:readline');
const { Pool } = require('pg');

const pool = new Pool({ connectionString: process.env.DATABASE_URL, max: 10 });
const releases = new Map();
const tell = event => console.log(JSON.stringify(event));
const keyOf = text => createHash('sha256').update(text).digest().readBigInt64BE(0).toString();

// The keys to share and the keys to take, in their order.
function keysOf({ user, url, paths }) {
  if (user !== undefined) return [[], [keyOf(`cost-barrier:${user}`)]];
  const realm = decodeURI(new URL(url).href);
  if (paths === undefined) return [[], [keyOf(realm)]];
  const files = new Set(paths.map(path => keyOf(`file-write:${realm}\0${path}`)));
  return [[keyOf(realm)], [...files].sort()];
}

async function withLock(lock, work) {
  const [shared, exclusive] = keysOf(lock);
  const client = await pool.connect();
  let failed;
  try {
    await client.query('BEGIN');
    const take = (mode, key) => client.query(`SELECT pg_advisory_xact_lock${mode}($1::bigint)`, [key]);
    for (const key of shared) await take('_shared', key);
    for (const key of exclusive) await take('', key);
    await work();
    await client.query('COMMIT');
  } catch (error) {
    failed = error;
    throw error;
  } finally {
    client.release(failed);
  }
}

async function hold({ id, lock }) {
  await withLock(lock, () => new Promise(release => {
    releases.set(id, release);
    tell({ id, held: true });
  }));
  tell({ id, released: true });
}

// Adds one to the counter of each of some files that it locks, in any order, round by round.
async function count({ id, rounds, directory, lock }) {
  const errors = [];
  for (let round = 0; round < rounds; round++) {
    const shuffled = lock.paths.map(path => [Math.random(), path]).sort().map(([, path]) => path);
    const paths = shuffled.slice(0, 3);
    const add = async path => {
      const file = `${directory}/${path}`;
      await writeFile(file, `${Number(await readFile(file, 'utf8')) + 1}`);
    };
    const added = withLock({ ...lock, paths }, () => Promise.all(paths.map(add)));
    await added.catch(({ code, message }) => errors.push(code ?? message));
  }
  tell({ id, done: errors });
}

createInterface({ input: process.stdin }).on('line', line => {
  const command = JSON.parse(line);
  if (command.release) return releases.get(command.id)();
  const work = command.rounds ? count(command) : hold(command);
  work.catch(({ message }) => tell({ id: command.id, failed: message }));
}).on('close', () => process.exit());
