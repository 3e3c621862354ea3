use std::path::{Path, PathBuf};

use crate::lock::error::LockError;

/// When connections are encrypted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in crate::lock::postgres) enum When {
    #[default]
    Never,
    /// Where the server has TLS, and else not.
    Offered,
    Always,
}

/// The values of `sslmode`.
const MODES: &str = "write `disable`, `prefer`, `require`, `verify-ca` or `verify-full`";

/// What a database URL says about TLS.
#[derive(Default)]
pub(in crate::lock::postgres) struct Settings {
    mode: Option<String>,
    negotiation: Option<String>,
    roots: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
}

/// What is trusted, and what is shown to the server.
pub(super) struct Trust {
    pub(super) check: Check,
    /// The certificates of trusted authorities; without it those that the system trusts.
    pub(super) roots: Option<PathBuf>,
    /// A client certificate and its key.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
    /// Whether the handshake comes first, and so must name the protocol.
    pub(super) direct: bool,
}

/// What of the server's certificate is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    Nothing,
    Issuer,
    IssuerAndName,
}

impl Settings {
    /// Takes an option that is about TLS; the last of two counts.
    pub(in crate::lock::postgres) fn take(&mut self, name: &str, value: &str) -> bool {
        let place = match name {
            "sslmode" => &mut self.mode,
            "sslnegotiation" => &mut self.negotiation,
            "sslrootcert" => &mut self.roots,
            "sslcert" => &mut self.certificate,
            "sslkey" => &mut self.key,
            _ => return false,
        };
        *place = Some(value.to_owned());
        true
    }

    /// When to use TLS. `configured` says that the application has brought its own, and so wants it used.
    pub(super) fn when(&self, configured: bool) -> Result<When, LockError> {
        let when = match self.mode.as_deref() {
            None if configured || self.system() => When::Always,
            None | Some("prefer") => When::Offered,
            Some("disable") => When::Never,
            Some("require" | "verify-ca" | "verify-full") => When::Always,
            Some(other) => return refuse("sslmode", other, MODES),
        };
        match (self.system(), self.mode.as_deref()) {
            (false, _) | (true, None | Some("verify-full")) => Ok(when),
            (true, Some(weak)) => refuse(
                "sslmode",
                weak,
                "with sslrootcert=system it must be `verify-full`: anyone can have such a certificate",
            ),
        }
    }

    /// Whether the handshake comes without a request before it.
    pub(super) fn direct(&self, when: When) -> Result<bool, LockError> {
        match self.negotiation.as_deref() {
            None | Some("postgres") => Ok(false),
            Some("direct") if when == When::Always => Ok(true),
            Some("direct") => refuse(
                "sslnegotiation",
                "direct",
                "it needs sslmode=require, verify-ca or verify-full",
            ),
            Some(other) => refuse("sslnegotiation", other, "write `postgres` or `direct`"),
        }
    }

    /// What only a build with TLS can do, by its option and value.
    pub(super) fn asked(&self) -> Option<(&'static str, &str)> {
        let mode = self.mode.as_deref().map(|mode| ("sslmode", mode));
        let asking = |&(_, mode): &(&str, &str)| !matches!(mode, "disable" | "prefer");
        mode.filter(asking).or_else(|| self.files())
    }

    /// The first option that names a file.
    pub(super) fn files(&self) -> Option<(&'static str, &str)> {
        let files = [
            ("sslrootcert", &self.roots),
            ("sslcert", &self.certificate),
            ("sslkey", &self.key),
        ];
        let mut named = files.into_iter();
        named.find_map(|(option, value)| Some((option, value.as_deref()?)))
    }

    pub(super) fn trust(self, direct: bool) -> Result<Trust, LockError> {
        let roots = (!self.system()).then_some(self.roots.as_ref()).flatten();
        let check = match self.mode.as_deref() {
            Some("verify-full") => Check::IssuerAndName,
            None if self.system() => Check::IssuerAndName,
            Some("verify-ca") => Check::Issuer,
            _ if roots.is_some() => Check::Issuer,
            _ => Check::Nothing,
        };
        let identity = match (&self.certificate, &self.key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
            (Some(certificate), None) => {
                return refuse(
                    "sslcert",
                    certificate,
                    "sslkey must name the file of its key",
                );
            }
            (None, Some(key)) => {
                return refuse(
                    "sslkey",
                    key,
                    "sslcert must name the file of its certificate",
                );
            }
        };
        Ok(Trust {
            check,
            roots: roots.map(PathBuf::from),
            identity,
            direct,
        })
    }

    fn system(&self) -> bool {
        self.roots.as_deref() == Some("system")
    }
}

/// A file that the URL names, or the system's, that is of no use.
pub(super) fn unusable(option: &'static str, file: &Path, problem: &impl ToString) -> LockError {
    LockError::TlsFile {
        option,
        path: file.into(),
        problem: problem.to_string(),
    }
}

pub(super) fn refuse<T>(
    option: &'static str,
    value: &str,
    remedy: &'static str,
) -> Result<T, LockError> {
    Err(LockError::InvalidOption {
        option,
        value: value.into(),
        remedy,
    })
}
