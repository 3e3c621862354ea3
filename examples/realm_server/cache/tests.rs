use super::*;

fn cache(cards: usize) -> Arc<Cache> {
    Arc::new(Cache::new(NonZeroUsize::new(cards).unwrap()))
}

fn card(path: &str) -> CardPath {
    let (realm, card) = RealmPath::split(path).unwrap();
    realm.card(card).unwrap()
}

fn document(text: &'static str) -> Document {
    Document {
        etag: ETag::of(text.as_bytes()),
        body: Bytes::from_static(text.as_bytes()),
    }
}

/// Reads a card from start to end, with nothing in between.
fn fill(cache: &Arc<Cache>, path: &str, text: &'static str) {
    cache.reading(&card(path)).keep(&document(text));
}

fn kept(cache: &Cache, path: &str) -> Option<Bytes> {
    cache.get(&card(path)).map(|it| it.body)
}

#[test]
fn what_was_read_is_kept_and_the_oldest_goes() {
    let cache = cache(2);
    for path in ["/l/r/a", "/l/r/b", "/l/r/c"] {
        fill(&cache, path, "1");
    }
    assert_eq!(kept(&cache, "/l/r/a"), None);
    assert_eq!(kept(&cache, "/l/r/c").unwrap(), "1");
}

#[test]
fn what_is_written_is_forgotten() {
    let cache = cache(9);
    for path in ["/l/r/a", "/l/r/b", "/l/s/a"] {
        fill(&cache, path, "1");
    }
    cache.forget_card(&card("/l/r/a"));
    assert_eq!(kept(&cache, "/l/r/a"), None);
    assert!(kept(&cache, "/l/r/b").is_some());
    cache.forget_realm(card("/l/r/b").realm());
    assert_eq!(kept(&cache, "/l/r/b"), None);
    assert!(kept(&cache, "/l/s/a").is_some());
}

#[test]
fn a_read_that_began_before_a_write_was_told_is_not_kept() {
    let r_a = card("/l/r/a");
    let tellings: [&dyn Fn(&Cache); 4] = [
        &|cache| cache.forget_card(&card("/l/r/a")),
        &|cache| cache.forget_realm(card("/l/r/x").realm()),
        &|cache| cache.begin(true),
        &|cache| {
            cache.begin(false);
            cache.begin(true);
        },
    ];
    for tell in tellings {
        let cache = cache(9);
        let (reading, other) = (cache.reading(&r_a), cache.reading(&card("/l/s/a")));
        tell(&cache);
        reading.keep(&document("old"));
        assert_eq!(kept(&cache, "/l/r/a"), None);
        // One that begins afterwards sees the write.
        fill(&cache, "/l/r/a", "new");
        assert_eq!(kept(&cache, "/l/r/a").unwrap(), "new");
        drop(other);
    }
    let cache = cache(9);
    let other = cache.reading(&card("/l/s/a"));
    cache.forget_realm(r_a.realm());
    other.keep(&document("1"));
    assert!(kept(&cache, "/l/s/a").is_some(), "another realm's");
}

#[test]
fn what_was_seen_new_is_not_seen_old_again() {
    // Two reads, one before a write of another replica and one after it; the notice has not come yet.
    for old_comes_first in [true, false] {
        let cache = cache(9);
        let (before, after) = (
            cache.reading(&card("/l/r/a")),
            cache.reading(&card("/l/r/a")),
        );
        let third = cache.reading(&card("/l/r/a"));
        if old_comes_first {
            before.keep(&document("old"));
            after.keep(&document("new"));
        } else {
            after.keep(&document("new"));
            before.keep(&document("old"));
        }
        assert_eq!(kept(&cache, "/l/r/a"), None);
        third.keep(&document("old"));
        assert_eq!(kept(&cache, "/l/r/a"), None);
    }
    // Nor when the new one has had to make room meanwhile.
    let cache = cache(1);
    let before = cache.reading(&card("/l/r/a"));
    fill(&cache, "/l/r/a", "new");
    fill(&cache, "/l/r/b", "1");
    before.keep(&document("old"));
    assert_eq!(kept(&cache, "/l/r/a"), None);
}

#[test]
fn nothing_is_kept_while_writes_may_be_missed() {
    let cache = cache(9);
    fill(&cache, "/l/r/a", "1");
    cache.begin(false);
    assert_eq!(kept(&cache, "/l/r/a"), None);
    fill(&cache, "/l/r/a", "1");
    assert_eq!(kept(&cache, "/l/r/a"), None);
    cache.begin(true);
    fill(&cache, "/l/r/a", "1");
    assert!(kept(&cache, "/l/r/a").is_some());
}

#[test]
fn reads_that_end_leave_nothing() {
    let cache = cache(9);
    drop(cache.reading(&card("/l/r/a")));
    fill(&cache, "/l/r/a", "1");
    assert!(cache.state().reading.is_empty());
}
