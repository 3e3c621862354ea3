//! The operations document of the JSON:API atomic extension: `{"atomic:operations":[…]}`.

use serde_json::{Map, Value};
use url::Url;

use crate::card::{BadDocument, Card, Expect, object_of, only};
use crate::path::{BadPath, RealmPath};
use crate::precondition::Precondition;
use crate::store::{Change, Operation};

/// Why a list of operations cannot be read.
#[derive(Debug)]
pub enum BadOperations {
    Document(BadDocument),
    /// An `href` that is no card of the realm, and where it stands.
    Href {
        pointer: String,
        problem: BadPath,
    },
}

impl From<BadDocument> for BadOperations {
    fn from(error: BadDocument) -> Self {
        Self::Document(error)
    }
}

/// Where the operation with this number stands in its document.
pub fn pointer(index: usize) -> String {
    format!("/atomic:operations/{index}")
}

/// Reads the operations of a body, in order.
pub fn operations_of(
    body: &[u8],
    realm: &RealmPath,
    base_url: &Url,
) -> Result<Vec<Operation>, BadOperations> {
    let document = object_of(body)?;
    only(&document, "", &["atomic:operations", "jsonapi"])?;
    let operations = match document.get("atomic:operations") {
        Some(Value::Array(operations)) if !operations.is_empty() => operations,
        _ => {
            let detail = "'atomic:operations' must be a list of at least one operation.";
            return Err(BadDocument::new("/atomic:operations", detail).into());
        }
    };
    operations
        .iter()
        .enumerate()
        .map(|(index, operation)| read(operation, &pointer(index), realm, base_url))
        .collect()
}

fn read(
    operation: &Value,
    pointer: &str,
    realm: &RealmPath,
    base_url: &Url,
) -> Result<Operation, BadOperations> {
    let operation = operation
        .as_object()
        .ok_or_else(|| BadDocument::new(pointer, "An operation must be an object."))?;
    only(operation, pointer, &["op", "href", "data"])?;
    let href = text(operation, "href", pointer)?;
    let card = realm
        .card_by_href(href, base_url)
        .map_err(|problem| BadOperations::Href {
            pointer: format!("{pointer}/href"),
            problem,
        })?;
    let data = |expect| match operation.get("data") {
        Some(data) => Card::from_resource(data, &format!("{pointer}/data"), expect),
        None => Err(BadDocument::new(
            pointer,
            "The operation has no 'data'; add the card.",
        )),
    };
    let change = match text(operation, "op", pointer)? {
        "add" => Change::Add(data(Expect::Whole)?),
        "update" => Change::Update(data(Expect::Patch)?),
        "remove" => Change::Remove,
        other => {
            let other = other.escape_debug();
            let detail = format!("The op '{other}' is unknown; use add, update or remove.");
            return Err(BadDocument::new(&format!("{pointer}/op"), detail).into());
        }
    };
    Ok(Operation {
        card,
        change,
        only_if: Precondition::default(),
    })
}

fn text<'a>(
    operation: &'a Map<String, Value>,
    name: &str,
    pointer: &str,
) -> Result<&'a str, BadDocument> {
    match operation.get(name) {
        Some(Value::String(value)) => Ok(value),
        Some(_) => {
            let detail = format!("'{name}' must be a string.");
            Err(BadDocument::new(&format!("{pointer}/{name}"), detail))
        }
        None => {
            let detail = format!("The operation has no '{name}'; add it.");
            Err(BadDocument::new(pointer, detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Vec<Operation>, BadOperations> {
        let (realm, _) = RealmPath::split("/luke/r/_atomic").unwrap();
        let base_url = Url::parse("http://127.0.0.1:4201").unwrap();
        operations_of(body.as_bytes(), &realm, &base_url)
    }

    #[test]
    fn operations_keep_their_order() {
        let operations = read(
            r#"{"atomic:operations":[
                {"op":"add","href":"a.json","data":{"type":"card","attributes":{}}},
                {"op":"update","href":"b.json","data":{"attributes":{}}},
                {"op":"remove","href":"c.json"}]}"#,
        )
        .unwrap();
        let hrefs: Vec<_> = operations.iter().map(|it| it.card.to_string()).collect();
        assert_eq!(hrefs, ["a", "b", "c"]);
        assert!(matches!(operations[0].change, Change::Add(_)));
        assert!(matches!(operations[1].change, Change::Update(_)));
        assert!(matches!(operations[2].change, Change::Remove));
    }

    #[test]
    fn bad_operations_are_refused_with_a_pointer() {
        let one = |operation: &str| format!(r#"{{"atomic:operations":[{operation}]}}"#);
        for (body, expected) in [
            ("[]".to_owned(), ""),
            ("{}".to_owned(), "/atomic:operations"),
            (
                r#"{"atomic:operations":{}}"#.to_owned(),
                "/atomic:operations",
            ),
            (one(""), "/atomic:operations"),
            (one("1"), "/atomic:operations/0"),
            (one(r#"{"op":"remove"}"#), "/atomic:operations/0"),
            (one(r#"{"href":"x"}"#), "/atomic:operations/0"),
            (
                one(r#"{"op":"remove","href":1}"#),
                "/atomic:operations/0/href",
            ),
            (
                one(r#"{"op":"drop","href":"x"}"#),
                "/atomic:operations/0/op",
            ),
            (
                one(r#"{"op":"remove","href":"x","ref":{}}"#),
                "/atomic:operations/0/ref",
            ),
            (one(r#"{"op":"add","href":"x"}"#), "/atomic:operations/0"),
            (
                one(r#"{"op":"add","href":"x","data":{}}"#),
                "/atomic:operations/0/data",
            ),
            (
                one(r#"{"op":"remove","href":"x"},{"op":"add","href":"x","data":{"type":"dog"}}"#),
                "/atomic:operations/1/data/type",
            ),
        ] {
            match read(&body) {
                Err(BadOperations::Document(error)) => {
                    assert_eq!(error.pointer, expected, "{body}");
                }
                _ => panic!("{body} must be a bad document"),
            }
        }
    }

    #[test]
    fn an_href_out_of_the_realm_is_refused_with_a_pointer() {
        match read(r#"{"atomic:operations":[{"op":"remove","href":"../x"}]}"#) {
            Err(BadOperations::Href { pointer, .. }) => {
                assert_eq!(pointer, "/atomic:operations/0/href");
            }
            _ => panic!("must be a bad href"),
        }
    }
}
