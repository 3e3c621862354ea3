use super::*;

fn config(flags: &[&str]) -> Result<Config, String> {
    // With a value for the database flag, so that the environment of the tests does not count.
    let given = flags.iter().any(|flag| flag.starts_with("--database-url"));
    let database: &[&str] = if given { &[] } else { &["--database-url="] };
    let flags = ["realm_server"].iter().chain(database).chain(flags);
    Flags::try_parse_from(flags)
        .and_then(Config::try_from)
        .map_err(|error| error.to_string())
}

fn lock(flags: &[&str]) -> String {
    config(flags).map(|config| config.lock.to_string()).unwrap()
}

#[test]
fn the_lock_follows_the_database_url() {
    let database = "--database-url=postgres://h/db";
    assert_eq!(lock(&[]), "in-process");
    assert_eq!(lock(&[database]), "postgres");
    assert_eq!(lock(&[database, "--lock=in-process"]), "in-process");
    assert_eq!(lock(&[database, "--lock=off"]), "off");
    assert_eq!(lock(&[database, "--fencing"]), "postgres with fencing");
    assert_eq!(lock(&["--fencing"]), "in-process with fencing");
}

#[test]
fn sessions_are_off_unless_asked_for() {
    let sessions = |flags: &[&str]| {
        let flags = [&["--database-url=postgres://h/db"], flags].concat();
        match config(&flags).map(|config| config.lock) {
            Ok(Lock::Postgres { builder, .. }) => format!("{builder:?}"),
            _ => panic!("locks in PostgreSQL are wanted"),
        }
    };
    assert!(sessions(&[]).contains("sessions: 0"));
    assert!(sessions(&["--sessions=4"]).contains("sessions: 4"));
}

#[test]
fn the_defaults_are_those_of_the_manual() {
    let config = config(&[]).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:4201");
    assert_eq!(config.write_delay, Duration::ZERO);
    assert!(config.base_url.is_none() && config.data_dir.is_none());
    assert!(config.acquire_timeout.is_none() && !config.fencing());
}

#[test]
fn a_bad_flag_is_refused_with_its_value_and_a_remedy() {
    for (flag, value, remedy) in [
        ("--listen", "localhost", "127.0.0.1:4201"),
        ("--listen", "127.0.0.1:99999", "127.0.0.1:4201"),
        ("--base-url", "realms", "https://"),
        ("--base-url", "ftp://h", "https://"),
        ("--base-url", "http://h/path", "https://"),
        ("--base-url", "http://u:p@h", "https://"),
        ("--base-url", "http://h/?q", "https://"),
        ("--lock", "redis", "in-process"),
        ("--pool-size", "0", "1.."),
        ("--pool-size", "many", "--pool-size"),
        ("--sessions", "-1", "--sessions"),
        ("--sessions", "some", "--sessions"),
        ("--cache-cards", "-1", "--cache-cards"),
        ("--fault", "swapped", "STEP:error"),
        ("--fault", "nowhere:crash", "swapped"),
        ("--acquire-timeout", "0", "above 0"),
        ("--acquire-timeout", "1e-12", "above 0"),
        ("--lease", "-1", "above 0"),
        ("--write-delay", "-1", "--write-delay"),
        ("--lease", "NaN", "above 0"),
        ("--lease", "inf", "above 0"),
        ("--write-delay", "0.5", "--write-delay"),
    ] {
        let error = config(&[flag, value]).err().unwrap();
        assert!(error.contains(&format!("'{value}'")), "{error}");
        assert!(error.contains(flag) && error.contains(remedy), "{error}");
    }
}

#[test]
fn seconds_may_have_fractions() {
    let config = config(&["--acquire-timeout=0.25"]).unwrap();
    assert_eq!(config.acquire_timeout, Some(Duration::from_millis(250)));
}

#[test]
fn flags_that_do_not_fit_together_are_refused() {
    let error = config(&["--lock=postgres"]).err().unwrap();
    assert!(error.contains("DATABASE_URL"), "{error}");
    let flags = ["--fencing", "--lock=off", "--database-url=postgres://h"];
    let error = config(&flags).err().unwrap();
    assert!(error.contains("--lock postgres or in-process"), "{error}");
}

#[test]
fn the_command_is_consistent() {
    Flags::command().debug_assert();
}

/// The same with a file of this text.
fn config_with(text: &str, flags: &[&str]) -> Result<Config, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("realms.toml");
    std::fs::write(&path, text).unwrap();
    let file = format!("--config={}", path.display());
    config(&[&[file.as_str()], flags].concat())
}

/// Each key, with a value that is not the default.
const ALL: &str = "
    listen = '127.0.0.1:1'
    base_url = 'https://realms.test'
    data_dir = '/srv/realms'
    lock = 'postgres'
    write_delay = '20ms'
    cache_cards = 7
    server_timing = true
    limits.acquire_timeout = '5s'
    rules.max_resources = 1
    postgres = { url = 'postgres://u:secret@h/file', pool_size = 3, fencing = true, lease = '9s' }
";

#[test]
fn a_file_says_what_the_flags_say() {
    let config = config_with(ALL, &[]).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:1");
    assert_eq!(config.base_url.unwrap().as_str(), "https://realms.test/");
    assert_eq!(config.data_dir.unwrap().as_os_str(), "/srv/realms");
    assert_eq!(config.lock.to_string(), "postgres with fencing");
    assert_eq!(config.write_delay, Duration::from_millis(20));
    assert_eq!(config.cache_cards.unwrap().get(), 7);
    assert!(config.server_timing);
    assert!(format!("{:?}", config.limits).contains("5s"));
    assert!(format!("{:?}", config.rules).contains("max_resources: 1,"));
    let Lock::Postgres { url, builder, .. } = config.lock else {
        panic!("{}", config.lock);
    };
    assert_eq!(url, "postgres://u:secret@h/file");
    let builder = format!("{builder:?}");
    for option in [
        "pool_size: 3",
        "lease: 9s",
        "fencing: true",
        "broadcast: true",
    ] {
        assert!(builder.contains(option), "{builder}");
    }
    assert!(!builder.contains("secret"), "{builder}");
}

#[test]
fn a_flag_counts_before_the_file() {
    let flags = [
        "--listen=127.0.0.1:2",
        "--base-url=https://flags.test",
        "--data-dir=/flags",
        "--database-url=postgres://h/flags",
        "--write-delay=0",
        "--cache-cards=0",
        "--pool-size=4",
        "--lease=0.5",
        "--sessions=2",
    ];
    let config = config_with(ALL, &flags).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:2");
    assert_eq!(config.base_url.unwrap().as_str(), "https://flags.test/");
    assert_eq!(config.data_dir.unwrap().as_os_str(), "/flags");
    assert_eq!(config.write_delay, Duration::ZERO);
    assert!(config.cache_cards.is_none());
    let Lock::Postgres { url, builder, .. } = config.lock else {
        panic!("{}", config.lock);
    };
    assert_eq!(url, "postgres://h/flags");
    let builder = format!("{builder:?}");
    for option in [
        "pool_size: 4",
        "lease: 500ms",
        "sessions: 2",
        "broadcast: false",
    ] {
        assert!(builder.contains(option), "{builder}");
    }
    for lock in ["off", "in-process"] {
        let flag = format!("--lock={lock}");
        let config = config_with(ALL, &[&flag]).unwrap();
        assert_eq!(config.lock.to_string(), lock);
    }
}

#[test]
fn options_of_postgres_without_a_database_are_not_locks_in_process() {
    let options = "[postgres]\npool_size = 3";
    let error = config_with(options, &[]).err().unwrap();
    assert!(error.contains("`url` in [postgres]"), "{error}");
    let database = "--database-url=postgres://h/d";
    let config = config_with(options, &[database]).unwrap();
    assert_eq!(config.lock.to_string(), "postgres");
}
