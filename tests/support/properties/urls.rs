use tower_realm_lock::RealmUrl;
use url::Url;

use super::problems::is_plain;

/// A text is no realm URL, or one that every reader reads in the same way.
pub fn a_realm_url_is_canonical(text: &str) -> bool {
    let realm = match RealmUrl::parse(text) {
        Ok(realm) => realm,
        Err(error) => {
            is_plain(&error.to_string());
            return false;
        }
    };
    let url = realm.as_str();
    assert!(
        url.bytes().all(|byte| byte.is_ascii_graphic()) && url.ends_with('/'),
        "{url}"
    );
    assert_eq!(RealmUrl::parse(url), Ok(realm.clone()));
    assert_eq!(RealmUrl::parse(&url[..url.len() - 1]), Ok(realm.clone()));
    // A WHATWG parser, such as a browser's, leaves the canonical form as it is, and makes the same realm of the text.
    assert_eq!(Url::parse(url).expect("a URL").as_str(), url);
    let whatwg = Url::parse(text).expect("a URL");
    assert_eq!(RealmUrl::parse(whatwg.as_str()), Ok(realm.clone()));
    // Letter case counts in the path alone.
    let scheme = text.find("://").expect("a scheme") + 3;
    let path = text[scheme..]
        .find('/')
        .map_or(text.len(), |at| scheme + at);
    let upper = text[..path].to_ascii_uppercase() + &text[path..];
    assert_eq!(RealmUrl::parse(&upper), Ok(realm));
    true
}
