use std::sync::Arc;

use tokio_postgres::Config;
use tokio_postgres::config::{SslMode, SslNegotiation};

use super::Tls;
use crate::config::ConfigError;

/// How the connections to the servers of one URL are encrypted.
#[derive(Clone)]
pub(in crate::lock::postgres) struct Encryption {
    /// `None` if they never are.
    tls: Option<Tls>,
    /// Whether a connection in clear text will do where TLS fails.
    pub(in crate::lock::postgres) is_optional: bool,
    /// `None` if there are no files to read again.
    files: Option<Arc<Files>>,
}

/// What is needed to read the files of a URL once more.
struct Files {
    settings: Settings,
    mode: String,
    is_direct: bool,
}

impl Encryption {
    /// TLS for the next connection, by the files as they are now: certificates are renewed while a
    /// process runs.
    pub(in crate::lock::postgres) fn tls(&self) -> Result<Option<Tls>, ConfigError> {
        match &self.files {
            Some(files) => Tls::of(&files.settings, &files.mode, files.is_direct),
            None => Ok(self.tls.clone()),
        }
    }
}

/// What a database URL says about TLS. Only the last value of an option counts.
#[derive(Clone, Default)]
pub(in crate::lock::postgres) struct Settings {
    mode: Option<String>,
    negotiation: Option<String>,
    pub(super) roots: Option<String>,
    pub(super) certificate: Option<String>,
    pub(super) key: Option<String>,
}

impl Settings {
    /// Those of the driver's own configuration.
    pub(in crate::lock::postgres) fn of(config: &Config) -> Self {
        let mode = match config.get_ssl_mode() {
            SslMode::Disable => Some("disable"),
            // The default: nobody may have asked for it.
            SslMode::Prefer => None,
            // A stricter one of a later driver too.
            _ => Some("require"),
        };
        let is_direct = config.get_ssl_negotiation() == SslNegotiation::Direct;
        Self {
            mode: mode.map(Into::into),
            negotiation: is_direct.then(|| "direct".into()),
            ..Self::default()
        }
    }

    /// Takes an option that the driver does not have, or not with all values; whether it did.
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

    /// Reads the files, and tells the driver how to begin a handshake. With TLS of the user's `own`
    /// there must be no files.
    pub(in crate::lock::postgres) fn encryption(
        &self,
        own: Option<&Tls>,
        config: &mut Config,
    ) -> Result<Encryption, ConfigError> {
        let is_system = self.is_system();
        let mode = match self.mode.as_deref() {
            None if is_system => "verify-full",
            None if own.is_some() => "require",
            None => "prefer",
            Some(mode) => mode,
        };
        let modes = ["disable", "prefer", "require", "verify-ca", "verify-full"];
        let remedy = if !modes.contains(&mode) {
            "write `disable`, `prefer`, `require`, `verify-ca` or `verify-full`"
        } else if is_system && mode != "verify-full" {
            "with sslrootcert=system it must be `verify-full`: anyone can have such a certificate"
        } else {
            ""
        };
        if !remedy.is_empty() {
            return Err(ConfigError::option("sslmode", mode, remedy));
        }
        let is_direct = match self.negotiation.as_deref() {
            None | Some("postgres") => false,
            Some("direct") if !matches!(mode, "disable" | "prefer") => true,
            Some(other) => {
                let remedy = "write `postgres` or `direct`, which needs sslmode=require, verify-ca \
                              or verify-full";
                return Err(ConfigError::option("sslnegotiation", other, remedy));
            }
        };
        if is_direct {
            config.ssl_negotiation(SslNegotiation::Direct);
        }
        let tls = match own {
            _ if mode == "disable" => None,
            None => Tls::of(self, mode, is_direct)?,
            Some(own) => {
                let remedy = "what is given to `tls` has its own; leave one of the two out";
                self.refuse_files(remedy)?;
                Some(own.clone())
            }
        };
        let files = (tls.is_some() && self.names_files()).then(|| {
            Arc::new(Files {
                settings: self.clone(),
                mode: mode.into(),
                is_direct,
            })
        });
        Ok(Encryption {
            tls,
            is_optional: mode == "prefer",
            files,
        })
    }

    /// Whether those are trusted whom the system trusts.
    pub(super) fn is_system(&self) -> bool {
        self.roots.as_deref() == Some("system")
    }

    /// Whether a certificate may be renewed in a file. What the system trusts is read once.
    fn names_files(&self) -> bool {
        (self.roots.is_some() && !self.is_system()) || self.certificate.is_some()
    }

    pub(super) fn refuse_files(&self, remedy: &'static str) -> Result<(), ConfigError> {
        let files = [
            ("sslrootcert", &self.roots),
            ("sslcert", &self.certificate),
            ("sslkey", &self.key),
        ];
        for (option, value) in files {
            if let Some(value) = value {
                return Err(ConfigError::option(option, value, remedy));
            }
        }
        Ok(())
    }
}
