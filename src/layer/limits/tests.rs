use super::*;
use crate::{LockRules, PostgresBuilder, RealmBodyLockLayer, RealmLocks, RealmPaths};

fn toml<T: serde::de::DeserializeOwned>(file: &str) -> String {
    match toml::from_str::<T>(file) {
        Ok(_) => "taken".to_owned(),
        Err(error) => error.message().to_owned(),
    }
}

fn json<T: serde::de::DeserializeOwned>(file: &str) -> String {
    match serde_json::from_str::<T>(file) {
        Ok(_) => "taken".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_key_is_taken_and_a_slip_in_it_is_set_right() {
    fn check<T: Table + serde::de::DeserializeOwned>() {
        for key in T::KEYS {
            // Of the wrong type for each, so that its own error must come.
            let error = toml::<T>(&format!("{key} = 1.5"));
            assert!(error.contains("floating point `1.5`, expected"), "{error}");
            let slip = format!("{key}x");
            let meant = format!("unknown key `{slip}` in {}: did you mean `{key}`?", T::NAME);
            assert_eq!(toml::<T>(&format!("{slip} = 1")), meant);
        }
    }
    check::<Limits>();
    check::<LockRules>();
    check::<PostgresBuilder>();
}

#[test]
fn a_time_has_a_unit() {
    const FORM: &str = "a time with its unit, such as \"10s\" or \"500ms\", for `acquire_timeout`";
    for time in ["10s", "500ms", "5m", "1h", "1m 30s"] {
        let file = format!("acquire_timeout = '{time}'");
        assert_eq!(toml::<Limits>(&file), "taken", "{time}");
    }
    for (value, shown) in [
        ("10", "integer `10`"),
        ("1.5", "floating point `1.5`"),
        ("'10'", "`10`"),
        ("'soon'", "`soon`"),
        ("'-1s'", "`-1s`"),
        ("''", "``"),
        ("true", "boolean `true`"),
    ] {
        let error = toml::<Limits>(&format!("acquire_timeout = {value}"));
        assert!(error.contains(shown) && error.contains(FORM), "{error}");
    }
    let error = toml::<Limits>("max_hold = 'non'");
    assert!(
        error.contains(r#""500ms", or "none" for `max_hold`"#),
        "{error}"
    );
    let error = json::<Limits>(r#"{"max_hold":null}"#);
    assert!(
        error.contains("null") && error.contains(r#""none""#),
        "{error}"
    );
}

#[test]
fn what_is_no_table_is_refused_without_its_text() {
    for file in [r#""secret""#, "5", "[]", "true", "null"] {
        let error = json::<Limits>(file);
        assert!(
            error.contains("expected a table with the limits"),
            "{error}"
        );
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn hostile_keys_cost_and_show_little() {
    let long = "k".repeat(1_000_000);
    let error = json::<Limits>(&format!(r#"{{"{long}":1}}"#));
    assert!(error.len() < 300, "{}", error.len());
    let error = json::<Limits>(r#"{"\u001b[2J\u0000":1}"#);
    assert!(error.contains(r"`\u{1b}[2J\0`"), "{error}");
    let twice = json::<Limits>(r#"{"body_timeout":"1s","body_timeout":"2s"}"#);
    assert!(
        twice.contains("`body_timeout` stands twice in the limits"),
        "{twice}"
    );
}

#[test]
fn each_limit_of_a_file_is_the_layers() {
    let realms = RealmPaths::new("https://realms.test", "/{realm}").unwrap();
    let layer = RealmBodyLockLayer::new(RealmLocks::in_process(), realms, 4096);
    let shown = |file: &str| {
        let limits: Limits = toml::from_str(file).unwrap();
        format!("{:?}", layer.clone().limits(limits))
    };
    let changed = |change: fn(RealmBodyLockLayer) -> RealmBodyLockLayer| {
        format!("{:?}", change(layer.clone()))
    };
    assert_eq!(shown(""), changed(|layer| layer));
    for (file, by_hand) in [
        (
            "acquire_timeout = '250ms'",
            changed(|layer| {
                layer.map_locks(|locks| locks.acquire_timeout(Duration::from_millis(250)))
            }),
        ),
        (
            "max_hold = '1m 30s'",
            changed(|layer| layer.map_locks(|locks| locks.max_hold(Duration::from_secs(90)))),
        ),
        (
            "max_hold = 'none'",
            changed(|layer| layer.map_locks(|locks| locks.max_hold(None))),
        ),
        (
            "max_waiters_per_realm = 0",
            changed(|layer| layer.map_locks(|locks| locks.max_waiters_per_realm(0))),
        ),
        (
            "body_timeout = '3s'",
            changed(|layer| layer.body_timeout(Duration::from_secs(3))),
        ),
    ] {
        assert_eq!(shown(file), by_hand, "{file}");
        assert_ne!(shown(file), shown(""), "{file}");
    }
}
