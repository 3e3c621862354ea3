use http::header::HeaderName;
use http::{HeaderMap, Method};

/// Whether a request with this method writes to its `Destination` too (RFC 4918, sections 9.8 and
/// 9.9).
fn has_destination(method: &Method) -> bool {
    matches!(method.as_str(), "COPY" | "MOVE")
}

/// The methods that a request can be read with: its own, and what a header overrides it with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::realm) struct Readings {
    first: Method,
    /// Where readers differ.
    others: Vec<Method>,
    /// Whether the value of the header is unreliable.
    pub(in crate::realm) unclear: bool,
}

impl Readings {
    pub(super) fn of(
        method: &Method,
        headers: &HeaderMap,
        overriding: Option<&(HeaderName, Vec<Method>)>,
    ) -> Self {
        let own = Self {
            first: method.clone(),
            others: Vec::new(),
            unclear: false,
        };
        let Some((header, honoured)) =
            overriding.filter(|(header, _)| headers.contains_key(header))
        else {
            return own;
        };
        let mut unclear = headers.get_all(header).iter().count() > 1;
        let mut readings = Vec::new();
        for value in headers.get_all(header) {
            let Ok(over) = Method::from_bytes(value.as_bytes()) else {
                unclear = true;
                continue;
            };
            // Methods are case-sensitive (RFC 9110, section 9.1), and yet some readers fold them.
            let upper = Method::from_bytes(over.as_str().to_ascii_uppercase().as_bytes());
            readings.push(over);
            readings.extend(upper);
        }
        // A POST is what every reader overrides, with a method that it honours. Some override
        // nothing else.
        let is_certain = readings.iter().all(|reading| honoured.contains(reading));
        if unclear || *method != Method::POST || !is_certain {
            readings.insert(0, own.first);
        }
        let mut read = Self {
            first: readings.remove(0),
            others: Vec::new(),
            unclear,
        };
        for reading in readings {
            if read.iter().all(|known| *known != reading) {
                read.others.push(reading);
            }
        }
        read
    }

    pub(in crate::realm) fn iter(&self) -> impl Iterator<Item = &Method> + Clone {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Whether the request, in any reading, writes to its `Destination` too.
    pub(in crate::realm) fn have_destination(&self) -> bool {
        self.iter().any(has_destination)
    }
}
