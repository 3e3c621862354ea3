//! A client for JSON:API cards.

use std::time::Duration;

use http::{Method, StatusCode, header};
use reqwest::RequestBuilder;
use serde_json::{Value, json};

/// The media type of every document that is sent.
const JSON_API: &str = "application/vnd.api+json";

/// A card document with the given attributes.
#[allow(clippy::needless_pass_by_value)] // Reads well with `json!` in place.
pub fn card(attributes: Value) -> Value {
    json!({ "data": { "type": "card", "attributes": attributes } })
}

/// An HTTP client of one test: its connections belong to the test's runtime, so that tests cannot share it.
#[derive(Clone)]
pub struct CardClient(reqwest::Client);

impl CardClient {
    /// A client that uses no proxy and gives up after 30 s.
    pub fn new() -> Self {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(30))
            .build()
            .expect("a plain HTTP client can always be built");
        Self(client)
    }

    /// Reads a card: the answer's status and document.
    pub async fn get(&self, url: &str) -> (StatusCode, Value) {
        self.answered(Method::GET, url, None).await
    }

    /// Merges a document into a card (`PATCH`).
    pub async fn patch(&self, url: &str, document: &Value) -> (StatusCode, Value) {
        self.answered(Method::PATCH, url, Some(document)).await
    }

    /// Creates a card in a realm, or sends operations to its `_atomic` (`POST`).
    pub async fn post(&self, url: &str, document: &Value) -> (StatusCode, Value) {
        self.answered(Method::POST, url, Some(document)).await
    }

    /// Removes a card (`DELETE`).
    pub async fn delete(&self, url: &str) -> (StatusCode, Value) {
        self.answered(Method::DELETE, url, None).await
    }

    /// Sends a request that may end without an answer: to a replica that is killed meanwhile, say.
    ///
    /// The document is `Null` where the answer has no body, and a string where the body is not JSON.
    pub async fn send(
        &self,
        method: Method,
        url: &str,
        document: Option<&Value>,
    ) -> reqwest::Result<(StatusCode, Value)> {
        let mut request = self.request(method, url);
        if let Some(document) = document {
            request = request
                .header(header::CONTENT_TYPE, JSON_API)
                .body(document.to_string());
        }
        let response = request.send().await?;
        let status = response.status();
        let body = response.text().await?;
        let document = match body.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or(Value::String(body)),
        };
        Ok((status, document))
    }

    /// A request to build on: for other headers, or to read the answer's.
    pub fn request(&self, method: Method, url: &str) -> RequestBuilder {
        self.0.request(method, url)
    }

    async fn answered(
        &self,
        method: Method,
        url: &str,
        document: Option<&Value>,
    ) -> (StatusCode, Value) {
        let answer = self.send(method.clone(), url, document).await;
        answer.unwrap_or_else(|error| panic!("{method} {url}: {error:?}"))
    }
}
