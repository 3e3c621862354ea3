//! The bodies of requests about whole realms.

use serde_json::{Map, Value};
use tower_realm_lock::RealmUrl;
use url::Url;

use crate::card::{BadDocument, object_of, only};
use crate::error::ApiError;
use crate::path::RealmPath;

/// Reads a body with exactly these members, each a string.
fn texts<'a, const N: usize>(
    document: &'a Map<String, Value>,
    names: [&str; N],
) -> Result<[&'a str; N], BadDocument> {
    only(document, "", &names)?;
    let mut texts = [""; N];
    for (text, name) in texts.iter_mut().zip(names) {
        *text = match document.get(name) {
            Some(Value::String(value)) => value,
            Some(_) => {
                let detail = format!("'{name}' must be a string.");
                return Err(BadDocument::new(&format!("/{name}"), detail));
            }
            None => {
                let form = names.map(|name| format!("\"{name}\":\"…\"")).join(",");
                let detail = format!("The document has no '{name}'; write {{{form}}}.");
                return Err(BadDocument::new("", detail));
            }
        };
    }
    Ok(texts)
}

/// The new realm of `{"owner":"luke","endpoint":"my-realm"}`. Both are names as they are, not percent-encoded.
pub fn to_create(body: &[u8]) -> Result<RealmPath, ApiError> {
    let document = object_of(body)?;
    let [owner, endpoint] = texts(&document, ["owner", "endpoint"])?;
    Ok(RealmPath::named(owner, endpoint)?)
}

/// The realm of `{"<name>":"http://…/luke/my-realm/"}`.
pub fn named(body: &[u8], name: &str, base_url: &Url) -> Result<RealmPath, ApiError> {
    let document = object_of(body)?;
    let [url] = texts(&document, [name])?;
    realm_of(url, name, base_url)
}

/// The source and the target of `{"sourceRealmURL":"…","publishedRealmURL":"…"}`.
pub fn to_publish(body: &[u8], base_url: &Url) -> Result<(RealmPath, RealmPath), ApiError> {
    let names = ["sourceRealmURL", "publishedRealmURL"];
    let document = object_of(body)?;
    let [source, target] = texts(&document, names)?;
    let source = realm_of(source, names[0], base_url)?;
    let target = realm_of(target, names[1], base_url)?;
    if source == target {
        let detail = "A realm cannot be published in its own place; choose another URL.";
        return Err(ApiError::bad_realm_url(detail).at(format!("/{}", names[1])));
    }
    Ok((source, target))
}

fn realm_of(url: &str, name: &str, base_url: &Url) -> Result<RealmPath, ApiError> {
    let bad = |detail| ApiError::bad_realm_url(detail).at(format!("/{name}"));
    let url = RealmUrl::parse(url).map_err(|error| bad(format!("{error}.")))?;
    RealmPath::of_url(&url, base_url).map_err(|problem| bad(problem.to_string()))
}
