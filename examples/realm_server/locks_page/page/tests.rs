use std::time::Duration;

use super::super::database::DatabaseLock;
use super::super::snapshot::{Millis, Standings};
use super::super::status::{Standing, Subject};
use super::*;

/// What would run if it were not escaped, in text and in attributes.
const HOSTILE: &str = "<img src=x onerror=alert(1)>\"'&</script>";

fn page() -> Page {
    let standing = |held| Standing {
        claim: HOSTILE.to_owned(),
        subjects: vec![Subject {
            realm: format!("https://h/{HOSTILE}/"),
            extent: HOSTILE.to_owned(),
        }],
        held,
        since: Duration::from_millis(1500),
    };
    let told = Standings::by_realm(&[standing(true), standing(false)]);
    let lock = DatabaseLock {
        pid: HOSTILE.to_owned(),
        application: Some(HOSTILE.to_owned()),
        client: Some(HOSTILE.to_owned()),
        state: Some(HOSTILE.to_owned()),
        for_ms: Some(Millis(61_000)),
        granted: true,
        mode: HOSTILE.to_owned(),
        key: HOSTILE.to_owned(),
        claim: Some(HOSTILE.to_owned()),
    };
    let now = Snapshot {
        replica: HOSTILE.to_owned(),
        lock: HOSTILE.to_owned(),
        at_ms: 0,
        held: told.held,
        waiting: told.waiting,
        longest_wait_ms: told.longest_wait_ms,
        realms: told.realms,
        more_realms: 0,
        waits: Vec::new(),
        database: Some(vec![lock]),
        database_problem: None,
    };
    let tally = |writers| Tally {
        acknowledged: 2,
        kept: 1,
        lost: 1,
        writers,
    };
    let outcome = Outcome {
        lock: HOSTILE.to_owned(),
        with_lock: tally([vec![Fate::Kept], vec![Fate::Refused]]),
        without_lock: tally([vec![Fate::Kept], vec![Fate::Lost]]),
    };
    Page::new(now, Some(Ok(outcome)))
}

#[test]
fn what_others_wrote_is_escaped_everywhere() {
    let html = page().render().unwrap();
    assert!(!html.contains("<img"), "{html}");
    // Title, replica, lock, realm, holder, race; and of the database claim, key, mode, application, client, state, process.
    assert_eq!(html.matches("&#60;img src=x onerror=").count(), 13);
    // The page's own.
    assert_eq!(html.matches("</script").count(), 1);
}

#[test]
fn the_page_tells_the_locks_without_its_script() {
    let html = page().render().unwrap();
    for part in ["1.5 s", "1 min 1 s", r#"class="lost" x="1" y="17""#] {
        assert!(html.contains(part), "{part}: {html}");
    }
}

#[test]
fn the_policy_lets_only_the_pages_own_script_and_style_run() {
    let page = page();
    let (html, policy) = (page.render().unwrap(), page.policy());
    let nonce = &page.nonce;
    assert!(policy.starts_with("default-src 'none';"), "{policy}");
    assert!(
        !policy.contains("unsafe") && !policy.contains('*'),
        "{policy}"
    );
    for (element, directive) in [
        ("script type=\"module\"", "script-src"),
        ("style", "style-src"),
    ] {
        assert!(html.contains(&format!("<{element} nonce=\"{nonce}\">")));
        assert!(policy.contains(&format!("{directive} 'nonce-{nonce}'")));
    }
    assert_ne!(*nonce, Page::new(page.now, None).nonce);
}

/// They go into the page as they are.
#[test]
fn the_style_and_the_script_do_not_end_early() {
    for text in [STYLE, SCRIPT] {
        assert!(!text.contains("</"), "{text}");
    }
}
