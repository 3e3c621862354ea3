use crate::config::ConfigError;
use crate::realm::error::{RealmError, shown};
use crate::realm::path::ParsedPath;
use crate::realm::template::Segment;
use crate::realm::url::RealmUrl;

/// The parameters of a pattern with their values in a request, decoded.
pub(super) type Captures<'a> = Vec<(&'a str, &'a str)>;

/// The value of a parameter.
pub(super) fn captured<'c>(captures: &Captures<'c>, name: &str) -> Option<&'c str> {
    let (_, value) = captures.iter().find(|(key, _)| *key == name)?;
    Some(value)
}

/// The URL that realms are below. Labels of its host may be parameters:
/// `https://{tenant}.example.com/api`.
#[derive(Debug, Clone)]
pub(super) struct BaseUrl {
    /// With placeholders for parameters.
    url: RealmUrl,
    /// The labels of a host with parameters; none if it has no parameters.
    labels: Box<[Segment]>,
    /// The segments of its path, all literal.
    path: Box<[Segment]>,
}

impl BaseUrl {
    /// Reads a base URL.
    ///
    /// # Errors
    ///
    /// [`ConfigError::InvalidUrl`], also for a brace or a star that is no whole label of the host.
    pub(super) fn parse(text: &str) -> Result<Self, ConfigError> {
        let invalid = |problem: String| ConfigError::InvalidUrl {
            url: shown(text),
            problem,
        };
        let (start, end) = authority(text);
        if text[end..].contains(['{', '}', '*']) {
            return Err(invalid(
                "its path has a brace or a star; a base URL's path is plain, and parameters of a path \
                 belong in the pattern"
                    .into(),
            ));
        }
        let host = &text[start..end];
        let (url, labels) = if host.contains(['{', '}', '*']) {
            let (name, port) = host.split_at(host.rfind(':').unwrap_or(host.len()));
            let labels = labels(name).map_err(invalid)?;
            let filled = filled(&labels, |at, _| Some(placeholder(at))).unwrap_or_default();
            let url = format!("{}{filled}{port}{}", &text[..start], &text[end..]);
            let url = RealmUrl::parse(&url).map_err(|error| match error {
                RealmError::InvalidUrl { problem, .. } => invalid(problem),
                error => error.into(),
            })?;
            let labels = canonical_labels(&labels, &url);
            let labels = labels.ok_or_else(|| invalid("its host cannot be read".into()))?;
            (url, labels)
        } else {
            (RealmUrl::parse(text)?, Box::default())
        };
        let path = ParsedPath::new(url.path());
        let path = path.segments().into_iter().flatten();
        let path = path.map(|segment| Segment::Literal(segment.into()));
        let path = path.collect();
        Ok(Self { url, labels, path })
    }

    /// The URL, if its host has no parameters.
    pub(super) fn fixed(&self) -> Option<&RealmUrl> {
        self.labels.is_empty().then_some(&self.url)
    }

    /// Its scheme.
    pub(super) fn scheme(&self) -> &str {
        self.url.as_str().split(':').next().unwrap_or("https")
    }

    /// Its path, which ends in `/`.
    pub(super) fn path(&self) -> &str {
        self.url.path()
    }

    /// The segments of its path.
    pub(super) fn segments(&self) -> &[Segment] {
        &self.path
    }

    /// The names of its host's parameters.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.labels.iter().filter_map(Segment::name)
    }

    /// The values of the parameters in the host of a URL; none if the URL has another
    /// scheme, port or host.
    pub(super) fn captures<'a>(&'a self, url: &'a RealmUrl) -> Option<Captures<'a>> {
        if self.labels.is_empty() {
            let fits = self.url == *url || self.url.origin() == url.origin();
            return fits.then(Vec::new);
        }
        let own = split_origin(self.url.origin());
        let other = split_origin(url.origin());
        if (own.0, own.2) != (other.0, other.2) {
            return None;
        }
        let mut captures = Vec::new();
        let mut labels = other.1.split('.');
        for expected in &self.labels {
            match (expected, labels.next()?) {
                (Segment::Literal(literal), label) if **literal == *label => {}
                (Segment::Parameter(name), label) if !label.is_empty() => {
                    captures.push((&**name, label));
                }
                _ => return None,
            }
        }
        labels.next().is_none().then_some(captures)
    }

    /// What to do about a URL that does not fit.
    pub(super) fn remedy(&self, url: &RealmUrl) -> String {
        let (scheme, host, _) = split_origin(self.url.origin());
        let (_, _, port) = split_origin(url.origin());
        let with_port = RealmUrl::parse(&joined(scheme, host, port, self.path()));
        let same_port = Self {
            url: with_port.unwrap_or_else(|_| self.url.clone()),
            ..self.clone()
        };
        if same_port.captures(url).is_some() {
            return format!(
                "write the port in the base URL: `{}`",
                shown(&same_port.text())
            );
        }
        "send the request to a host of it, or add another layer for that host".to_owned()
    }

    /// The URL with these parameters; none if one is missing, or is no label of a host.
    pub(super) fn with<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> Option<RealmUrl> {
        if self.labels.is_empty() {
            return Some(self.url.clone());
        }
        let host = filled(&self.labels, |_, name| {
            let value = value(name)?;
            // Not a second label, nor what ends a host.
            let is_label = !value.is_empty()
                && value
                    .chars()
                    .all(|c| c.is_alphanumeric() || matches!(c, '-' | '_'));
            is_label.then(|| value.to_owned())
        })?;
        let (scheme, _, port) = split_origin(self.url.origin());
        RealmUrl::parse(&joined(scheme, &host, port, self.path())).ok()
    }

    /// As it is written.
    pub(super) fn text(&self) -> String {
        if self.labels.is_empty() {
            return self.url.to_string();
        }
        let (scheme, _, port) = split_origin(self.url.origin());
        let host: Vec<String> = self.labels.iter().map(ToString::to_string).collect();
        joined(scheme, &host.join("."), port, self.path())
    }
}

/// The origin of a URL and what follows it, as they are written; no origin for an absolute path.
pub(super) fn split_url(text: &str) -> (&str, &str) {
    if text.starts_with('/') {
        return ("", text);
    }
    let (_, end) = authority(text);
    text.split_at(end)
}

/// Where the host and port of a URL begin and end.
fn authority(text: &str) -> (usize, usize) {
    let start = text.find("://").map_or(0, |at| at + "://".len());
    let end = text[start..].find('/').map_or(text.len(), |at| start + at);
    (start, end)
}

fn placeholder(at: usize) -> String {
    format!("label{at}")
}

/// The labels of a host, of which some are parameters.
fn labels(host: &str) -> Result<Vec<Segment>, String> {
    let mut labels: Vec<Segment> = Vec::new();
    for text in host.split('.') {
        let name = text.strip_prefix('{').and_then(|it| it.strip_suffix('}'));
        let label = match name {
            Some(name) if !name.is_empty() && !name.contains(['{', '}', '*']) => {
                if labels.iter().any(|label| label.name() == Some(name)) {
                    return Err(format!("the name `{}` is in it twice", shown(name)));
                }
                Segment::Parameter(name.into())
            }
            None if !text.is_empty() && !text.contains(['{', '}', '*']) => {
                Segment::Literal(text.into())
            }
            _ => {
                return Err(format!(
                    "`{}` is no label of a host; write a parameter for a whole label, such as \
                     `https://{{tenant}}.example.com`",
                    shown(text)
                ));
            }
        };
        labels.push(label);
    }
    if !labels.iter().any(|label| label.name().is_none()) {
        return Err(
            "all of its host is a parameter; write at least one label, such as \
             `https://{tenant}.example.com`, or take any host with `origin_from_request`"
                .into(),
        );
    }
    Ok(labels)
}

/// The host with something in place of each parameter.
fn filled(labels: &[Segment], value: impl Fn(usize, &str) -> Option<String>) -> Option<String> {
    let labels = labels.iter().enumerate().map(|(at, label)| match label {
        Segment::Parameter(name) => value(at, name),
        label => Some(label.to_string()),
    });
    Some(labels.collect::<Option<Vec<_>>>()?.join("."))
}

/// The labels with the literal ones as a canonical URL has them.
fn canonical_labels(labels: &[Segment], url: &RealmUrl) -> Option<Box<[Segment]>> {
    let (_, host, _) = split_origin(url.origin());
    let canonical: Vec<&str> = host.split('.').collect();
    if canonical.len() != labels.len() {
        return None;
    }
    let labels = labels.iter().zip(canonical).enumerate();
    let labels = labels.map(|(at, (label, text))| match label {
        Segment::Parameter(_) => (text == placeholder(at)).then(|| label.clone()),
        _ => Some(Segment::Literal(text.into())),
    });
    labels.collect()
}

/// The URL of these parts; the path begins with a slash.
fn joined(scheme: &str, host: &str, port: Option<&str>, path: &str) -> String {
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{host}{port}{path}")
}

/// Scheme, host and port of a canonical origin.
fn split_origin(origin: &str) -> (&str, &str, Option<&str>) {
    let (scheme, authority) = origin.split_once("://").unwrap_or(("", origin));
    // The colons of an IPv6 address are in brackets.
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (scheme, host, Some(port)),
        _ => (scheme, authority, None),
    }
}
