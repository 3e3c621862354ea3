//! The card document: what is read from a body, merged, stored and sent.

use std::fmt;

use serde_json::{Map, Value, json};

/// A card without its URL: that is where it lies, and is added where it is sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Card {
    attributes: Map<String, Value>,
    meta: Map<String, Value>,
}

/// Whether a resource object is a card of its own, or changes to one.
#[derive(Clone, Copy, PartialEq)]
pub enum Expect {
    Whole,
    Patch,
}

impl Card {
    /// Reads a document `{"data":{"type":"card","attributes":{…},"meta":{…}}}`.
    pub fn from_document(body: &[u8], expect: Expect) -> Result<Self, BadDocument> {
        let document = object_of(body)?;
        only(&document, "", &["data", "jsonapi"])?;
        let data = document.get("data").ok_or(BadDocument::new(
            "",
            "The document has no 'data'; write {\"data\":{\"type\":\"card\",\"attributes\":{}}}.",
        ))?;
        Self::from_resource(data, "/data", expect)
    }

    /// Reads the resource object that stands at `pointer` in its document.
    pub fn from_resource(data: &Value, pointer: &str, expect: Expect) -> Result<Self, BadDocument> {
        let data = data
            .as_object()
            .ok_or_else(|| BadDocument::new(pointer, "A card must be an object."))?;
        // What would not be stored must not be acknowledged. An `id` is harmless: the URL names the card.
        only(data, pointer, &["type", "id", "attributes", "meta"])?;
        match data.get("type") {
            Some(Value::String(name)) if name == "card" => {}
            None if expect == Expect::Patch => {}
            None => {
                let detail = "A card must have its type; add \"type\":\"card\".";
                return Err(BadDocument::new(pointer, detail));
            }
            Some(other) => {
                let other = other.to_string();
                let other = other.escape_debug();
                let detail = format!("The type is {other}; only \"card\" is known here.");
                return Err(BadDocument::new(&format!("{pointer}/type"), detail));
            }
        }
        let member = |name: &str| match data.get(name) {
            None => Ok(Map::new()),
            Some(Value::Object(members)) => Ok(members.clone()),
            Some(_) => Err(BadDocument::new(
                &format!("{pointer}/{name}"),
                format!("'{name}' must be an object."),
            )),
        };
        Ok(Self {
            attributes: member("attributes")?,
            meta: member("meta")?,
        })
    }

    /// The bytes of the card's file.
    pub fn to_document(&self) -> Vec<u8> {
        json!({ "data": self.resource() }).to_string().into_bytes()
    }

    /// The resource object that a response carries.
    pub fn resource_at(&self, url: &str) -> Value {
        let mut resource = self.resource();
        resource["id"] = url.into();
        resource
    }

    fn resource(&self) -> Value {
        json!({ "type": "card", "attributes": self.attributes, "meta": self.meta })
    }

    /// Merges a patch: objects member by member, at every depth; anything else is replaced.
    pub fn merge(&mut self, patch: &Self) {
        merge(&mut self.attributes, &patch.attributes);
        merge(&mut self.meta, &patch.meta);
    }
}

fn merge(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (name, value) in patch {
        match (target.get_mut(name), value) {
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            _ => {
                target.insert(name.clone(), value.clone());
            }
        }
    }
}

/// Reads a body whose top level must be an object.
pub fn object_of(body: &[u8]) -> Result<Map<String, Value>, BadDocument> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(document)) => Ok(document),
        Ok(_) => Err(BadDocument::new("", "The document must be an object.")),
        Err(error) => Err(BadDocument::new(
            "",
            format!("The body is not JSON: {error}."),
        )),
    }
}

/// Refuses every member but these.
pub fn only(object: &Map<String, Value>, at: &str, known: &[&str]) -> Result<(), BadDocument> {
    match object.keys().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => {
            // RFC 6901, 3: the two characters that a JSON pointer escapes.
            let escaped = name.replace('~', "~0").replace('/', "~1");
            let detail = format!(
                "'{}' is not known here; leave it out, or use one of: {}.",
                name.escape_debug(),
                known.join(", ")
            );
            Err(BadDocument::new(&format!("{at}/{escaped}"), detail))
        }
    }
}

/// What is wrong in a document, and where.
#[derive(Debug)]
pub struct BadDocument {
    pub pointer: String,
    pub detail: String,
}

impl BadDocument {
    pub fn new(pointer: &str, detail: impl Into<String>) -> Self {
        Self {
            pointer: pointer.to_owned(),
            detail: detail.into(),
        }
    }
}

impl fmt::Display for BadDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at '{}')", self.detail, self.pointer)
    }
}

impl std::error::Error for BadDocument {}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(attributes: &Value) -> Card {
        let document = json!({ "data": { "type": "card", "attributes": attributes } });
        Card::from_document(document.to_string().as_bytes(), Expect::Whole).unwrap()
    }

    #[test]
    fn objects_merge_and_everything_else_replaces() {
        for (old, patch, merged) in [
            (json!({"a": 1}), json!({"b": 2}), json!({"a": 1, "b": 2})),
            (json!({"a": 1}), json!({"a": 2}), json!({"a": 2})),
            (
                json!({"a": {"x": 1}}),
                json!({"a": {"y": 2}}),
                json!({"a": {"x": 1, "y": 2}}),
            ),
            (
                json!({"a": {"b": {"x": 1}}}),
                json!({"a": {"b": {"x": null}}}),
                json!({"a": {"b": {"x": null}}}),
            ),
            (json!({"a": [1, 2]}), json!({"a": [3]}), json!({"a": [3]})),
            (
                json!({"a": {"x": 1}}),
                json!({"a": "text"}),
                json!({"a": "text"}),
            ),
            (
                json!({"a": "text"}),
                json!({"a": {"x": 1}}),
                json!({"a": {"x": 1}}),
            ),
            (json!({"a": 1}), json!({}), json!({"a": 1})),
        ] {
            let mut target = card(&old);
            target.merge(&card(&patch));
            assert_eq!(target, card(&merged), "{old} with {patch}");
        }
    }

    #[test]
    fn a_patch_merges_meta_too() {
        let meta = |body: &str| Card::from_document(body.as_bytes(), Expect::Patch).unwrap();
        let mut target = meta(r#"{"data":{"meta":{"a":{"x":1}}}}"#);
        target.merge(&meta(r#"{"data":{"meta":{"a":{"y":2}}}}"#));
        assert_eq!(target, meta(r#"{"data":{"meta":{"a":{"x":1,"y":2}}}}"#));
    }

    #[test]
    fn what_is_stored_is_read_back() {
        let stored = card(&json!({"a": {"x": 1}})).to_document();
        let text = r#"{"data":{"attributes":{"a":{"x":1}},"meta":{},"type":"card"}}"#;
        assert_eq!(String::from_utf8(stored.clone()).unwrap(), text);
        let read = Card::from_document(&stored, Expect::Whole).unwrap();
        assert_eq!(read, card(&json!({"a": {"x": 1}})));
    }

    #[test]
    fn a_patch_may_leave_out_the_type_and_repeat_the_id() {
        let body = br#"{"data":{"id":"http://h/a/b/c","attributes":{}}}"#;
        assert!(Card::from_document(body, Expect::Patch).is_ok());
        assert!(Card::from_document(body, Expect::Whole).is_err());
    }

    #[test]
    fn a_bad_document_is_refused_with_a_pointer() {
        for (body, pointer) in [
            ("", ""),
            ("{", ""),
            ("[]", ""),
            ("null", ""),
            ("{}", ""),
            (r#"{"data":null}"#, "/data"),
            (r#"{"data":[]}"#, "/data"),
            (r#"{"data":{}}"#, "/data"),
            (r#"{"data":{"type":"dog"}}"#, "/data/type"),
            (r#"{"data":{"type":1}}"#, "/data/type"),
            (
                r#"{"data":{"type":"card","attributes":[]}}"#,
                "/data/attributes",
            ),
            (
                r#"{"data":{"type":"card","attributes":null}}"#,
                "/data/attributes",
            ),
            (r#"{"data":{"type":"card","meta":1}}"#, "/data/meta"),
            (
                r#"{"data":{"type":"card","relationships":{}}}"#,
                "/data/relationships",
            ),
            (r#"{"data":{"type":"card"},"a/b~c":1}"#, "/a~1b~0c"),
        ] {
            let error = Card::from_document(body.as_bytes(), Expect::Whole).unwrap_err();
            assert_eq!(error.pointer, pointer, "{body}: {error}");
        }
    }
}
