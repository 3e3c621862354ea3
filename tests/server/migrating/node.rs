//! The JavaScript of the page, in Node where there is one. That the numbers are right is checked without it too: `look`.

use std::process::Command;

use serde_json::{Value, json};
use tower_realm_lock::{LockKey, RealmUrl};

use super::{KEY, REALM, World, block, table};

/// What a script prints in Node, a line for each call of `say`; `None` where there is no Node, which is said.
fn in_node(script: &str, arguments: &[&str]) -> Option<Vec<Value>> {
    let say = "const say = value => console.log(JSON.stringify(value, (_, v) => typeof v == 'bigint' ? `${v}` : v));";
    let script = format!("{say}\n{script}");
    let run = Command::new("node")
        .args(["-e", &script, "--"])
        .args(arguments)
        .output();
    let Ok(output) = run else {
        eprintln!(
            "NOT CHECKED: there is no `node` in PATH to run the JavaScript of docs/migrating.md"
        );
        return None;
    };
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    Some(
        said.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect(),
    )
}

#[test]
fn the_pages_javascript_computes_the_keys_of_the_crate() {
    let realms = [
        REALM,
        "http://127.0.0.1:4444/test/",
        "https://app.boxel.ai/base/",
        "https://xn--bcher-kva.example/luke/b%C3%BCro/",
        "https://realms.example.com/",
        "http://[::1]:8080/~a/B_c-d.e/",
    ];
    let script = format!(
        "{}\nprocess.argv.slice(1).forEach(url => say(lockKey(url)));",
        block("js", "readBigInt64BE")
    );
    let Some(said) = in_node(&script, &realms) else {
        return;
    };
    let keys = realms.map(|url| {
        let realm: RealmUrl = url.parse().unwrap();
        assert_eq!(realm.as_str(), url);
        Value::from(LockKey::of(&realm).to_string())
    });
    assert_eq!(said, keys);
}

#[test]
fn node_and_the_crate_write_urls_as_the_page_says() {
    let table = table("written");
    assert!(table.len() > 4);
    for row in &table {
        let realm = RealmUrl::parse(row[0]).map(|realm| realm.to_string());
        match row[2] {
            "refused" => drop(realm.unwrap_err()),
            "the same" => assert_eq!(realm.unwrap(), row[1]),
            other => assert_eq!(realm.unwrap(), other),
        }
    }
    let written: Vec<&str> = table.iter().map(|row| row[0]).collect();
    let script = "process.argv.slice(1).forEach(url => say(new URL(url).href));";
    if let Some(said) = in_node(script, &written) {
        let expected: Vec<&str> = table.iter().map(|row| row[1]).collect();
        assert_eq!(said, expected);
    }
}

#[tokio::test]
async fn the_pages_javascript_locks_what_a_request_locks() {
    let write = block("js", "withWriteLock");
    let mut texts = write.split('\'');
    let lock = texts.find(|text| text.contains("advisory")).unwrap();
    World::new().await.excludes("BEGIN", lock, "COMMIT").await;

    // What it asks of `pg`, for a write that succeeds and one that fails.
    let pool = "const client = { query: (sql, values) => say([sql, values]), release: error => say(['release', !!error]) };
        const pool = { connect: async () => client };
        const write = fails => async () => { say('write'); if (fails) throw new Error('the write') };
        (async () => {
            const url = process.argv[1];
            await withWriteLock(pool, url, write(false));
            await withWriteLock(pool, url, write(true)).catch(error => say(error.message));
        })();";
    let script = [block("js", "readBigInt64BE"), write, pool].concat();
    let Some(said) = in_node(&script, &[REALM]) else {
        return;
    };
    let begin = json!([["BEGIN", null], [lock, [KEY.to_string()]], "write"]);
    let begin = begin.as_array().unwrap();
    assert_eq!(said[..3], begin[..]);
    assert_eq!(
        said[3..5],
        [json!(["COMMIT", null]), json!(["release", false])]
    );
    assert_eq!(said[5..8], begin[..]);
    assert_eq!(said[8..], [json!(["release", true]), json!("the write")]);
}
